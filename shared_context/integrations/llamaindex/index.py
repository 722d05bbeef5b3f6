"""SharedContextIndex: VectorStoreIndex's face over a context store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE

from shared_context import SharedLLMContextStore
from shared_context.config import StoreConfig
from shared_context.errors import ConfigError, StoreFormatError
from shared_context.integrations.llamaindex.contents import Filled
from shared_context.integrations.llamaindex.copies import PlainOverStore
from shared_context.integrations.llamaindex.docstore import PERSISTED, SharedContextDocumentStore
from shared_context.integrations.llamaindex.documents import all_nodes
from shared_context.integrations.llamaindex.engines import Asked
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.opening import (
    ContextStoreStruct,
    Whole,
    other_vector_store,
    persisted_with,
    refuse,
    shared_llm,
    store_in,
)
from shared_context.integrations.llamaindex.synthesizer import check_model
from shared_context.integrations.llamaindex.vector_store import SharedContextVectorStore
from shared_context.remote.address import is_address
from shared_context.shards import open_store
from shared_context.store.loading import OnError


class SharedContextIndex(PlainOverStore, Asked, Filled):
    """Whole documents in a context store, as a LlamaIndex index.

    ``SharedContextIndex.from_documents(documents, llm=SharedLLM(...)).as_query_engine().query("...")``: nothing is
    chunked, the question decides what of the documents the model sees, and its KV are injected instead of its text
    pasted. A document's ``id_`` is its id in the store; its metadata are the store's, for filters and sources, and
    what ``excluded_embed_metadata_keys`` and ``excluded_llm_metadata_keys`` leave of them is searched and shown.

    Args:
        nodes: documents or nodes to store, each as it is. :meth:`from_documents` is the usual way.
        llm: what answers, over the store's model; None makes one.
        store: a store to work on; None makes one, unless ``storage_context`` has one.
        storage_context: LlamaIndex's; the index puts its docstore and vector store into it. One whose vector store is
            a :class:`SharedContextVectorStore` brings the store.
        path, config, embedder: of the store that is made; path None keeps it in memory.
        transformations: run on documents before they are stored: metadata extractors, cleaners. None runs none, and
            documents stay whole; a splitter among them has each piece stored as a document.
        on_error: what becomes of documents that are empty, broken or no text: "skip" leaves them out with a warning in
            the log, "raise" refuses all, a function is called with the id and the error of each that is left out.
        show_progress: show a bar.
        callback_manager: of everything made from this index; None takes the llm's if it has handlers, else
            ``Settings.callback_manager``.
        index_struct: LlamaIndex's record of the index, which has its ``index_id``; None makes one.

    Raises:
        ModelMismatchError: ``llm`` runs another model than the one whose KV the store holds.
        ConfigError: ``llm`` is somebody else's LLM, settings for a new store come with one that is there, the
            storage context has another vector store, or an argument belongs to another kind of index.
        DocumentError: nodes have ids that are stored already, or none can be read (BatchError for several, with
            ``failures``); nothing was stored.
    """

    index_struct_cls = ContextStoreStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        llm: SharedLLM | None = None,
        *,
        store: SharedLLMContextStore | None = None,
        storage_context: StorageContext | None = None,
        path: str | PathLike[str] | None = None,
        config: StoreConfig | None = None,
        embedder: Any = "auto",
        transformations: list[TransformComponent] | None = None,
        on_error: OnError = "skip",
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        index_struct: IndexDict | None = None,
        **options: Any,
    ):
        refuse(options, nodes)
        given = store_in(storage_context)
        if given is None and store is None and path is None and storage_context is not None:
            path = persisted_with(storage_context)
            if path is None and index_struct is not None:
                raise StoreFormatError(
                    "the storage context does not say where the store of this index is: use "
                    "SharedContextIndex.load(persist_dir)"
                )
        if given is not None and store is not None and store is not given:
            raise ConfigError("store= and storage_context= bring a store each: leave one out")
        given = store if given is None else given
        if given is not None and not (path is None and config is None and embedder == "auto"):
            raise ConfigError("store= is given; path, config and embedder are settings of a new one: leave them out")
        self._llm = shared_llm(llm, given)
        self._store = (
            given
            if given is not None
            else open_store(
                self._llm.shared_model,
                Path(path) if isinstance(path, PathLike) else path,
                config=config,
                embedder=embedder,
            )
        )
        self._on_error = on_error
        self._transforms = bool(transformations)
        try:
            check_model(self._llm, self._store)
            if callback_manager is None and self._llm.callback_manager.handlers:
                callback_manager = self._llm.callback_manager
            super().__init__(
                nodes=nodes,
                index_struct=index_struct if nodes or index_struct is not None else ContextStoreStruct(),
                storage_context=self._storage(storage_context),
                callback_manager=callback_manager if callback_manager is not None else Settings.callback_manager,
                transformations=list(transformations or [Whole()]),
                show_progress=show_progress,
            )
        except BaseException:
            if given is None:
                self._store.close()
            raise

    @classmethod
    def from_documents(  # type: ignore[override]  # the LLM comes second, where LlamaIndex has a storage context
        cls,
        documents: Iterable[Document],
        llm: SharedLLM | None = None,
        *,
        store: SharedLLMContextStore | None = None,
        **options: Any,
    ) -> SharedContextIndex:
        """An index of these documents; those that are empty or broken are left out, with a warning in the log.

        A program that is run again with the same ``path`` adds its documents again unless they have the same ids as
        before: ``SimpleDirectoryReader(..., filename_as_id=True)`` gives such ids, random ones otherwise. With them
        ``SharedContextIndex.load(path).refresh_ref_docs(documents)`` adds and replaces only what changed.

        Args:
            documents: LlamaIndex documents with text.
            llm: what compresses and answers; None takes ``Settings.llm`` if that is a SharedLLM, else makes one with
                the default model.
            store: a store to add to; None makes one.
            options: see the class.

        Raises: as the class.
        """
        given = all_nodes(documents)
        index = cls(None, llm, store=store, **options)
        try:
            with index._callback_manager.as_trace("index_construction"):
                index._add(given)
        except BaseException:
            if store is None and store_in(options.get("storage_context")) is None:
                index._store.close()
            raise
        return index

    @classmethod
    def from_store(
        cls,
        store: SharedLLMContextStore,
        llm: SharedLLM | None = None,
        *,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> SharedContextIndex:
        """An index of what ``store`` holds; options as in the class."""
        return cls(None, llm, store=store, callback_manager=callback_manager, **options)

    @classmethod
    def from_vector_store(
        cls, vector_store: SharedContextVectorStore, llm: SharedLLM | None = None, **options: Any
    ) -> SharedContextIndex:
        """An index of what a :class:`SharedContextVectorStore` was filled with; options as in the class.

        Raises:
            ConfigError: it is another vector store.
        """
        if not isinstance(vector_store, SharedContextVectorStore):
            raise ConfigError(other_vector_store(vector_store))
        return cls.from_store(vector_store.client, llm, **options)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        llm: SharedLLM | None = None,
        *,
        config: StoreConfig | None = None,
        embedder: Any = "auto",
        **options: Any,
    ) -> SharedContextIndex:
        """An index that :meth:`persist` or ``storage_context.persist`` wrote, or that was made with ``path``.

        An address, such as ``s3://bucket/name``, is a published store, which is opened for reading only.

        Options as in the class.

        Raises:
            StoreFormatError: there is no store at ``path``.
            SnapshotNotFoundError: nothing is published at the address.
            ModelMismatchError: ``llm`` runs another model than the one the store was made with.
        """
        if is_address(path):
            return cls(None, llm, path=path, config=config, embedder=embedder, **options)
        folder, index_struct = Path(path), None
        if (folder / PERSISTED).is_dir():
            structs = SimpleIndexStore.from_persist_dir(str(folder)).index_structs()
            index_struct = next((struct for struct in structs if isinstance(struct, ContextStoreStruct)), None)
            folder = folder / PERSISTED
        if not folder.is_dir() or not any(folder.iterdir()):
            raise StoreFormatError(
                f"there is no store at {str(path)!r}: make one with SharedContextIndex.from_documents(..., path=...)"
            )
        return cls(None, llm, path=folder, config=config, embedder=embedder, index_struct=index_struct, **options)

    def persist(self, persist_dir: str | PathLike[str]) -> None:
        """Write the index to a folder for :meth:`load`. One that was made with this ``path`` is there already.

        Raises:
            StoreFormatError: the folder holds something else, which is not written over.
        """
        if self._store.path is None or Path(self._store.path).resolve() != Path(persist_dir).resolve():
            self._store.persist(Path(persist_dir))

    def _storage(self, given: StorageContext | None) -> StorageContext:
        """A storage context with the docstore and the vector store of this index."""
        documents, vectors = SharedContextDocumentStore(self._store), SharedContextVectorStore(self._store)
        if given is None:
            return StorageContext.from_defaults(docstore=documents, vector_store=vectors)
        if not isinstance(given.vector_stores.get(DEFAULT_VECTOR_STORE), SharedContextVectorStore):
            given.add_vector_store(vectors, DEFAULT_VECTOR_STORE)
        given.vector_stores.pop(PERSISTED, None)  # said where the store was, which the vector store knows itself
        if not given.docstore.docs:
            given.docstore = documents
        return given

    @property
    def store(self) -> SharedLLMContextStore:
        """The store behind the index."""
        return self._store

    @property
    def llm(self) -> SharedLLM:
        """What answers unless another LLM is asked for."""
        return self._llm


# What load_index_from_storage looks up.
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[ContextStoreStruct.get_type()] = SharedContextIndex
