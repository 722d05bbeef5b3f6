"""The store: whole documents in, selections out."""

from __future__ import annotations

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared_context.config import CacheConfig, Policy, Search, StoreConfig, TreeConfig, require, require_count
from shared_context.errors import (
    ConfigError,
    DocumentError,
    DocumentNotFoundError,
    ModelMismatchError,
    StoreClosedError,
    StoreFormatError,
)
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
from shared_context.store.encoding import ChunkEncoder
from shared_context.store.filters import compile_filter
from shared_context.store.ingestion import Ingestion
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.memory import ConversationMemory
from shared_context.store.node_index import NodeIndex
from shared_context.store.selection import SelectedChunk, SelectedNode, Selection
from shared_context.store.selector import Choice, ChunkCut, Selector, regular_tree
from shared_context.tree import Grained, Node, kv_entries

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""

INGEST_TOGETHER = 1 << 16
"""Tokens of documents whose chunks and leaves are batched together."""

TEXTS_KEPT = 32
"""Documents whose text and tokens are kept in memory after they were selected from."""


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
            self._encoder = ChunkEncoder(model, self._cache, self.config)
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
            if change.removed:
                added = (stored.tokens.ids for _, stored, _ in change.added.values())
                self._encoder.discard(change.removed.values(), added)

    def _refresh(self) -> None:
        """Take in what another process has committed since the last look."""
        version = self._database.data_version()
        if version == self._seen_version:
            return
        if self._seen_version is None:
            self._index = self._new_index()
            self._selector = self._select_from(self._index)
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

    def _new_index(self) -> NodeIndex:
        return NodeIndex(self.config.tree, self.model.hf_model.config.vocab_size, self.model.device)

    def _select_from(self, index: NodeIndex) -> Selector:
        return Selector(self.model, self.config, self._codec, self.embedder, index)

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
            choice = self._selector.choose(
                query, self._candidates(filters, doc_ids), budget=budget, ratio=ratio, policy=policy, search=search,
                coarse=coarse, fine=fine, floor=floor, recent=recent, prefilter=prefilter,
                prefilter_chunks=prefilter_chunks,
            )  # fmt: skip
            return self._selection(choice, query)

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
        require_count("k", k, "passages")
        doc_ids = _as_list(doc_ids)
        with self._open():
            cuts = self._selector.passages(
                query, self._candidates(filters, doc_ids), k, policy=policy, prefilter=prefilter,
                prefilter_chunks=prefilter_chunks,
            )  # fmt: skip
            return [node for cut in cuts for node in self._shown(cut).nodes]

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
                require_count("ratio", ratio, "tokens per KV entry")
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
            cuts = []
            for (key, number), slots in sorted(shown.items()):
                cut = [Grained(Node(tree.height, slot), ratio) for slot, (ratio, _) in sorted(slots.items())]
                scores = {tree.height: {slot: score for slot, (_, score) in slots.items()}}
                cuts.append(ChunkCut(key, number, cut, scores))
            return self._selection(Choice(cuts, None, None), query)

    def warm(self, selection: Selection | None = None, *, progress: Progress | None = None) -> None:
        """Compute keys and values now: those of a selection, or those of all documents that the cache does not hold.

        Of documents that take more than the cache's limit, the last ones stay.
        """
        with self._open():
            if selection is not None:
                chunks = missing = list(selection.chunks)
            else:
                chunks = [c for key in self._documents() for c in self._encoder.chunks(self._database.token_ids(key))]
                self._encoder.keep(chunks)
                missing = self._encoder.missing(chunks)
        # Nobody has to wait for what follows: it may take minutes.
        held = len(chunks) - len(missing)
        for done, chunk in enumerate(missing, start=held + 1):
            self._encoder.encode([chunk])
            if progress is not None:
                progress(done, len(chunks), "chunks")

    def _candidates(self, filters: Mapping[str, Any] | None, doc_ids: list[str] | None) -> list[int]:
        """Keys of the documents that may be considered."""
        passes = compile_filter(filters)
        keys = self._documents() if doc_ids is None else sorted(set(map(self._key, doc_ids)))
        return keys if not filters else [key for key in keys if passes(self._catalogue[key].metadata)]

    def _selection(self, choice: Choice, query: str | None) -> Selection:
        return Selection(
            map(self._shown, choice.cuts), self._encoder.encode_shown, self.model, query=query, budget=choice.budget,
            policy=choice.policy,
        )  # fmt: skip

    def _shown(self, shown: ChunkCut) -> SelectedChunk:
        """A chunk with its cut, as the user and the decoder see it."""
        key, number, cut, scores = shown
        tree, entry, stored = self.config.tree, self._catalogue[key], self._text(key)
        first = number * tree.chunk_size
        token_ids, lead_in = chunk = self._encoder.chunk(stored.tokens.ids, number)
        self._encoder.keep([chunk])
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
            index = self._new_index()
            key = self._keys.get(("conversation", id))
            if key is not None:
                index.add(key, self._text(key).tokens.ids, self._nodes(key))
            choice = self._select_from(index).choose(query, [] if key is None else [key], **options)
            return self._selection(choice, query)

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


def _as_list(ids: str | Iterable[str] | None) -> list[str] | None:
    """Ids given as one, several or none; read outside the lock, for they may come from the store itself."""
    if ids is None:
        return None
    return [ids] if isinstance(ids, str) else list(ids)
