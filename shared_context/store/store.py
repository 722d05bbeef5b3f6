"""The store: whole documents in, selections out."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

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
    BatchError,
    BudgetError,
    ConfigError,
    DocumentNotFoundError,
    DuplicateDocumentError,
    ModelMismatchError,
    QueryError,
    StoreClosedError,
    StoreFormatError,
)
from shared_context.kernels import ChunkKV
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.tokenization import TokenizedText
from shared_context.store.codec import Codec
from shared_context.store.database import Database, Entry, Kind, Message, NodeData, StoredText
from shared_context.store.documents import Document, Source, check_document, check_text, load_documents
from shared_context.store.embedder import Embedder, load_default_embedder
from shared_context.store.filters import compile_filter
from shared_context.store.ingestion import Ingestion
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.memory import ConversationMemory
from shared_context.store.node_index import Leaves, NodeIndex
from shared_context.store.prefilter import Prefilter
from shared_context.store.scoring import POLICIES, Query, with_neighbours
from shared_context.store.selection import SelectedChunk, SelectedNode, Selection
from shared_context.tree import ContextTree, Grained, Node, expand_under_budget, kv_entries, split_and_search
from shared_context.tree.search import node_scores, smallest_leaf

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""

DEFAULT_BUDGET = 1024
"""KV entries of a selection where no budget is given."""

ENCODE_TOGETHER = 4
"""Chunks that are encoded as one batch."""

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
        ModelMismatchError: where the store was made with another model or embedder; says which.
        ConfigError: where ``config`` contradicts what the store was made with.

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
        self.model = model
        self.path = Path(path) if path is not None else None
        self._lock = threading.RLock()
        self._closed = False
        self._database = Database(self.path)
        try:
            if self._database.is_new:
                self.config = config or StoreConfig()
                self.embedder = load_default_embedder() if embedder == "auto" else embedder
                self._codec = Codec.fit(model, self.config.code_size)
                self._write_meta()
            else:
                self.config, self.embedder = self._read_meta(config, embedder)
                self._codec = Codec.from_bytes(self._database.get_meta("codec"))
            cache = self.config.cache
            self._cache = TieredKVCache(
                cache.memory_bytes,
                self.path / "kv" if self.path is not None else None,
                cache.disk_bytes,
                quantize=cache.quantize,
            )
            self._index = NodeIndex(self.config.tree, model.hf_model.config.vocab_size)
            self._ingestion = Ingestion(model, self._codec, self.embedder, self.config.tree)
            self._catalogue: dict[int, Entry] = {}
            self._keys: dict[tuple[Kind, str], int] = {}
            self._texts: OrderedDict[int, StoredText] = OrderedDict()
            self._prefilter: tuple[Leaves, Prefilter] | None = None
            self._seen_version: int | None = None
            self._refresh()
        except BaseException:
            self._database.close()
            raise

    # Opening and closing

    def _write_meta(self) -> None:
        about = {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "embedder": self.embedder.name if self.embedder is not None else None,
            "dimension": self.embedder.dimension if self.embedder is not None else 0,
            "config": asdict(self.config),
        }
        with self._database.transaction():
            self._database.set_meta("about", json.dumps(about).encode())
            self._database.set_meta("codec", self._codec.to_bytes())

    def _read_meta(
        self, config: StoreConfig | None, embedder: Embedder | Literal["auto"] | None
    ) -> tuple[StoreConfig, Embedder | None]:
        about = json.loads(self._database.get_meta("about"))
        if about["fingerprint"] != self.model.fingerprint:
            raise ModelMismatchError(
                f"The store {self.path} was made with the model {about['model']} ({about['fingerprint']}) and cannot "
                f"be opened with {self.model.name} ({self.model.fingerprint}). Open it with its own model, or make a "
                "new store."
            )
        if embedder == "auto":
            embedder = load_default_embedder() if about["embedder"] is not None else None
        name = embedder.name if embedder is not None else None
        if name != about["embedder"]:
            raise ModelMismatchError(
                f"The store {self.path} was made with the embedder {about['embedder']} and cannot be opened with "
                f"{name}. Pass its own embedder, or make a new store."
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
    def _open(self) -> Iterator[None]:
        """Every public method works inside: one thread at a time, on an open store, in step with other processes."""
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self!r} is closed; open it again.")
            self._refresh()
            yield

    @contextmanager
    def _writing(self) -> Iterator[_Change]:
        """A change that lands whole or not at all."""
        with self._open():
            change = _Change([], [])
            with self._database.transaction():
                self._refresh()
                yield change
            self._take_in(change)

    def _refresh(self) -> None:
        """Take in what another process has committed since the last look."""
        with self._database.errors():
            version = self._database.data_version()
            if version != self._seen_version:
                here, there = set(self._catalogue), self._database.keys()
                self._take_in(_Change(removed=sorted(here - there), added=sorted(there - here)))
                for key in here & there:
                    self._catalogue[key] = self._database.entry(key)
                self._seen_version = version

    def _take_in(self, change: _Change) -> None:
        for key in change.removed:
            self._index.remove(key)
            entry = self._catalogue.pop(key)
            del self._keys[entry.kind, entry.id]
            self._texts.pop(key, None)
        for key in change.added:
            self._index.add(key, self._database.token_ids(key), self._nodes(key))
            entry = self._catalogue[key] = self._database.entry(key)
            self._keys[entry.kind, entry.id] = key

    def _nodes(self, key: int) -> NodeData:
        dimension = self.embedder.dimension if self.embedder is not None else 0
        hidden = self.model.hf_model.config.hidden_size
        return self._database.nodes(key, self.config.code_size, hidden, dimension)

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
        progress: Progress | None = None,
    ) -> list[str]:
        """Store documents whole; a batch lands whole or not at all.

        Args:
            source: a file's or folder's path, a text together with ``id``, a :class:`Document`, or an iterable of
                paths and Documents; :func:`~shared_context.store.documents.load_documents` says how each is read.
            id: of a single document.
            metadata: merged over the metadata of every document.
            progress: called as tokens are done.

        Returns:
            The documents' ids, in the order given.

        Raises:
            DocumentError: the one document given is refused (empty, binary, not UTF-8, too large, id taken).
            BatchError: several were given and some are refused; ``failures`` has the error of each.
        """
        documents = load_documents(source, id=id, metadata=metadata, max_bytes=self.config.max_document_bytes)
        with self._open():
            self._refuse_known(documents)
        tokenized = [(d.text, self.model.tokenize(d.text)) for d in documents]
        nodes = self._ingest(tokenized, progress)
        with self._writing() as change:
            self._refuse_known(documents)
            for document, (text, tokens), data in zip(documents, tokenized, nodes, strict=True):
                key = self._database.insert("document", document.id, text, dict(document.metadata), tokens, data)
                change.added.append(key)
        return [d.id for d in documents]

    def update(self, id: str, text: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Replace a document's text, its metadata, or both; what is None stays.

        Raises:
            DocumentNotFoundError: no document has this id.
            DocumentError: the new text or metadata cannot be stored; the document stays as it was.
        """
        old = self.get(id)
        document = check_document(
            Document(old.text if text is None else text, id, old.metadata if metadata is None else metadata),
            max_bytes=self.config.max_document_bytes,
            name=f"document {id!r}",
        )
        if document.text == old.text:
            with self._writing():
                key = self._key(id)
                self._database.set_metadata(key, dict(document.metadata))
                self._catalogue[key] = Entry("document", id, dict(document.metadata))
            return
        tokens = self.model.tokenize(document.text)
        (nodes,) = self._ingest([(document.text, tokens)], None)
        with self._writing() as change:
            self._replace(change, "document", id, document.text, dict(document.metadata), tokens, nodes)

    def append(self, id: str, text: str) -> None:
        """Add text at the end of a document; only its last chunk is computed again.

        Raises:
            DocumentNotFoundError: no document has this id.
            DocumentError: the text is empty, or the document would become too large.
        """
        check_text(text, max_bytes=self.config.max_document_bytes, name=f"the text to append to {id!r}")
        with self._writing() as change:
            key = self._key(id)
            old = self._text(key)
            check_text(old.text + text, max_bytes=self.config.max_document_bytes, name=f"document {id!r}")
            whole = self._ingestion.extend(old.text, old.tokens, self._nodes(key), text)
            self._replace(change, "document", id, whole[0], self._catalogue[key].metadata, *whole[1:])

    def delete(self, ids: str | Iterable[str]) -> None:
        """Delete documents, all of them or, where an id is unknown, none.

        Raises:
            DocumentNotFoundError: an id is unknown.
        """
        ids = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        with self._writing() as change:
            change.removed += [self._key(id) for id in ids]
            self._database.remove(change.removed)

    def get(self, id: str) -> Document:
        """A document as it was stored.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        with self._open():
            key = self._key(id)
            return Document(self._text(key).text, id, dict(self._catalogue[key].metadata))

    def ids(self, filters: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the documents that a filter lets through, in the order of their adding."""
        passes = compile_filter(filters)
        with self._open():
            return [self._catalogue[key].id for key in self._documents() if passes(self._catalogue[key].metadata)]

    def __iter__(self) -> Iterator[Document]:
        return (self.get(id) for id in self.ids())

    def __len__(self) -> int:
        with self._open():
            return len(self._documents())

    def __contains__(self, id: object) -> bool:
        with self._open():
            return ("document", id) in self._keys

    def _documents(self) -> list[int]:
        """Keys of the documents, conversations left out."""
        return sorted(key for key, entry in self._catalogue.items() if entry.kind == "document")

    def _key(self, id: str) -> int:
        key = self._keys.get(("document", id))
        if key is None:
            raise DocumentNotFoundError(f"No document has the id {id!r}; the store holds {len(self._documents())}.")
        return key

    def _refuse_known(self, documents: Sequence[Document]) -> None:
        known = {
            d.id: DuplicateDocumentError(
                f"A document with the id {d.id!r} is stored already; use update() to change it."
            )
            for d in documents
            if ("document", d.id) in self._keys
        }
        if known and len(documents) == 1:
            raise known[documents[0].id]
        if known:
            raise BatchError(
                f"{len(known)} of {len(documents)} documents were refused, and none was stored: "
                f"{', '.join(map(repr, list(known)[:5]))} {'is' if len(known) == 1 else 'are'} stored already.",
                known,
            )

    def _ingest(self, documents: list, progress: Progress | None) -> list[NodeData]:
        total, done = sum(len(tokens) for _, tokens in documents), 0
        nodes: list[NodeData] = []

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total, "tokens")

        group: list = []
        for number, (text, tokens) in enumerate(documents, start=1):
            group.append((text, tokens))
            if sum(len(t) for _, t in group) >= INGEST_TOGETHER or number == len(documents):
                nodes += self._ingestion(group, advance)
                group = []
        return nodes

    def _replace(
        self,
        change: _Change,
        kind: Kind,
        id: str,
        text: str,
        metadata: dict[str, Any],
        tokens: TokenizedText,
        nodes: NodeData,
    ) -> None:
        old = self._keys.get((kind, id))
        if old is not None:
            self._database.remove([old])
            change.removed.append(old)
        change.added.append(self._database.insert(kind, id, text, metadata, tokens, nodes))

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
        filters: Mapping[str, Any] | None = None,
        doc_ids: Iterable[str] | None = None,
        prefilter: int | None = None,
    ) -> Selection:
        """Choose what a query is shown finely, coarsely and not at all.

        Args:
            query: a question; None only with ``search="split_and_search"`` or with ``ratio``.
            budget: KV entries at most; None is 1,024 for best_first and no limit otherwise.
            ratio: show everything that may be considered at this one grain, without any search.
            policy: how nodes are scored; None is "hybrid", or "late_interaction" in a store without an embedder.
            search: "best_first" under the budget over all chunks, or the paper's "split_and_search" in each chunk.
            coarse: ratios of unopened nodes by level, root first; None is the configuration's (for split_and_search,
                where that shows nothing, the paper's).
            fine: ratio of opened leaves; None is the configuration's.
            filters: of metadata, see :func:`~shared_context.store.filters.compile_filter`.
            doc_ids: only these documents.
            prefilter: only so many documents, those nearest to the query by embedding.

        Raises:
            QueryError: the query is empty or longer than the model's window.
            BudgetError: the budget is not positive or holds not even the smallest cut.
            FilterError, DocumentNotFoundError, ConfigError: another argument is wrong.
        """
        with self._open():
            keys = self._candidates(filters, doc_ids)
            return self._select(
                query, keys, budget=budget, ratio=ratio, policy=policy, search=search, coarse=coarse, fine=fine,
                prefilter=prefilter,
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
    ) -> list[SelectedNode]:
        """The ``k`` best leaves as text, best first, for any language model; arguments as in :meth:`select`."""
        require(k >= 1, "k", k, "must be 1 or more")
        with self._open():
            keys = self._candidates(filters, doc_ids)
            scored = self._score(self._query(query), keys, self._policy(policy), prefilter, smooth=True)
            leaf_level = self.config.tree.height
            nodes = []
            for flat in np.argsort(-scored.leaves, axis=None, kind="stable")[:k]:
                chunk, slot = divmod(int(flat), scored.leaves.shape[1])
                if np.isfinite(scored.leaves[chunk, slot]):
                    nodes += self._chunk(scored.rows[chunk], [Grained(Node(leaf_level, slot), 1)], scored, chunk).nodes
            return nodes

    def selection_from(self, spans: Iterable[Sequence[Any]], query: str | None = None) -> Selection:
        """The selection of given characters, whole leaves of which are shown.

        Args:
            spans: ``(doc_id, start, end)`` or ``(doc_id, start, end, ratio)``; characters, and the ratio at which
                their leaves are shown (1 where it is left out; the finest where spans overlap).
            query: what the selection is for.

        Raises:
            DocumentNotFoundError: a doc_id is unknown.
            ConfigError: a span lies outside its document.
        """
        tree = self.config.tree
        with self._open():
            shown: dict[tuple[int, int], dict[int, int]] = {}
            for doc_id, start, end, *rest in spans:
                ratio = rest[0] if rest else 1
                require(ratio >= 1, "ratio", ratio, "must be 1 or more")
                key = self._key(doc_id)
                stored = self._text(key)
                inside = 0 <= start < end <= len(stored.text)
                require(inside, "span", (start, end), f"document {doc_id!r} has {len(stored.text)} characters")
                first, last = stored.tokens.tokens(start, end)
                for leaf in range(first // tree.leaf_size, -(-last // tree.leaf_size)):
                    chunk, slot = divmod(leaf, 2**tree.height)
                    slots = shown.setdefault((key, chunk), {})
                    slots[slot] = min(ratio, slots.get(slot, ratio))
            chunks = [
                self._cut(key, number, [Grained(Node(tree.height, slot), r) for slot, r in sorted(slots.items())])
                for (key, number), slots in sorted(shown.items())
            ]
            return Selection(chunks, self._encode, query=query, budget=None, policy=None)

    def warm(self, selection: Selection | None = None, *, progress: Progress | None = None) -> None:
        """Compute keys and values now: those of a selection, or of all documents; as far as the cache has room."""
        with self._open():
            if selection is not None:
                token_ids = [chunk.token_ids for chunk in selection.chunks]
            else:
                size = self.config.tree.chunk_size
                documents = [self._database.token_ids(key) for key in self._documents()]
                token_ids = [ids[at : at + size] for ids in documents for at in range(0, len(ids), size)]
            for at in range(0, len(token_ids), ENCODE_TOGETHER):
                self._encode(token_ids[at : at + ENCODE_TOGETHER])
                if progress is not None:
                    progress(min(at + ENCODE_TOGETHER, len(token_ids)), len(token_ids), "chunks")

    def _policy(self, policy: Policy | None) -> Policy:
        if policy is None:
            return "hybrid" if self.embedder is not None else "late_interaction"
        one_of("policy", policy, Policy)
        return policy

    def _query(self, text: str) -> Query:
        if not isinstance(text, str) or not text.strip():
            raise QueryError(f"The query {text!r} is empty; ask something.")
        query = Query(text, self.model, self._codec, self.embedder, self._index)
        if len(query.token_ids) > self.model.context_window:
            raise QueryError(
                f"The query has {len(query.token_ids)} tokens and {self.model.name} reads {self.model.context_window}; "
                "shorten it, or add it as a document."
            )
        return query

    def _candidates(self, filters: Mapping[str, Any] | None, doc_ids: Iterable[str] | None) -> list[int]:
        """Keys of the documents that may be considered."""
        passes = compile_filter(filters)
        keys = self._documents() if doc_ids is None else sorted({self._key(id) for id in doc_ids})
        return [key for key in keys if passes(self._catalogue[key].metadata)]

    def _select(
        self,
        text: str | None,
        keys: list[int],
        *,
        budget: int | None = None,
        ratio: int | None = None,
        policy: Policy | None = None,
        search: Search = "best_first",
        coarse: Sequence[int | None] | None = None,
        fine: int | None = None,
        prefilter: int | None = None,
    ) -> Selection:
        one_of("search", search, Search)
        if budget is not None and budget < 1:
            raise BudgetError(f"budget={budget}: must be 1 or more KV entries.")
        tree = replace(
            self.config.tree,
            coarse=self.config.tree.coarse if coarse is None else tuple(coarse),
            fine=self.config.tree.fine if fine is None else fine,
        )
        if ratio is not None:
            require(ratio >= 1, "ratio", ratio, "must be 1 or more")
            leaves = self._index.leaves() if keys else None
            rows = np.flatnonzero(np.isin(leaves.chunk_document, keys)) if keys else []
            chunks = [self._chunk(row, [Grained(Node(0, 0), ratio)]) for row in rows]
            return Selection(chunks, self._encode, query=text, budget=None, policy=None)
        policy = self._policy(policy)
        if search == "split_and_search":
            scored = self._score(None if text is None else self._query(text), keys, policy, prefilter, smooth=False)
            ratios = tree.coarse if any(tree.coarse) else paper_ratios(tree.height)
            cuts = {
                chunk: split_and_search(scored.trees[chunk], ratios, scored.similarity(chunk, policy))
                for chunk in range(len(scored.trees))
            }
        else:
            budget = DEFAULT_BUDGET if budget is None else budget
            smooth = policy != "last_token"
            scored = self._score(self._query(text), keys, policy, prefilter, smooth=smooth)
            cuts = expand_under_budget(scored.trees, scored.leaves, tree.coarse, tree.fine, budget)
            if not cuts and scored.trees:
                smallest = min(kv_entries(smallest_leaf(t), tree.fine) for t in scored.trees)
                raise BudgetError(
                    f"budget={budget} holds nothing: the smallest cut of these documents takes {smallest} KV entries. "
                    "Raise the budget, or make the store with smaller leaves (TreeConfig)."
                )
        chunks = [self._chunk(scored.rows[chunk], cut, scored, chunk) for chunk, cut in cuts.items()]
        selection = Selection(chunks, self._encode, query=text, budget=budget, policy=policy)
        if budget is not None and selection.kv_entries > budget:
            raise BudgetError(
                f"budget={budget}: split-and-search shows a part of every chunk, {selection.kv_entries} KV entries "
                "here. Raise the budget, consider fewer documents, or use search='best_first'."
            )
        return selection

    def _score(
        self, query: Query | None, keys: list[int], policy: Policy, prefilter: int | None, *, smooth: bool
    ) -> _Scored:
        """Scores of all leaves of the candidate documents, arranged by chunk."""
        tree = self.config.tree
        per_chunk = 2**tree.height
        if prefilter is not None:
            require(prefilter >= 1, "prefilter", prefilter, "must be 1 or more documents")
        if not keys:
            return _Scored(np.zeros((0, per_chunk)), np.zeros(0, np.int64), [])
        leaves = self._index.leaves()
        if prefilter is not None and query is not None:
            keys = self._nearest(query, leaves, keys, prefilter)
        everything = len(keys) == len(self._catalogue)
        rows = slice(None) if everything else torch.from_numpy(np.flatnonzero(np.isin(leaves.document, keys)))
        index = np.arange(len(leaves)) if everything else rows.numpy()
        scores = torch.zeros(len(index)) if query is None else POLICIES[policy](query, leaves, rows)
        if smooth:
            scores = with_neighbours(scores, leaves.document[index], self.config.neighbour_weight)
        chunks, place = np.unique(leaves.chunk[index], return_inverse=True)
        by_chunk = np.full((len(chunks), per_chunk), -np.inf)
        by_chunk[place, leaves.slot[index]] = scores.numpy()
        trees = [regular_tree(int(n), tree.chunk_size, tree.height) for n in leaves.chunk_length[chunks]]
        return _Scored(by_chunk, chunks, trees)

    def _nearest(self, query: Query, leaves: Leaves, keys: list[int], count: int) -> list[int]:
        embedding = query.embedding.numpy()
        if self._prefilter is None or self._prefilter[0] is not leaves:
            self._prefilter = (leaves, Prefilter(leaves))
        allowed = set(keys)
        if len(allowed) == len(self._catalogue):
            return sorted(self._prefilter[1].documents(embedding, count).tolist())
        # What filters leave is usually few: their leaves are compared one by one.
        rows = np.flatnonzero(np.isin(leaves.document, keys))
        near = (leaves.embeddings[torch.from_numpy(rows)] @ query.embedding).numpy()
        ordered = dict.fromkeys(leaves.document[rows[np.argsort(-near, kind="stable")]].tolist())
        return sorted(list(ordered)[:count])

    def _chunk(self, row: int, cut: Sequence[Grained], scored: _Scored | None = None, chunk: int = 0) -> SelectedChunk:
        leaves = self._index.leaves()
        key, number = int(leaves.chunk_document[row]), int(leaves.chunk_number[row])
        return self._cut(key, number, cut, None if scored is None else [level[chunk] for level in scored.levels])

    def _cut(
        self, key: int, number: int, cut: Sequence[Grained], scores: Sequence[np.ndarray] | None = None
    ) -> SelectedChunk:
        """A chunk of a document with its cut, as the user and the decoder see it."""
        tree, entry, stored = self.config.tree, self._catalogue[key], self._text(key)
        first = number * tree.chunk_size
        token_ids = stored.tokens.ids[first : first + tree.chunk_size]
        context_tree = regular_tree(len(token_ids), tree.chunk_size, tree.height)
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
                    metadata=entry.metadata,
                )
            )
        return SelectedChunk(token_ids, context_tree, tuple(cut), tuple(nodes))

    def _encode(self, chunks: Sequence[np.ndarray]) -> list[ChunkKV]:
        """Keys and values of chunks (token ids each), from the cache or computed now."""
        identity = self.model.identity.encode()
        names = [hashlib.sha256(identity + ids.astype(np.int32).tobytes()).hexdigest() for ids in chunks]
        found = {name: self._cache.get(name) for name in names}
        missing = {name: ids for name, ids in zip(names, chunks, strict=True) if found[name] is None}
        order = sorted(missing, key=lambda name: len(missing[name]))
        for at in range(0, len(order), ENCODE_TOGETHER):
            batch = order[at : at + ENCODE_TOGETHER]
            ids = [torch.from_numpy(missing[name].astype(np.int64)) for name in batch]
            for name, chunk_kv in zip(batch, self.model.compressor.encode(ids), strict=True):
                self._cache.put(name, chunk_kv)
                found[name] = chunk_kv
        return [found[name] for name in names]

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
            recent = [row for row in self._database.messages(id) if not row.compressed]
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
        key = self._keys.get(("conversation", id))
        if key is None:
            tokens = self.model.tokenize(text)
            whole = (text, tokens, self._ingestion([(text, tokens)])[0])
        else:
            old = self._text(key)
            whole = self._ingestion.extend(old.text, old.tokens, self._nodes(key), text)
        self._replace(change, "conversation", id, whole[0], {}, *whole[1:])

    def _messages(self, id: str) -> list[Message]:
        with self._open():
            return self._database.messages(id)

    def _select_conversation(self, id: str, query: str, **options: Any) -> Selection:
        with self._open():
            key = self._keys.get(("conversation", id))
            return self._select(query, [] if key is None else [key], **options)

    def _clear_conversation(self, id: str) -> None:
        with self._writing() as change:
            self._database.clear_messages(id)
            key = self._keys.get(("conversation", id))
            if key is not None:
                change.removed.append(key)
                self._database.remove([key])

    # The whole store

    def stats(self) -> dict[str, Any]:
        """Sizes and counts, as JSON values; bytes where a name ends in ``bytes``."""
        with self._open():
            leaves = self._index.leaves() if self._catalogue else None
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
        """
        path = Path(path)
        with self._open():
            if self.path is not None and path.resolve() == self.path.resolve():
                return
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise StoreFormatError(f"{path} exists and is not an empty folder; give a new one.")
            self._database.copy_to(path)


@dataclass
class _Change:
    """Keys of the rows that a transaction has removed and added."""

    removed: list[int]
    added: list[int]


@dataclass(frozen=True)
class _Scored:
    """Scores by chunk.

    Attributes:
        leaves: [chunks, 2**height]; minus infinity where there is no leaf.
        rows: each chunk's row in the index, [chunks].
        trees: each chunk's context tree.
    """

    leaves: np.ndarray
    rows: np.ndarray
    trees: list[ContextTree]

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Scores of the nodes of every level, root first."""
        return node_scores(self.leaves)

    def similarity(self, chunk: int, policy: Policy) -> Callable[[Node], float]:
        """How similar a node of a chunk is to the query.

        The paper compares the node's last token; of the other policies a node is as good as its best leaf.
        """
        if policy != "last_token":
            return lambda node: float(self.levels[node.level][chunk, node.index])
        tree = self.trees[chunk]

        def of_last_leaf(node: Node) -> float:
            leaves = 1 << (tree.height - node.level)
            inside = self.leaves[chunk, node.index * leaves : (node.index + 1) * leaves]
            return float(inside[np.isfinite(inside)][-1])

        return of_last_leaf


@lru_cache(maxsize=4096)
def regular_tree(length: int, chunk_size: int, height: int) -> ContextTree:
    """The tree of a chunk; chunks of one length share it."""
    return ContextTree.regular(length, chunk_size, height)
