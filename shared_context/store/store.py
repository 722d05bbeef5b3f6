"""The store: whole documents in, selections out."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from shared_context.config import (
    CacheConfig,
    Policy,
    Search,
    StoreConfig,
    TreeConfig,
    one_of,
    paper_ratios,
    require,
)
from shared_context.errors import (
    BudgetError,
    ConfigError,
    DocumentError,
    DocumentNotFoundError,
    ModelMismatchError,
    QueryError,
    SharedContextError,
    StoreClosedError,
    StoreFormatError,
)
from shared_context.kernels import ChunkKV
from shared_context.kernels import split_and_search as preserved_cuts
from shared_context.model.cache import give_back_freed
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.support import usable_window
from shared_context.store.codec import Codec
from shared_context.store.database import (
    MAX_ROW_BYTES,
    Database,
    Entry,
    Kind,
    Message,
    NodeData,
    StoredText,
    is_vacant,
)
from shared_context.store.documents import (
    Document,
    Source,
    check_metadata,
    check_text,
    load_documents,
    refuse,
    stored_already,
)
from shared_context.store.embedder import DEFAULT_EMBEDDER, Embedder, load_default_embedder
from shared_context.store.filters import compile_filter
from shared_context.store.ingestion import Ingestion
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.memory import ConversationMemory
from shared_context.store.node_index import Leaves, NodeIndex
from shared_context.store.prefilter import Prefilter
from shared_context.store.scoring import (
    POLICIES,
    Query,
    above_floor,
    by_level,
    recent_scores,
    touching,
    with_neighbours,
)
from shared_context.store.selection import SelectedChunk, SelectedNode, Selection
from shared_context.tree import ContextTree, Grained, Node, expand_under_budget, kv_entries, split_and_search
from shared_context.tree.search import smallest_cut

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""

DEFAULT_BUDGET = 1024
"""KV entries of a selection where no budget is given."""

ENCODE_TOGETHER = 1
"""Chunks that are encoded as one batch."""

INGEST_TOGETHER = 1 << 16
"""Tokens of documents whose chunks and leaves are batched together."""

TEXTS_KEPT = 32
"""Documents whose text and tokens are kept in memory after they were selected from."""

DISCARDED_KEPT = 1 << 16
"""Chunks of deleted documents that are remembered, so that no earlier selection brings their KV back."""


class SharedLLMContextStore:
    """Documents as context trees of keys and values, for one model.

    Adding a document writes its text, tokens, node codes and embeddings; keys and values are computed when a query
    first selects from a chunk, and kept in a cache of bounded size.

    Args:
        model: the model that will read the selections.
        path: a folder, made if it is missing and opened again if it is a store; None keeps all in memory.
        config: settings; None takes the stored ones, or the defaults for a new store.
        embedder: "auto" is what the store was made with, and MiniLM for a new one; None uses none; or an
            :class:`~shared_context.store.embedder.Embedder` of your own.

    Raises:
        StoreFormatError: where the folder is something else, half written or of a newer format.
        StoreUnavailableError: where the folder cannot be read or written now.
        ModelMismatchError: where the store was made with another model or embedder; says which.
        ConfigError: where ``config`` contradicts what the store was made with, where its chunks do not fit the model's
            window, or where ``embedder`` is none.

    All methods may be called from several threads, and several processes may open one folder.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        path: str | Path | None = None,
        *,
        config: StoreConfig | None = None,
        embedder: Embedder | Literal["auto"] | None = "auto",
    ):
        known = embedder is None or embedder == "auto" or isinstance(embedder, Embedder)
        require(known, "embedder", embedder, "must be 'auto', None or an object with name, dimension and encode()")
        self.model = model
        self.path = Path(path) if path is not None else None
        self.embedder: Embedder | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._database = self._make(config, embedder) if path is None or is_vacant(self.path) else Database(self.path)
        try:
            # Read back even where it was just made: another process may have been faster.
            self.config, self.embedder = self._read_meta(config, embedder)
            _check_window(model, self.config)
            with self._database.decoding():
                self._codec = Codec.from_bytes(self._database.get_meta("codec"))
            cache = self.config.cache
            self._cache = TieredKVCache(
                cache.memory_bytes,
                self.path / "kv" if self.path is not None else None,
                cache.disk_bytes,
                quantize=cache.quantize,
            )
            self._ingestion = Ingestion(model, self._codec, self.embedder, self.config.tree)
            self._discarded: OrderedDict[str, None] = OrderedDict()
            self._prefilter: tuple[Leaves, Prefilter] | None = None
            self._seen_version: int | None = None
            with self._database.snapshot():
                self._refresh()
        except BaseException:
            self._database.close()
            raise

    # Opening and closing

    def _make(self, config: StoreConfig | None, embedder: Embedder | Literal["auto"] | None) -> Database:
        """A new store's database. What it needs is made first, so that a failure leaves no half-made store."""
        config = config or StoreConfig()
        _check_window(self.model, config)
        self.embedder = load_default_embedder() if embedder == "auto" else embedder
        about = {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "embedder": self.embedder.name if self.embedder is not None else None,
            "dimension": self.embedder.dimension if self.embedder is not None else 0,
            "config": asdict(config),
        }
        codec = Codec.fit(self.model, config.code_size)
        give_back_freed()
        return Database(self.path, {"about": json.dumps(about).encode(), "codec": codec.to_bytes()})

    def _read_meta(
        self, config: StoreConfig | None, embedder: Embedder | Literal["auto"] | None
    ) -> tuple[StoreConfig, Embedder | None]:
        with self._database.decoding():
            about = json.loads(self._database.get_meta("about"))
        if about["fingerprint"] != self.model.fingerprint:
            raise ModelMismatchError(
                f"The store {self.path} was made with the model {about['model']} ({about['fingerprint']}) and cannot "
                f"be opened with {self.model.name} ({self.model.fingerprint}). Open it with its own model, or make a "
                "new store."
            )
        if embedder == "auto":
            embedder = self._own_embedder(about["embedder"])
        name, dimension = (embedder.name, embedder.dimension) if embedder is not None else (None, 0)
        if (name, dimension) != (about["embedder"], about["dimension"]):
            raise ModelMismatchError(
                f"The store {self.path} was made with the embedder {about['embedder']} ({about['dimension']} "
                f"dimensions) and cannot be opened with {name} ({dimension}). Pass its own embedder, or make a new "
                "store."
            )
        values = about["config"]
        stored = StoreConfig(
            **{**values, "tree": TreeConfig(**values["tree"]), "cache": CacheConfig(**values["cache"])}
        )
        if config is not None and config.fixed() != stored.fixed():
            raise ConfigError(
                f"The store {self.path} was made with {stored.fixed()} and cannot be opened with {config.fixed()}. "
                "Leave these settings out, or make a new store."
            )
        return config or stored, embedder

    def _own_embedder(self, name: str | None) -> Embedder | None:
        if name is None:
            return None
        if self.embedder is not None and self.embedder.name == name:
            return self.embedder
        if name == DEFAULT_EMBEDDER:
            return load_default_embedder()
        raise ModelMismatchError(
            f"The store {self.path} was made with the embedder {name}, which cannot be loaded by its name alone. "
            "Pass it with embedder=."
        )

    def close(self) -> None:
        """Close the store's files. Everything added is stored already; closing twice does no harm."""
        with self._lock:
            self._closed = True
            self._database.close()

    def __enter__(self) -> SharedLLMContextStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SharedLLMContextStore({str(self.path) if self.path else 'in memory'!r}, {self.model.name!r})"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self!r} is closed; open it again.")
            yield

    @contextmanager
    def _open(self) -> Iterator[None]:
        """What reads works inside: one thread at a time, on an open store, as it is at one moment."""
        with self._locked(), self._database.snapshot():
            self._refresh()
            yield

    @contextmanager
    def _writing(self) -> Iterator[_Change]:
        """A change that lands whole or not at all."""
        with self._locked():
            change = _Change()
            with self._database.transaction():
                self._refresh()
                yield change
                # Should what follows be interrupted, the next look takes everything in anew.
                seen, self._seen_version = self._seen_version, None
            for key in change.removed:
                self._forget(key)
            for key, (entry, stored, nodes) in change.added.items():
                self._know(key, entry, stored.tokens.ids, nodes)
            self._catalogue |= change.described
            self._seen_version = seen
            if not change.removed:
                return
            # Keys and values give away what the text said; they must not outlive it.
            old = {_content(c) for ids in change.removed.values() for c in self._chunks(ids)}
            new = {_content(c) for _, stored, _ in change.added.values() for c in self._chunks(stored.tokens.ids)}
            self._discarded |= dict.fromkeys(old - new)
            while len(self._discarded) > DISCARDED_KEPT:
                self._discarded.popitem(last=False)
            self._cache.discard(old - new)

    def _refresh(self) -> None:
        """Take in what another process has committed since the last look."""
        version = self._database.data_version()
        if version == self._seen_version:
            return
        if self._seen_version is None:
            self._index = NodeIndex(self.config.tree, self.model.hf_model.config.vocab_size, self.model.device)
            self._catalogue: dict[int, Entry] = {}
            self._keys: dict[tuple[Kind, str], int] = {}
            self._texts: OrderedDict[int, StoredText] = OrderedDict()
        catalogue = self._database.catalogue()
        for key in self._catalogue.keys() - catalogue.keys():
            self._forget(key)
        for key in sorted(catalogue.keys() - self._catalogue.keys()):
            of_document = catalogue[key].kind == "document"
            ids, nodes = (self._database.token_ids(key), self._nodes(key)) if of_document else (None, None)
            self._know(key, catalogue[key], ids, nodes)
        self._catalogue = catalogue
        self._seen_version = version

    def _know(self, key: int, entry: Entry, ids: np.ndarray | None, nodes: NodeData | None) -> None:
        """Take a document in; conversations are read when they are selected from."""
        if entry.kind == "document":
            self._index.add(key, ids, nodes)
        self._catalogue[key] = entry
        self._keys[entry.kind, entry.id] = key

    def _forget(self, key: int) -> None:
        entry = self._catalogue.pop(key)
        if entry.kind == "document":
            self._index.remove(key)
        del self._keys[entry.kind, entry.id]
        self._texts.pop(key, None)

    def _nodes(self, key: int) -> NodeData:
        dimension = self.embedder.dimension if self.embedder is not None else 0
        hidden = self.model.hf_model.config.hidden_size
        return self._database.nodes(key, self._codec.size, hidden, dimension)

    def _text(self, key: int) -> StoredText:
        stored = self._texts.pop(key, None) or self._database.document(key)
        self._texts[key] = stored
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return stored

    # Documents

    def add(
        self,
        source: Source,
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> list[str]:
        """Store documents whole; a batch lands whole or not at all.

        Args:
            source: a file's or folder's path, a text together with ``id``, a :class:`Document`, or an iterable of
                paths and Documents; :func:`~shared_context.store.documents.load_documents` says how each is read.
            id: of a single document.
            metadata: merged over the metadata of every document.
            replace: documents whose ids are taken take the place of those that are stored, instead of being refused;
                where only the metadata are others, nothing is computed.
            progress: called as tokens are done.

        Returns:
            The documents' ids, in the order given.

        Raises:
            DocumentError: the one document given is refused (empty, binary, not UTF-8, too large, id taken).
            BatchError: several were given and some are refused; ``failures`` has the error of each.
        """
        documents = load_documents(
            source,
            id=id,
            metadata=metadata,
            max_bytes=self.config.max_document_bytes,
            stored=() if replace else self,
        )
        texts: dict[str, StoredText] = {}
        failures: dict[str, DocumentError] = {}
        for document in documents:
            if replace and document.id in self and self.get(document.id).text == document.text:
                continue
            try:
                texts[document.id] = self._tokenize(document.text, f"document {document.id!r}")
            except DocumentError as error:
                failures[document.id] = error
        refuse(failures, len(documents))
        computed = dict(zip(texts, self._ingest(list(texts.values()), progress), strict=True))
        with self._writing() as change:
            if not replace:
                # Another thread or process may have been faster.
                taken = {d.id: stored_already(d.id) for d in documents if ("document", d.id) in self._keys}
                refuse(taken, len(documents))
            for document in documents:
                entry = Entry("document", document.id, dict(document.metadata))
                if document.id not in texts:
                    self._describe(change, self._key(document.id), entry)
                    continue
                if (old := self._keys.get(("document", document.id))) is not None:
                    self._remove(change, old)
                self._insert(change, entry, texts[document.id], computed[document.id])
        return [d.id for d in documents]

    def update(self, id: str, text: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Replace a document's text, its metadata, or both; what is None stays.

        Raises:
            DocumentNotFoundError: no document has this id.
            DocumentError: the new text or metadata cannot be stored; the document stays as it was.
        """
        name = f"document {id!r}"
        old = self.get(id)
        new = None
        if text is not None and text != old.text:
            check_text(text, max_bytes=self.config.max_document_bytes, name=name)
            stored = self._tokenize(text, name)
            new = stored, *self._ingest([stored], None)
        if metadata is not None:
            metadata = check_metadata(metadata, name)
        with self._writing() as change:
            key = self._key(id)
            entry = Entry("document", id, self._catalogue[key].metadata if metadata is None else metadata)
            if new is not None:
                self._remove(change, key)
                self._insert(change, entry, *new)
            elif metadata is not None:
                self._describe(change, key, entry)

    def append(self, id: str, text: str) -> None:
        """Add text at the end of a document; only its last chunk is computed again.

        Raises:
            DocumentNotFoundError: no document has this id.
            DocumentError: the text is empty, or the document would become too large.
        """
        limit = self.config.max_document_bytes
        check_text(text, max_bytes=limit, name=f"the text to append to {id!r}")
        more = self._tokenize(text, f"the text to append to {id!r}")
        while True:
            with self._open():
                key = self._key(id)
                old, nodes = self._text(key), self._nodes(key)
            check_text(old.text + text, max_bytes=limit, name=f"document {id!r}")
            whole = self._extend(old, nodes, more, f"document {id!r}")
            with self._writing() as change:
                if self._key(id) == key:  # else another thread or process has replaced it meanwhile
                    self._remove(change, key)
                    self._insert(change, self._catalogue[key], *whole)
                    return

    def delete(self, ids: str | Iterable[str]) -> None:
        """Delete documents, all of them or, where an id is unknown, none.

        Raises:
            DocumentNotFoundError: an id is unknown.
        """
        ids = _as_list(ids)
        with self._writing() as change:
            for key in dict.fromkeys(map(self._key, ids)):
                self._remove(change, key)

    def get(self, id: str) -> Document:
        """A document as it was stored.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        with self._open():
            key = self._key(id)
            return Document(self._text(key).text, id, copy.deepcopy(self._catalogue[key].metadata))

    def ids(self, filters: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the documents that a filter lets through, in the order of their adding or last change of text."""
        passes = compile_filter(filters)
        with self._open():
            return [self._catalogue[key].id for key in self._documents() if passes(self._catalogue[key].metadata)]

    def __iter__(self) -> Iterator[Document]:
        for id in self.ids():
            try:
                document = self.get(id)
            except DocumentNotFoundError:  # deleted since the iteration began
                continue
            yield document

    def __len__(self) -> int:
        with self._open():
            return len(self._documents())

    def __contains__(self, id: object) -> bool:
        with self._open():
            return ("document", id) in self._keys

    def _documents(self) -> list[int]:
        """Keys of the documents, conversations left out."""
        return [key for key, entry in self._catalogue.items() if entry.kind == "document"]

    def _key(self, id: str) -> int:
        key = self._keys.get(("document", id))
        if key is None:
            raise DocumentNotFoundError(
                f"No document has the id {id!r}; ids() lists the {len(self._documents())} known."
            )
        return key

    def _tokenize(self, text: str, name: str) -> StoredText:
        stored = StoredText(text, self.model.tokenize(text))
        if len(stored.tokens) == 0:
            raise DocumentError(f"{name} has no tokens: {self.model.name} reads nothing in it, leave it out")
        self._check_size(stored, name)
        return stored

    def _check_size(self, stored: StoredText, name: str) -> None:
        nbytes = self._ingestion.nbytes(stored)
        if nbytes > MAX_ROW_BYTES:
            raise DocumentError(
                f"{name} is too large: its {len(stored.tokens):,} tokens and what is kept of them take {nbytes:,} "
                f"bytes, the limit is {MAX_ROW_BYTES:,}; split it"
            )

    def _extend(self, old: StoredText, nodes: NodeData, more: StoredText, name: str) -> tuple[StoredText, NodeData]:
        whole = self._ingestion.extend(old, nodes, more)
        self._check_size(whole[0], name)
        return whole

    def _ingest(self, documents: Sequence[StoredText], progress: Progress | None) -> list[NodeData]:
        total, done, passes = sum(len(d.tokens) for d in documents), 0, self._ingestion.passes
        nodes: list[NodeData] = []

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done // passes, total, "tokens")

        group: list[StoredText] = []
        waiting = 0
        for number, document in enumerate(documents, start=1):
            group.append(document)
            waiting += len(document.tokens)
            if waiting >= INGEST_TOGETHER or number == len(documents):
                nodes += self._ingestion(group, advance)
                if waiting >= INGEST_TOGETHER:
                    give_back_freed()
                group, waiting = [], 0
        return nodes

    def _insert(self, change: _Change, entry: Entry, stored: StoredText, nodes: NodeData) -> None:
        change.added[self._database.insert(entry, stored, nodes)] = entry, stored, nodes

    def _describe(self, change: _Change, key: int, entry: Entry) -> None:
        self._database.set_metadata(key, entry.metadata)
        change.described[key] = entry

    def _remove(self, change: _Change, key: int) -> None:
        change.removed[key] = self._database.token_ids(key)
        self._database.remove(key)

    # Queries

    def select(
        self,
        query: str | None,
        *,
        budget: int | None = None,
        ratio: int | None = None,
        policy: Policy | None = None,
        search: Search = "best_first",
        coarse: Sequence[int | None] | None = None,
        fine: int | None = None,
        floor: float | None = None,
        recent: int = 0,
        filters: Mapping[str, Any] | None = None,
        doc_ids: Iterable[str] | None = None,
        prefilter: int | None = None,
        prefilter_chunks: int | None = None,
    ) -> Selection:
        """Choose what a query is shown finely, coarsely and not at all.

        Args:
            query: a question; None only with ``search="split_and_search"`` or with ``ratio``.
            budget: KV entries at most; None is 1,024 for best_first and no limit otherwise.
            ratio: show everything that may be considered at this one grain, without any search; goes with no budget.
            policy: how nodes are scored; None is "hybrid", or "late_interaction" in a store without an embedder.
            search: "best_first" under the budget over all chunks, or the paper's "split_and_search" in each chunk.
            coarse: ratios of unopened nodes by level, root first; None is the configuration's (for split_and_search,
                where that shows nothing, the paper's).
            fine: ratio of opened leaves; None is the configuration's.
            floor: share of the best leaf's score below which best_first opens none but the best one's neighbours; 0
                spends the whole budget, 1 opens the best alone, None is the configuration's. Without effect among few
                leaves, or where the budget holds all of them.
            recent: tokens at the end of the last document that may be considered which best_first opens before all
                else, the end first: what stands right before matters to a text that goes on, whatever its words. They
                get the highest scores.
            filters: of metadata, see :func:`~shared_context.store.filters.compile_filter`.
            doc_ids: only these documents.
            prefilter: only so many documents, those nearest to the query by embedding.
            prefilter_chunks: only so many chunks of these documents, again the nearest: of a long document nothing else
                is scored. ``recent`` tokens are considered all the same.

        Returns:
            The selection; an empty one where no document may be considered.

        Raises:
            QueryError: the query is empty or longer than the model's window.
            BudgetError: the budget is not positive or holds not even the smallest cut.
            FilterError, DocumentNotFoundError, ConfigError: another argument is wrong.
        """
        doc_ids = _as_list(doc_ids)
        with self._open():
            return self._select(
                self._index, query, self._candidates(filters, doc_ids), budget=budget, ratio=ratio, policy=policy,
                search=search, coarse=coarse, fine=fine, floor=floor, recent=recent, prefilter=prefilter,
                prefilter_chunks=prefilter_chunks,
            )  # fmt: skip

    def retrieve(
        self,
        query: str,
        k: int = 5,
        *,
        policy: Policy | None = None,
        filters: Mapping[str, Any] | None = None,
        doc_ids: Iterable[str] | None = None,
        prefilter: int | None = None,
        prefilter_chunks: int | None = None,
    ) -> list[SelectedNode]:
        """The ``k`` best passages as text, best first, for any language model; arguments as in :meth:`select`.

        A passage is what is embedded as one (128 tokens by default), and as good as its best leaf.
        """
        _check_count("k", k, "passages")
        doc_ids = _as_list(doc_ids)
        with self._open():
            asked, policy = self._query(query, self._index), self._policy(policy)
            keys = self._candidates(filters, doc_ids)
            considered = self._considered(self._index, asked, keys, prefilter, prefilter_chunks)
            if not len(considered):
                return []
            scored = self._score(self._index, asked, considered, policy, smooth=policy != "last_token")
            level = self.config.tree.embedded_level
            nodes = []
            of_passages = scored.levels[level]
            for flat in np.argsort(-of_passages, axis=None, kind="stable")[:k]:
                chunk, slot = divmod(int(flat), of_passages.shape[1])
                if np.isfinite(of_passages[chunk, slot]):
                    nodes += self._scored_cut(scored, chunk, [Grained(Node(level, slot), 1)]).nodes
            return nodes

    def selection_from(self, spans: Iterable[Sequence[Any]], query: str | None = None) -> Selection:
        """The selection of given characters, whole leaves of which are shown.

        Args:
            spans: ``(doc_id, start, end, ratio, score)``, of which ratio and score may be left out: characters, the
                ratio at which their leaves are shown (1; the finest where spans overlap), and how promising they are
                (0; the highest where spans overlap).
            query: what the selection is for.

        Raises:
            DocumentNotFoundError: a doc_id is unknown.
            ConfigError: a span lies outside its document.
        """
        tree = self.config.tree
        spans = list(spans)
        with self._open():
            shown: dict[tuple[int, int], dict[int, tuple[int, float]]] = {}
            for doc_id, start, end, *rest in spans:
                ratio, score = (*rest, *(1, 0.0)[len(rest) :])
                _check_count("ratio", ratio, "tokens per KV entry")
                key = self._key(doc_id)
                stored = self._text(key)
                inside = 0 <= start < end <= len(stored.text)
                require(inside, "span", (start, end), f"document {doc_id!r} has {len(stored.text)} characters")
                first, last = stored.tokens.tokens(start, end)
                for leaf in range(first // tree.leaf_size, -(-last // tree.leaf_size)):
                    chunk, slot = divmod(leaf, 2**tree.height)
                    slots = shown.setdefault((key, chunk), {})
                    before = slots.get(slot, (ratio, score))
                    slots[slot] = min(ratio, before[0]), max(score, before[1])
            chunks = []
            for (key, number), slots in sorted(shown.items()):
                cut = [Grained(Node(tree.height, slot), ratio) for slot, (ratio, _) in sorted(slots.items())]
                scores = {tree.height: {slot: score for slot, (_, score) in slots.items()}}
                chunks.append(self._cut(key, number, cut, scores))
            return Selection(chunks, self._encode_shown, self.model, query=query, budget=None, policy=None)

    def warm(self, selection: Selection | None = None, *, progress: Progress | None = None) -> None:
        """Compute keys and values now: those of a selection, or those of all documents that the cache does not hold.

        Of documents that take more than the cache's limit, the last ones stay.
        """
        with self._open():
            if selection is not None:
                chunks = missing = list(selection.chunks)
            else:
                chunks = [c for key in self._documents() for c in self._chunks(self._database.token_ids(key))]
                self._keep(chunks)
                missing = [c for c, name in zip(chunks, self._names(chunks), strict=True) if name not in self._cache]
        # Nobody has to wait for what follows: it may take minutes.
        total = len(chunks)
        for at in range(0, len(missing), ENCODE_TOGETHER):
            self._encode(missing[at : at + ENCODE_TOGETHER])
            if progress is not None:
                progress(total - max(len(missing) - at - ENCODE_TOGETHER, 0), total, "chunks")

    def _policy(self, policy: Policy | None) -> Policy:
        if policy is None:
            return "hybrid" if self.embedder is not None else "late_interaction"
        one_of("policy", policy, Policy)
        return policy

    def _query(self, text: str, index: NodeIndex) -> Query:
        if not isinstance(text, str) or not text.strip():
            raise QueryError(f"The query {text!r} is empty; ask something.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QueryError(
                f"The query has a lone surrogate at character {error.start}, which no encoding can hold; decode the "
                "text it came from with the right encoding, or replace the character."
            ) from error
        query = Query(text, self.model, self._codec, self.embedder, index)
        tokens = len(query.token_ids)
        if tokens == 0:
            raise QueryError(f"{self.model.name} reads no token in the query {text!r}; ask in other words.")
        if tokens > self.model.context_window:
            raise QueryError(
                f"The query has {tokens} tokens and {self.model.name} reads {self.model.context_window}; shorten it, "
                "or add it as a document."
            )
        return query

    def _candidates(self, filters: Mapping[str, Any] | None, doc_ids: list[str] | None) -> list[int]:
        """Keys of the documents that may be considered."""
        passes = compile_filter(filters)
        keys = self._documents() if doc_ids is None else sorted(set(map(self._key, doc_ids)))
        return keys if not filters else [key for key in keys if passes(self._catalogue[key].metadata)]

    def _considered(
        self,
        index: NodeIndex,
        query: Query | None,
        keys: list[int],
        prefilter: int | None,
        prefilter_chunks: int | None,
        recent: int = 0,
    ) -> np.ndarray:
        """Rows of the chunks that are considered, of the documents that may be; arguments as in :meth:`select`."""
        asked = ("prefilter", prefilter, "documents"), ("prefilter_chunks", prefilter_chunks, "chunks")
        for setting, count, unit in asked:
            if count is not None:
                _check_count(setting, count, unit)
                if query is None:
                    raise ConfigError(
                        f"{setting}={count}: without a query nothing is nearer than all else; leave it out."
                    )
                embedding = query.embedding
        if not keys:
            return np.zeros(0, np.int64)
        leaves, last = index.leaves(), keys[-1]
        if prefilter is not None and prefilter < len(keys):
            keys = self._nearest(index, embedding, keys, leaves.span_document, prefilter)
        chunks = leaves.chunks(keys)
        if prefilter_chunks is not None and prefilter_chunks < len(chunks):
            chunks = np.array(self._nearest(index, embedding, keys, leaves.span_chunk, prefilter_chunks))
        if recent:
            chunks = np.union1d(chunks, leaves.chunks([last]) if prefilter_chunks is None else leaves.end(last, recent))
        return chunks

    def _nearest(
        self, index: NodeIndex, embedding: torch.Tensor, keys: list[int], of_span: np.ndarray, count: int
    ) -> list[int]:
        """The ``count`` of what documents' spans belong to whose nearest span is nearest, in rising order."""
        leaves = index.leaves()
        if index is not self._index or len(keys) < len(index):
            # What filters leave is usually few: their spans are compared one by one.
            spans = np.flatnonzero(np.isin(leaves.span_document, keys))
            theirs = leaves.embeddings[torch.from_numpy(spans).to(leaves.embeddings.device)]
            near = (theirs @ embedding.to(theirs.device)).numpy(force=True)
            return sorted(list(dict.fromkeys(of_span[spans[np.argsort(-near, kind="stable")]].tolist()))[:count])
        if self._prefilter is None or self._prefilter[0] is not leaves:
            self._prefilter = (leaves, Prefilter(leaves))
        return sorted(self._prefilter[1].nearest(embedding.numpy(), of_span, count))

    def _select(
        self,
        index: NodeIndex,
        text: str | None,
        keys: list[int],
        *,
        budget: int | None = None,
        ratio: int | None = None,
        policy: Policy | None = None,
        search: Search = "best_first",
        coarse: Sequence[int | None] | None = None,
        fine: int | None = None,
        floor: float | None = None,
        recent: int = 0,
        prefilter: int | None = None,
        prefilter_chunks: int | None = None,
    ) -> Selection:
        one_of("search", search, Search)
        policy = self._policy(policy)
        if budget is not None:
            _check_count("budget", budget, "KV entries", BudgetError)
        if ratio is not None:
            _check_count("ratio", ratio, "tokens per KV entry")
            require(
                budget is None,
                "budget",
                budget,
                f"ratio={ratio} shows everything, so both exclude each other; drop one",
            )
        tree = replace(
            self.config.tree,
            coarse=self.config.tree.coarse if coarse is None else coarse,
            fine=self.config.tree.fine if fine is None else fine,
        )
        floor = replace(self.config, floor=self.config.floor if floor is None else floor).floor
        searched = search == "best_first" and ratio is None
        tokens = isinstance(recent, Integral) and (recent == 0 or (searched and recent > 0))
        require(tokens, "recent", recent, "must be 0, or with best_first more tokens")
        needs_no_query = ratio is not None or search == "split_and_search"
        query = None if text is None and needs_no_query else self._query(text, index)
        considered = self._considered(index, query, keys, prefilter, prefilter_chunks, recent)
        if ratio is not None:
            places = index.leaves().places(considered) if len(considered) else []
            chunks = [self._cut(key, number, [Grained(Node(0, 0), ratio)]) for key, number in places]
            return Selection(chunks, self._encode_shown, self.model, query=text, budget=None, policy=None)
        if search == "best_first" and budget is None:
            budget = DEFAULT_BUDGET
        if not len(considered):
            return Selection([], self._encode_shown, self.model, query=text, budget=budget, policy=policy)
        if search == "best_first":
            scored = self._score(index, query, considered, policy, smooth=policy != "last_token")
            opened = scored.leaves
            if any(total > budget for total in accumulate(kv_entries(t.length, tree.fine) for t in scored.trees)):
                opened = above_floor(scored.leaves, floor, scored.stretches())
            if recent:
                at_the_end = recent_scores(scored.leaves, scored.last_leaves(recent))
                scored = replace(scored, leaves=torch.maximum(scored.leaves, at_the_end))
                opened = torch.maximum(opened, at_the_end)
            # Where nothing that is worth it fits, what does fit is better than nothing.
            cuts = expand_under_budget(
                scored.trees, by_level(opened), tree.coarse, tree.fine, budget
            ) or expand_under_budget(scored.trees, scored.levels, tree.coarse, tree.fine, budget)
            if not cuts:
                smallest = min(smallest_cut(t, tree.coarse, tree.fine) for t in scored.trees)
                raise BudgetError(
                    f"budget={budget} holds nothing: the smallest cut of these documents takes {smallest} KV entries. "
                    "Raise the budget, or make the store with smaller leaves (TreeConfig)."
                )
        else:
            scored = self._score(index, query, considered, policy, smooth=False)
            ratios = tree.coarse if any(tree.coarse) else paper_ratios(tree.height)
            paths = scored.paths(query.states[-1]) if query is not None and policy == "last_token" else None
            cuts = {}
            for chunk, context_tree in enumerate(scored.trees):
                if paths is not None:
                    cut = [Grained(node, ratios[node.level]) for node in sorted(paths[chunk], key=context_tree.span)]
                else:
                    similarity = None if query is None else scored.similarity(chunk)
                    cut = split_and_search(context_tree, ratios, similarity)
                cuts[chunk] = [grained for grained in cut if grained.ratio is not None]
        chunks = [self._scored_cut(scored, chunk, cut) for chunk, cut in cuts.items() if cut]
        selection = Selection(
            chunks, self._encode_shown, self.model, query=text, budget=budget, policy=None if query is None else policy
        )
        if budget is not None and selection.kv_entries > budget:
            raise BudgetError(
                f"budget={budget}: split-and-search shows a part of every chunk, {selection.kv_entries} KV entries "
                "here. Raise the budget, consider fewer documents, or use search='best_first'."
            )
        return selection

    def _score(
        self, index: NodeIndex, query: Query | None, considered: np.ndarray, policy: Policy, *, smooth: bool
    ) -> _Scored:
        """Scores of all leaves of the chunks considered, arranged by chunk; zeros where there is no query."""
        tree, leaves = self.config.tree, index.leaves()
        everything = len(considered) == len(leaves.chunk_length)
        rows = np.arange(len(leaves)) if everything else np.flatnonzero(np.isin(leaves.chunk, considered))
        # All rows are taken as they lie; some of them are copied.
        taken = slice(None) if everything else torch.from_numpy(rows).to(leaves.codes.device)
        if query is None:
            scores = torch.zeros(len(rows), device=leaves.codes.device)
        else:
            scores = POLICIES[policy](query, leaves, taken)
        if smooth:
            scores = with_neighbours(scores, touching(leaves, rows), self.config.neighbour_weight)
        chunks, first, place = np.unique(leaves.chunk[rows], return_index=True, return_inverse=True)
        by_chunk = scores.new_full((len(chunks), 2**tree.height), -torch.inf)
        by_chunk[torch.from_numpy(place), torch.from_numpy(leaves.slot[rows])] = scores
        return _Scored(
            by_chunk,
            leaves.places(chunks),
            [regular_tree(length, tree.chunk_size, tree.height) for length in leaves.chunk_length[chunks].tolist()],
            leaves.states,
            rows[first],
        )

    def _scored_cut(self, scored: _Scored, chunk: int, cut: Sequence[Grained]) -> SelectedChunk:
        return self._cut(*scored.places[chunk], cut, [level[chunk] for level in scored.levels])

    def _cut(
        self, key: int, number: int, cut: Sequence[Grained], scores: Sequence[np.ndarray] | None = None
    ) -> SelectedChunk:
        """A chunk of a document with its cut, as the user and the decoder see it.

        Args:
            key, number: the document, and the chunk's place in it.
            cut: the grained nodes that are shown, from left to right.
            scores: of the chunk's nodes by level, root first; None where nothing was scored.
        """
        tree, entry, stored = self.config.tree, self._catalogue[key], self._text(key)
        first = number * tree.chunk_size
        token_ids, lead_in = chunk = self._chunk(stored.tokens.ids, number)
        self._keep([chunk])
        context_tree = regular_tree(len(token_ids) - lead_in, tree.chunk_size, tree.height)
        nodes = []
        for node, ratio in cut:
            start, end = context_tree.span(node)
            characters = stored.tokens.characters(first + start, first + end)
            nodes.append(
                SelectedNode(
                    doc_id=entry.id,
                    start=characters[0],
                    end=characters[1],
                    text=stored.text[slice(*characters)],
                    level=node.level,
                    ratio=ratio,
                    score=0.0 if scores is None else float(scores[node.level][node.index]),
                    token_count=end - start,
                    kv_entries=kv_entries(end - start, ratio),
                    metadata=copy.deepcopy(entry.metadata),
                )
            )
        return SelectedChunk(token_ids, lead_in, context_tree, tuple(cut), tuple(nodes), stored.text)

    def _chunk(self, token_ids: np.ndarray, number: int) -> _Chunk:
        """A chunk of a document's tokens."""
        first = number * self.config.tree.chunk_size
        begin = max(0, first - self.config.lead_in)
        return _Chunk(token_ids[begin : first + self.config.tree.chunk_size], first - begin)

    def _chunks(self, token_ids: np.ndarray) -> list[_Chunk]:
        """A document's tokens chunk by chunk."""
        count = -(-len(token_ids) // self.config.tree.chunk_size)
        return [self._chunk(token_ids, number) for number in range(count)]

    def _keep(self, chunks: Iterable[_Chunk]) -> None:
        """Let the KV of chunks be kept although a document that said the same was deleted: these are still there."""
        if self._discarded:
            for chunk in chunks:
                self._discarded.pop(_content(chunk), None)

    def _names(self, chunks: Iterable[_Chunk | SelectedChunk]) -> list[str]:
        """Keys of chunks in the KV cache: what they say, and then what else their encodings depend on."""
        identity = self.model.identity.encode()
        return [_content(chunk) + _digest(chunk.token_ids[: chunk.lead_in], identity)[:24] for chunk in chunks]

    def _encode(self, chunks: Sequence[_Chunk | SelectedChunk]) -> list[ChunkKV]:
        """Keys and values of chunks, from the cache or computed now."""
        names = self._names(chunks)
        found = {name: self._cache.get(name) for name in dict.fromkeys(names)}
        missing = {name: chunk for name, chunk in zip(names, chunks, strict=True) if found[name] is None}
        order = sorted(missing, key=lambda name: len(missing[name].token_ids))
        for at in range(0, len(order), ENCODE_TOGETHER):
            batch = order[at : at + ENCODE_TOGETHER]
            ids = [torch.from_numpy(missing[name].token_ids.astype(np.int64)) for name in batch]
            for name, chunk_kv in zip(batch, self.model.compressor.encode(ids), strict=True):
                # As the cache would return it, so that the first answer is no other than the next.
                found[name] = chunk_kv.quantized() if self.config.cache.quantize else chunk_kv
                self._cache.put(name, found[name])
            # A selection outlives its documents, and they may be deleted while it is encoded.
            self._cache.discard({_content(missing[name]) for name in batch} & self._discarded.keys())
        return [found[name] for name in names]

    def _encode_shown(
        self, chunks: Sequence[SelectedChunk], rows: Sequence[torch.Tensor]
    ) -> tuple[list[ChunkKV], Sequence[torch.Tensor]]:
        """Keys and values of chunks, and where ``rows`` lie in them.

        Where whole chunks would together take more memory than the cache may, there is nothing but those rows.
        """
        found: list[ChunkKV] = []
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        for chunk, shown in zip(chunks, rows, strict=True):
            (whole,) = self._encode([chunk])
            if whole.nbytes / whole.tokens * tokens <= self.config.cache.memory_bytes:
                return self._encode(chunks), rows
            found.append(whole.only(shown))
        return found, [torch.arange(len(shown)) for shown in rows]

    # Conversations

    def conversation(self, id: str, *, recent_tokens: int = 1024) -> ConversationMemory:
        """The conversation of this id, begun by its first message; it is no document of :meth:`select` and ``len``."""
        return ConversationMemory(self, id, recent_tokens=recent_tokens)

    def conversations(self) -> list[str]:
        """Ids of the conversations that have messages."""
        with self._open():
            return self._database.conversations()

    def _append_message(self, id: str, message: dict[str, Any], recent_tokens: int) -> None:
        with self._writing() as change:
            self._database.add_message(id, message, self.model.count_tokens(message["content"]))
            recent = self._database.messages(id, recent=True)
            excess = sum(row.tokens for row in recent) - recent_tokens
            old = []
            for row in recent[:-1]:
                if excess <= 0:
                    break
                old.append(row)
                excess -= row.tokens
            if old:
                text = "".join(f"{row.message['role']}: {row.message['content']}\n" for row in old)
                self._grow_conversation(change, id, text)
                self._database.mark_compressed(id, [row.number for row in old])

    def _grow_conversation(self, change: _Change, id: str, text: str) -> None:
        more = self._tokenize(text, f"conversation {id!r}")
        key = self._keys.get(("conversation", id))
        if key is None:
            whole = more, *self._ingestion([more])
        else:
            whole = self._extend(self._text(key), self._nodes(key), more, f"conversation {id!r}")
            self._remove(change, key)
        self._insert(change, Entry("conversation", id, {}), *whole)

    def _messages(self, id: str, *, recent: bool = False) -> list[Message]:
        with self._open():
            return self._database.messages(id, recent=recent)

    def _select_conversation(self, id: str, query: str, **options: Any) -> Selection:
        with self._open():
            # Its own index: no conversation weighs on the scores of another one, or of the documents.
            index = NodeIndex(self.config.tree, self.model.hf_model.config.vocab_size, self.model.device)
            key = self._keys.get(("conversation", id))
            if key is not None:
                index.add(key, self._text(key).tokens.ids, self._nodes(key))
            return self._select(index, query, [] if key is None else [key], **options)

    def _clear_conversation(self, id: str) -> None:
        with self._writing() as change:
            self._database.clear_messages(id)
            key = self._keys.get(("conversation", id))
            if key is not None:
                self._remove(change, key)

    # The whole store

    def stats(self) -> dict[str, Any]:
        """Sizes and counts, as JSON values; bytes where a name ends in ``bytes``."""
        with self._open():
            leaves = self._index.leaves() if len(self._index) else None
            return {
                "path": str(self.path) if self.path is not None else None,
                "model": self.model.name,
                "fingerprint": self.model.fingerprint,
                "embedder": self.embedder.name if self.embedder is not None else None,
                "documents": len(self._documents()),
                "conversations": len(self._database.conversations()),
                "tokens": self._index.tokens,
                "chunks": len(leaves.chunk_length) if leaves is not None else 0,
                "leaves": len(leaves) if leaves is not None else 0,
                "leaf_size": self.config.tree.leaf_size,
                "database_bytes": self._database.nbytes(),
                "code_bytes": leaves.codes.nbytes + leaves.scales.nbytes if leaves is not None else 0,
                "kv_cache": self._cache.stats(),
            }

    def persist(self, path: str | Path) -> None:
        """Copy the store, without its KV cache, to a new folder.

        Raises:
            StoreFormatError: the folder holds something already.
            StoreUnavailableError: it cannot be written.
        """
        path = Path(path)
        with self._open():
            if self.path is not None and path.resolve() == self.path.resolve():
                return
            if not is_vacant(path):
                raise StoreFormatError(f"{path} holds a store already; give a new folder.")
            self._database.copy_to(path)


@dataclass
class _Change:
    """What a transaction does to the catalogue.

    Attributes:
        removed: token ids of the documents that are gone, by their keys.
        added: new documents by their keys.
        described: documents that got other metadata.
    """

    removed: dict[int, np.ndarray] = field(default_factory=dict)
    added: dict[int, tuple[Entry, StoredText, NodeData]] = field(default_factory=dict)
    described: dict[int, Entry] = field(default_factory=dict)


class _Chunk(NamedTuple):
    """The tokens of a chunk.

    Attributes:
        token_ids: of the chunk behind its lead-in, int32 [lead_in + tokens].
        lead_in: tokens before the chunk that it is encoded behind.
    """

    token_ids: np.ndarray
    lead_in: int


def _content(chunk: _Chunk | SelectedChunk) -> str:
    """What the names of a chunk begin with: it is the same whatever it is encoded by and behind."""
    return _digest(chunk.token_ids[chunk.lead_in :])[:40]


def _digest(token_ids: np.ndarray, before: bytes = b"") -> str:
    return hashlib.sha256(before + token_ids.astype(np.int32).tobytes()).hexdigest()


def _check_window(model: SharedLLMModel, config: StoreConfig) -> None:
    """That a chunk can be encoded: behind prefix and lead-in, inside the window the model was trained for."""
    prefix, window = len(model.prompt_format.prefix), usable_window(model.hf_model.config)
    needed = prefix + config.lead_in + config.tree.chunk_size
    require(
        needed <= window,
        "chunk_size",
        config.tree.chunk_size,
        f"behind a prefix of {prefix} tokens and a lead-in of {config.lead_in} that is {needed}, and {model.name} "
        f"reads {window}; make the store with smaller chunks (TreeConfig(chunk_size=...))",
    )


@dataclass(frozen=True)
class _Scored:
    """Scores by chunk.

    Attributes:
        leaves: [chunks, 2**height]; minus infinity where there is no leaf.
        places: each chunk's document, by its key, and its number in the document.
        trees: each chunk's context tree.
        states: last hidden states of all leaves of the index, [all leaves, hidden].
        first: row of each chunk's first leaf in ``states``, [chunks].
    """

    leaves: torch.Tensor
    places: list[tuple[int, int]]
    trees: list[ContextTree]
    states: torch.Tensor
    first: np.ndarray

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Scores of the nodes of every level, root first."""
        return by_level(self.leaves)

    def stretches(self) -> np.ndarray:
        """Of an unbroken stretch of a document's chunks each has the same number, [chunks]."""
        apart = (np.diff(np.array(self.places), axis=0) != (0, 1)).any(axis=1)
        return np.concatenate([[0], np.cumsum(apart)])

    def last_leaves(self, tokens: int) -> int:
        """How many leaves so many tokens at the end of the last document reach into."""
        trees = [tree for (key, _), tree in zip(self.places, self.trees, strict=True) if key == self.places[-1][0]]
        sizes = [tree.size(leaf) for tree in trees for leaf in tree.level(tree.height)]
        unseen = max(0, sum(sizes) - tokens)
        return sum(size > 0 and end > unseen for size, end in zip(sizes, accumulate(sizes), strict=True))

    def similarity(self, chunk: int) -> Callable[[Node], float]:
        """How promising a node of a chunk is: as good as its best leaf."""
        return lambda node: float(self.levels[node.level][chunk, node.index])

    def paths(self, query: torch.Tensor) -> list[list[Node]]:
        """The paper's preserved cut of every chunk, which compares last tokens.

        Args:
            query: hidden state of the query's last token, [hidden].
        """
        device, height = self.states.device, self.leaves.shape[1].bit_length() - 1
        first, count = torch.from_numpy(self.first).to(device), self.leaves.isfinite().sum(dim=1)
        nodes = preserved_cuts(query.to(device), self.states, first, count, height).tolist()
        return [[Node(n.bit_length() - 1, n - (1 << n.bit_length() - 1)) for n in path if n] for path in nodes]


@lru_cache(maxsize=4096)
def regular_tree(length: int, chunk_size: int, height: int) -> ContextTree:
    """The tree of a chunk; chunks of one length share it."""
    return ContextTree.regular(length, chunk_size, height)


def _as_list(ids: str | Iterable[str] | None) -> list[str] | None:
    """Ids given as one, several or none; read outside the lock, for they may come from the store itself."""
    if ids is None:
        return None
    return [ids] if isinstance(ids, str) else list(ids)


def _check_count(setting: str, value: object, unit: str, error: type[SharedContextError] = ConfigError) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise error(f"{setting}={value!r}: must be a whole number of {unit}, 1 or more.")
