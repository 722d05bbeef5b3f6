"""The store: whole documents in, selections out."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from shared_context.config import Policy, Rows, Search, StoreConfig, require, require_count
from shared_context.errors import (
    BatchError,
    DocumentError,
    DocumentNotFoundError,
    StoreClosedError,
    StoreFormatError,
    UnreadableError,
)
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.about import About
from shared_context.store.check import copy_namespace
from shared_context.store.conversation_memory import ConversationMemory
from shared_context.store.conversations import Conversations
from shared_context.store.document_store import DocumentStore, Progress
from shared_context.store.documents import Document, check_id
from shared_context.store.embedder import Embedder
from shared_context.store.loading import OnError, Source
from shared_context.store.namespaces import Namespace, with_disk_bytes
from shared_context.store.opening import open_store
from shared_context.store.overview import overview_html
from shared_context.store.query import Rewrite
from shared_context.store.selected import Passage
from shared_context.store.selection import Selection
from shared_context.store.sqlite_file import is_vacant
from shared_context.store.sync import SyncReport, plan_sync


class SharedLLMContextStore:
    """Documents as context trees of keys and values, for one model.

    Adding a document writes its text, tokens, node codes and embeddings; keys and values are computed when a query
    first selects from a chunk, and kept in a cache of bounded size.

    Args:
        model: the model that will read the selections.
        path: a folder, made if it is missing and opened again if it is a store; None keeps all in memory. An address,
            such as ``s3://bucket/name``, opens the snapshot that was published there last, or with ``@NUMBER`` behind
            it an earlier one, for reading only; it is fetched into a cache on this machine.
        config: settings; None takes the stored ones, or the defaults for a new store.
        embedder: "auto" is what the store was made with, and MiniLM for a new one; None uses none; or an
            :class:`~shared_context.store.embedder.Embedder` of your own.
        rewrite: makes of each query what is searched for, a text or several of which the best counts: a question of its
            own of a message, say, or what an answer would look like. None searches for the query as it is.

    Raises:
        StoreFormatError: where the folder is something else, half written or of a newer format.
        StoreUnavailableError: where the folder cannot be read or written now.
        SnapshotNotFoundError: where nothing is published at the address.
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
        rewrite: Rewrite | None = None,
    ):
        opened = open_store(model, path, config, embedder, rewrite)
        self.model, self.path, self.config, self.embedder = model, opened.path, opened.config, opened.embedder
        self._database, self._namespaces, self._checkout = opened.database, opened.namespaces, opened.checkout
        self._namespace, self._let_go = opened.own, False
        self._files = opened.files

    @property
    def _rooms(self) -> Namespace:
        """Those of the store's own documents, or of a namespace."""
        if self._let_go:
            raise StoreClosedError(
                f"The namespace {self.namespace_name!r} was closed here; ask the store for "
                f"namespace({self.namespace_name!r}) again."
            )
        return self._namespace

    @property
    def _documents(self) -> DocumentStore:
        documents = self._rooms.documents
        assert documents is not None  # else a subclass changes documents in its own way
        return documents

    @property
    def _conversations(self) -> Conversations:
        conversations = self._rooms.conversations
        assert conversations is not None  # else a subclass keeps none
        return conversations

    def close(self) -> None:
        """Close the store's files. Everything added is stored already; closing twice does no harm.

        A namespace that is closed leaves the store and its other namespaces open.
        """
        if self.namespace_name:
            self._let_go = True
        else:
            self._namespaces.keep()
            self._files.close()

    def __enter__(self) -> SharedLLMContextStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedLLMContextStore:
        return self  # what frameworks copy stands over the same documents

    def __repr__(self) -> str:
        of = f", namespace {self.namespace_name!r}" if self.namespace_name else ""
        return f"SharedLLMContextStore({self.place or 'in memory'!r}, {self.model.name!r}{of})"

    @property
    def place(self) -> str | None:
        """Where it lies: a folder, or an address with the number of the snapshot; None in memory."""
        if self._checkout is not None:
            return f"{self._checkout.address}@{self._checkout.snapshot.number}"
        return None if self.path is None else str(self.path)

    def _repr_html_(self) -> str | None:
        """For notebooks: sizes, and the first documents; nothing of a store that is closed."""
        try:
            return overview_html(self.stats(), self.ids())
        except StoreClosedError:
            return None

    # Documents

    def add(
        self,
        source: Source,
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        on_error: OnError = "skip",
        atomic: bool = False,
        progress: Progress | None = None,
    ) -> list[str]:
        """Store documents whole; those of a batch that can be read, or none.

        Many documents land piece by piece, of about 65,000 tokens each: what is done stays done if the rest is
        interrupted, and the error says how far it came.

        Args:
            source: a file's or folder's path, a text together with ``id``, a :class:`Document`, or an iterable of
                paths and Documents; :func:`~shared_context.store.loading.load_documents` says how each is read.
            id: of a single document.
            metadata: merged over the metadata of every document.
            replace: documents whose ids are taken take the place of those that are stored, instead of being refused;
                where only the metadata are others, nothing is computed.
            include, exclude: patterns of the files that are taken from folders, such as ``*.md`` or ``drafts/*``.
            on_error: "skip" leaves out those of several documents that are empty, damaged or no text, with a warning
                in the log; "raise" refuses all then; a function is called with the name and the error of each that is
                left out.
            atomic: all documents land together at the end, or none does.
            progress: called as tokens are done.

        Returns:
            The ids of the documents stored, in the order given.

        Raises:
            DocumentError: the one document given is refused (empty, binary, not UTF-8, too large, id taken).
            BatchError: several were given and are refused, because ids are taken or metadata cannot be stored, or
                because none or, with "raise", not all can be read; ``failures`` has the error of each.
        """
        return self._documents.add(
            source, id=id, metadata=metadata, replace=replace, include=include, exclude=exclude, on_error=on_error,
            atomic=atomic, progress=progress,
        )  # fmt: skip

    def sync(
        self,
        folder: str | Path,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> SyncReport:
        """Hold a folder's files as they are now: add new ones, replace changed ones, remove those that are gone.

        Documents that were stored from elsewhere stay, and so does what is stored of files that cannot be read now.

        Args:
            folder: its files get the ids and metadata that :meth:`add` gives them.
            include, exclude: patterns of the files that are taken, such as ``*.md`` or ``drafts/*``.
            metadata: merged over the metadata of every document.
            progress: called as tokens are done.

        Raises:
            DocumentError: it is no folder, or cannot be read; nothing is changed.
        """
        max_bytes = self.config.max_document_bytes
        plan = plan_sync(self, Path(folder), max_bytes=max_bytes, include=include, exclude=exclude, metadata=metadata)
        skipped = dict(plan.skipped)

        def skip(id: str, error: DocumentError) -> None:
            skipped[id] = str(error)

        changed = [*plan.added, *plan.replaced]
        ids: list[str] = []
        if changed:
            try:
                ids = self.add(changed, replace=True, on_error=skip, progress=progress)
            except UnreadableError as error:
                skip(changed[0].id, error)
            except BatchError as error:
                skipped |= {id: str(one) for id, one in error.failures.items()}
        gone = [id for id in plan.removed if id in self]
        self.delete(gone)
        return SyncReport(
            tuple(document.id for document in plan.added if document.id in ids),
            tuple(document.id for document in plan.replaced if document.id in ids),
            tuple(gone),
            plan.unchanged,
            skipped,
        )

    def update(self, id: str, text: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Replace a document's text, its metadata, or both; what is None stays.

        Raises:
            DocumentNotFoundError: no document has this id.
            DocumentError: the new text or metadata cannot be stored; the document stays as it was.
        """
        self._documents.update(id, text, metadata)

    def append(self, id: str, text: str) -> None:
        """Add text at the end of a document; only its last chunk is computed again.

        Raises:
            DocumentNotFoundError: no document has this id.
            DocumentError: the text is empty, or the document would become too large.
        """
        self._documents.append(id, text)

    def delete(self, ids: str | Iterable[str]) -> None:
        """Delete documents, all of them or, where an id is unknown, none.

        Raises:
            DocumentNotFoundError: an id is unknown.
        """
        self._documents.delete([ids] if isinstance(ids, str) else list(ids))

    def get(self, id: str) -> Document:
        """A document as it was stored.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        return self._documents.get(id)

    def ids(self, filters: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the documents that a filter lets through, in the order of their adding or last change of text."""
        return self._documents.ids(filters)

    def __iter__(self) -> Iterator[Document]:
        for id in self.ids():
            try:
                document = self.get(id)
            except DocumentNotFoundError:  # deleted since the iteration began
                continue
            yield document

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, id: object) -> bool:
        return id in self._documents

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
        rows: Rows | None = None,
        fine: int | None = None,
        floor: float | None = None,
        min_score: float | None = None,
        recent: int = 0,
        filters: Mapping[str, Any] | None = None,
        doc_ids: Iterable[str] | None = None,
        prefilter: int | None = None,
        prefilter_chunks: int | None = None,
        show_metadata: bool = False,
    ) -> Selection:
        """Choose what a query is shown finely, coarsely and not at all.

        Args:
            query: a question; None only with ``search="split_and_search"`` or with ``ratio``.
            budget: KV entries at most; None is 1,024 for best_first and no limit otherwise.
            ratio: show everything that may be considered at this one grain, without any search; goes with no budget.
            policy: how nodes are scored; None is "hybrid", which joins all that the store has but last_token.
            search: "best_first" under the budget over all chunks, or the paper's "split_and_search" in each chunk.
            coarse: ratios of unopened nodes by level, root first; None is the configuration's (for split_and_search,
                where that shows nothing, the paper's).
            rows: which rows of a node a ratio above 1 keeps: "importance", the most important over all heads
                together, or "stride", every ratio-th; None is the configuration's.
            fine: ratio of opened leaves; None is the configuration's.
            floor: share of the best leaf's score below which best_first opens none but the best one's neighbours; 0
                spends the whole budget, 1 opens the best alone, None is the configuration's. Without effect among few
                leaves, or where the budget holds all of them.
            min_score: score below which nothing is shown, though the budget has room; None is the configuration's.
            recent: tokens at the end of the last document that may be considered which best_first opens before all
                else, the end first: what stands right before matters to a text that goes on, whatever its words. They
                get the highest scores.
            filters: of metadata, see :func:`~shared_context.store.filters.compile_filter`. They are no boundary between
                tenants; :meth:`namespace` is.
            doc_ids: only these documents.
            prefilter: only so many documents, those nearest to the query by embedding.
            prefilter_chunks: only so many chunks of these documents, again the nearest: of a long document nothing else
                is scored. ``recent`` tokens are considered all the same.
            show_metadata: show each document's metadata, but for its ``hidden_keys``, in front of what is shown of it,
                as lines of ``key: value``. They count in the budget.

        Returns:
            The selection; an empty one where no document may be considered.

        Raises:
            QueryError: the query is empty or longer than the model's window.
            BudgetError: the budget is not positive or holds not even the smallest cut.
            FilterError, DocumentNotFoundError, ConfigError: another argument is wrong.
        """
        return self._rooms.selections.select(
            query, filters, _as_list(doc_ids), show_metadata, rows, budget=budget, ratio=ratio, policy=policy,
            search=search,
            coarse=coarse, fine=fine, floor=floor, min_score=min_score, recent=recent, prefilter=prefilter,
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
        min_score: float | None = None,
    ) -> list[Passage]:
        """The ``k`` best passages as text, best first, for any language model; arguments as in :meth:`select`.

        A passage is what is embedded as one (128 tokens by default), and as good as its best leaf. Its text is widened
        to whole sentences, lines or rows, so that two of them may have a sentence in common, and it has its heading.
        """
        require_count("k", k, "passages")
        return self._rooms.selections.retrieve(
            query, k, policy, filters, _as_list(doc_ids), prefilter, prefilter_chunks, min_score
        )

    async def aadd(self, source: Source, **options: Any) -> list[str]:
        """:meth:`add`, in a thread; one that is cancelled lands all the same, whole, or not at all."""
        return await asyncio.to_thread(self.add, source, **options)

    async def aselect(self, query: str | None, **options: Any) -> Selection:
        """:meth:`select`, in a thread; what answers over it computes its keys and values."""
        return await asyncio.to_thread(self.select, query, **options)

    async def aretrieve(self, query: str, k: int = 5, **options: Any) -> list[Passage]:
        """:meth:`retrieve`, in a thread."""
        return await asyncio.to_thread(self.retrieve, query, k, **options)

    def selection_from(
        self, spans: Iterable[Sequence[Any]], query: str | None = None, *, show_metadata: bool = False
    ) -> Selection:
        """The selection of given characters, whole leaves of which are shown.

        Args:
            spans: ``(doc_id, start, end, ratio, score, text)``, of which what follows end may be left out: characters,
                the ratio at which their leaves are shown (1; the finest where spans overlap), how promising they are
                (0; the highest where spans overlap), and what has to stand there.
            query: what the selection is for.
            show_metadata: as in :meth:`select`.

        Raises:
            DocumentNotFoundError: a doc_id is unknown.
            DocumentChangedError: another text stands there.
            ConfigError: a span lies outside its document.
        """
        return self._rooms.selections.selection_from(list(spans), query, show_metadata)

    def warm(self, selection: Selection | None = None, *, progress: Progress | None = None) -> None:
        """Compute keys and values now: those of a selection, or those of all documents that the cache does not hold.

        Importance is computed with them where the selection, or the configuration, shows coarse nodes. Of documents
        that take more than the cache's limit, the last ones stay.
        """
        self._rooms.selections.warm(selection, progress)

    # Conversations

    def conversation(self, id: str, *, recent_tokens: int = 1024) -> ConversationMemory:
        """The conversation of this id, begun by its first message; it is no document of :meth:`select` and ``len``."""
        return ConversationMemory(self._conversations, id, recent_tokens=recent_tokens)

    def conversations(self) -> list[str]:
        """Ids of the conversations that have messages."""
        return self._conversations.ids()

    # Namespaces

    @property
    def namespace_name(self) -> str:
        """Of the namespace that this is; empty for the store itself."""
        return self._namespace.name

    @property
    def folder(self) -> Path | None:
        """Where files of this namespace lie beside the database; None for a store in memory.

        ``path`` is the folder of the whole store, which for the store itself is the same.
        """
        return self._namespace.folder

    def namespace(self, name: str) -> SharedLLMContextStore:
        """A store of its own in this one, for a tenant or a project say; made where it is not there.

        It has ids, frequencies, scores, conversations and keys and values of its own: nothing that it holds changes
        what this store or another namespace finds, says or counts, and nothing is seen in it that they hold. Model,
        file, process, and memory for keys and values are shared, so that it costs little more than its documents.

        ``close`` lets go of it, ``drop`` deletes it; the store stays open either way. ``persist`` copies it alone.

        Args:
            name: 1 to 512 characters.

        Raises:
            DocumentError: it is no such name.
            ConfigError: this is a namespace itself.
            StoreUnavailableError: it is not there, and the store may only be read.
        """
        require(not self.namespace_name, "namespace", name, "a namespace has none; ask the store itself for it")
        other = copy.copy(self)
        other._namespace = self._namespaces.open(check_id(name, "the namespace"))
        other.config = other._namespace.config
        if other._namespace.documents is not None:
            other._namespace.documents.mend_headers()
        return other

    def namespaces(self) -> list[str]:
        """Names of the namespaces, in the order of their making; a namespace has none."""
        return [] if self.namespace_name else self._namespaces.names()

    def drop(self) -> None:
        """Delete a namespace with its documents, conversations, and keys and values, for all who use it.

        Raises:
            ConfigError: this is the store itself, which is deleted with its folder.
            StoreClosedError: it was dropped already.
        """
        require(
            bool(self.namespace_name), "drop", "", "only a namespace is dropped; close the store and delete its folder"
        )
        self._namespaces.drop(self._rooms)
        self._let_go = True

    # The whole store

    def stats(self) -> dict[str, Any]:
        """Sizes and counts, as JSON values; bytes where a name ends in ``bytes``.

        ``database_bytes`` is the whole file of a store, and what a namespace holds of it.
        """
        with self._rooms.catalogue.reading():
            leaves = self._rooms.catalogue.index.leaves() if len(self._rooms.catalogue.index) else None
            return {
                "path": self.place,
                "model": self.model.name,
                "fingerprint": self.model.fingerprint,
                "embedder": self.embedder.name if self.embedder is not None else None,
                "documents": len(self._rooms.catalogue.documents()),
                "conversations": len(self._database.conversations(self._rooms.catalogue.namespace)),
                "tokens": self._rooms.catalogue.index.tokens,
                "chunks": len(leaves.chunk_length) if leaves is not None else 0,
                "leaves": len(leaves) if leaves is not None else 0,
                "leaf_size": self.config.tree.leaf_size,
                "database_bytes": self._database.namespace_bytes(self._namespace.key)
                if self.namespace_name
                else self._database.nbytes(),
                "code_bytes": leaves.code_bytes if leaves is not None else 0,
                "kv_cache": self._rooms.cache.stats(),
            }

    def limit_kv(self, disk_bytes: int) -> None:
        """Keep at most so many bytes of keys and values in the store's folder, from now on; what is beyond goes.

        The limit becomes the store's own, ``config.cache.disk_bytes`` of whoever opens it without a config; other
        processes that have it open keep theirs until they open it again.

        Raises:
            ConfigError: it is negative.
        """
        if self.namespace_name:
            self._namespaces.limit_disk(self._rooms, disk_bytes)
        else:
            self._rooms.cache.limit_disk(disk_bytes)
            with self._rooms.catalogue.changing(), self._database.decoding():
                about = About.from_bytes(self._database.get_meta("about"))
                kept = dataclasses.replace(about, config=with_disk_bytes(about.config, disk_bytes))
                self._database.set_meta("about", kept.to_bytes())
        self.config = with_disk_bytes(self.config, disk_bytes)

    def gc(self, keep: int | None = None) -> None:
        """Drop keys and values that no document has, in memory and on disk.

        Args:
            keep: of the others only so many bytes stay on disk, those used last; None drops none of them. What is
                dropped is computed again when it is asked for.

        Raises:
            ConfigError: ``keep`` is negative.
        """
        with self._rooms.catalogue.reading():
            self._rooms.catalogue.sweep()
        self._namespaces.sweep()
        if keep is not None:
            self._rooms.cache.trim_disk(keep)

    def compact(self) -> None:
        """Give the space of what was deleted back to the file system, and remove what is left of unfinished writes.

        Takes about as long as copying the store's file, and as much free space for that time.

        Raises:
            StoreUnavailableError: another process goes on using the store, or the disk is full.
        """
        self._database.compact()
        self._rooms.catalogue.keep(tight=True)
        with self._rooms.catalogue.reading():
            self._rooms.catalogue.sweep()

    def persist(self, path: str | Path) -> None:
        """Copy the store, without its KV cache, to a new folder; of a namespace, itself alone as a store.

        Raises:
            StoreFormatError: the folder holds something already.
            StoreUnavailableError: it cannot be written.
        """
        path = Path(path)
        with self._rooms.catalogue.reading():
            if self.path is not None and path.resolve() == self.path.resolve():
                return
            if not is_vacant(path):
                raise StoreFormatError(f"{path} holds a store already; give a new folder.")
            if self.namespace_name:
                copy_namespace(self._database, self._namespace.key, self._rooms.catalogue.shape, path)
            else:
                self._database.copy_to(path)


def _as_list(ids: str | Iterable[str] | None) -> list[str] | None:
    """Ids given as one, several or none; read outside the lock, for they may come from the store itself."""
    if ids is None:
        return None
    return [ids] if isinstance(ids, str) else list(ids)
