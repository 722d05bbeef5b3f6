"""SharedContextIndex: VectorStoreIndex's face over a context store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.ingestion import run_transformations
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.llms.utils import resolve_llm
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, ResponseMode
from llama_index.core.schema import BaseNode, Document, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from tqdm.auto import tqdm

from shared_context import SharedLLMContextStore
from shared_context.config import StoreConfig
from shared_context.errors import ConfigError, StoreFormatError
from shared_context.integrations.llamaindex.chat_engine import SharedContextChatEngine
from shared_context.integrations.llamaindex.docstore import PERSISTED, SharedContextDocumentStore
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.retriever import DEFAULT_BUDGET, SharedContextRetriever
from shared_context.integrations.llamaindex.synthesizer import SharedContextSynthesizer, check_model
from shared_context.integrations.llamaindex.translate import to_documents
from shared_context.integrations.llamaindex.vector_store import SharedContextVectorStore, persisted_store
from shared_context.remote.address import is_address
from shared_context.shards import open_store
from shared_context.store.documents import OnError, load_documents, stored_already

if TYPE_CHECKING:
    from shared_context import Document as StoreDocument

# One call answers from all nodes in each of these modes, which is what injection does; the other modes are something
# else by design (several answers, summaries of summaries, no answer), and LlamaIndex's synthesizers make them of text.
_INJECTED_MODES = (None, ResponseMode.COMPACT, ResponseMode.REFINE, ResponseMode.SIMPLE_SUMMARIZE)

_PASTING_OPTIONS = (
    "refine_template",
    "summary_template",
    "simple_template",
    "chat_content_qa_template",
    "chat_content_refine_template",
    "multimodal",
    "use_async",
)

# Tokens of the window that a chat's memory leaves to the question and the chat format.
_QUESTION_TOKENS = 256

# Tokens that it leaves to the metadata of a passage.
_METADATA_TOKENS = 128


class ContextStoreStruct(IndexDict):
    """LlamaIndex's record of a :class:`SharedContextIndex`; its type is how ``load_index_from_storage`` knows it."""

    @classmethod
    def get_type(cls) -> str:
        return "shared_context"


class SharedContextIndex(BaseIndex[IndexDict]):
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
        _refuse(options, nodes)
        given = _store_in(storage_context)
        if given is None and store is None and path is None and storage_context is not None:
            path = _persisted_with(storage_context)
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
        self._llm = _shared_llm(llm, given)
        self._store = given if given is not None else _open(self._llm, path, config, embedder)
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
                transformations=list(transformations or [_Whole()]),
                show_progress=show_progress,
            )
        except BaseException:
            if given is None:
                self._store.close()
            raise

    @classmethod
    def from_documents(
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
        index = cls(None, llm, store=store, **options)
        try:
            with index._callback_manager.as_trace("index_construction"):
                index._add(list(documents))
        except BaseException:
            if store is None and _store_in(options.get("storage_context")) is None:
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
            raise ConfigError(_other_vector_store(vector_store))
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
            self._store.persist(persist_dir)

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

    # ------------------------------------------------------------------------------------------------------- engines

    def as_retriever(self, **kwargs: Any) -> SharedContextRetriever:
        """A retriever: budget, similarity_top_k, filters, ... as in :class:`SharedContextRetriever`."""
        return SharedContextRetriever(self._store, **{"callback_manager": self._callback_manager, **kwargs})

    def as_query_engine(
        self,
        llm: LLM | None = None,
        *,
        response_mode: ResponseMode | str | None = None,
        text_qa_template: BasePromptTemplate | None = None,
        output_cls: type[BaseModel] | None = None,
        streaming: bool = False,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        response_synthesizer: BaseSynthesizer | None = None,
        **kwargs: Any,
    ) -> RetrieverQueryEngine:
        """A query engine that injects what it retrieves.

        Args:
            llm: answers instead of the index's; for one that is not a SharedLLM the retrieved text is pasted.
            response_mode: "compact", "refine" and "simple_summarize" all mean the one injected pass; any other mode
                is LlamaIndex's own, over pasted text.
            text_qa_template, output_cls, streaming: see :class:`SharedContextSynthesizer`.
            node_postprocessors: drop, reorder or add nodes between retrieval and answer.
            response_synthesizer: answers instead.
            kwargs: of :meth:`as_retriever`; with a mode that pastes text also those of get_response_synthesizer.
        """
        llm = self._resolve(llm)
        if isinstance(llm, StructuredLLM) and isinstance(llm.llm, SharedLLM):
            llm, output_cls = llm.llm, llm.output_cls
        mode = ResponseMode(response_mode) if response_mode is not None else None
        show_metadata = kwargs.setdefault("show_metadata", True)
        pasting = {name: kwargs.pop(name) for name in _PASTING_OPTIONS if name in kwargs}
        retriever = self.as_retriever(**kwargs)
        if response_synthesizer is None and isinstance(llm, SharedLLM) and mode in _INJECTED_MODES:
            if pasting:
                raise ConfigError(
                    f"{', '.join(pasting)}: the context is injected and read in one pass, there is no such step; "
                    "leave it out, or choose a response_mode that pastes text"
                )
            response_synthesizer = SharedContextSynthesizer(
                self._store,
                llm,
                text_qa_template=text_qa_template,
                output_cls=output_cls,
                show_metadata=show_metadata,
                streaming=streaming,
                callback_manager=self._callback_manager,
            )
        return RetrieverQueryEngine.from_args(
            retriever,
            llm=llm,
            response_synthesizer=response_synthesizer,
            node_postprocessors=node_postprocessors,
            callback_manager=self._callback_manager,
            response_mode=mode or ResponseMode.COMPACT,
            text_qa_template=text_qa_template,
            output_cls=output_cls,
            streaming=streaming,
            **pasting,
        )

    def as_chat_engine(
        self,
        chat_mode: ChatMode | str = ChatMode.BEST,
        llm: LLM | None = None,
        *,
        memory: BaseMemory | None = None,
        chat_history: list[ChatMessage] | None = None,
        system_prompt: str | None = None,
        condense_prompt: str | PromptTemplate | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> BaseChatEngine:
        """A chat engine that injects what it retrieves for each turn.

        Args:
            chat_mode: "context" retrieves for each message as it stands; "condense_plus_context" first has the LLM
                make a question of its own of message and history; "condense_question" asks that question to
                :meth:`as_query_engine`; "simple" chats without documents. "best" is "context" for a SharedLLM,
                because small models rewrite questions badly, and LlamaIndex's "condense_plus_context" for others.
            llm: answers instead of the index's; for one that is not a SharedLLM the retrieved text is pasted.
            memory: keeps the conversation; None keeps what fits the window beside context and answer.
            chat_history: how the conversation begins; a memory that is given forgets what it held.
            system_prompt, condense_prompt, node_postprocessors, verbose: as in LlamaIndex's chat engines.
            kwargs: of :meth:`as_retriever`.
        """
        llm, mode = self._resolve(llm), ChatMode(chat_mode)
        if memory is None:
            memory = self._memory(llm, kwargs)
        if chat_history is not None:
            # Not set(), nor from_defaults(chat_history=...): LlamaIndex's Memory only trims what is put.
            memory.reset()
            memory.put_messages(chat_history)
        if mode == ChatMode.SIMPLE:
            return SimpleChatEngine.from_defaults(llm=llm, memory=memory, system_prompt=system_prompt)
        if mode == ChatMode.CONDENSE_QUESTION:
            return CondenseQuestionChatEngine.from_defaults(
                query_engine=self.as_query_engine(llm, node_postprocessors=node_postprocessors, **kwargs),
                llm=llm,
                memory=memory,
                condense_question_prompt=(
                    PromptTemplate(condense_prompt) if isinstance(condense_prompt, str) else condense_prompt
                ),
                system_prompt=system_prompt,
                verbose=verbose,
            )
        if mode not in (ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.BEST):
            raise ConfigError(
                f"chat_mode={mode.value!r} is an agent, which LlamaIndex took out of its indexes: give "
                "ReActAgent a QueryEngineTool over as_query_engine()"
            )
        injects = isinstance(llm, SharedLLM)
        told = {"show_metadata": kwargs.get("show_metadata", True)} if injects else {}
        engine = SharedContextChatEngine if injects else CondensePlusContextChatEngine
        return engine(
            retriever=self.as_retriever(**kwargs),
            llm=llm,
            memory=memory,
            system_prompt=system_prompt,
            condense_prompt=condense_prompt,
            skip_condense=mode == ChatMode.CONTEXT or (mode == ChatMode.BEST and injects),
            node_postprocessors=node_postprocessors,
            callback_manager=self._callback_manager,
            verbose=verbose,
            **told,
        )

    def _resolve(self, llm: LLM | None) -> LLM:
        return self._llm if llm is None else resolve_llm(llm, callback_manager=self._callback_manager)

    def _memory(self, llm: LLM, retrieval: dict[str, Any]) -> Memory:
        """What fits the window beside question, answer and the most that these settings of a retriever retrieve."""
        metadata, tree = llm.metadata, self._store.config.tree
        retrieved = retrieval.get("budget") or DEFAULT_BUDGET
        if retrieval.get("similarity_top_k") is not None:
            passage = (tree.chunk_size >> tree.embedded_level) + _METADATA_TOKENS
            retrieved = retrieval["similarity_top_k"] * passage
        room = metadata.context_window - metadata.num_output - retrieved - _QUESTION_TOKENS
        tokenizer = llm.shared_model.tokenizer.encode if isinstance(llm, SharedLLM) else None
        return Memory.from_defaults(token_limit=max(room, _QUESTION_TOKENS), tokenizer_fn=tokenizer)

    # ----------------------------------------------------------------------------------------------------- documents

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Every document's metadata by its id, with the ids of what is stored of it: its own, while it is whole."""
        return self._documents.get_all_ref_doc_info()

    @property
    def docstore(self) -> SharedContextDocumentStore:
        """The documents, whole, as a LlamaIndex docstore."""
        return self._documents

    @property
    def vector_store(self) -> SharedContextVectorStore:
        """The store as a LlamaIndex vector store."""
        return SharedContextVectorStore(self._store)

    @property
    def _documents(self) -> SharedContextDocumentStore:
        return SharedContextDocumentStore(self._store)

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Add a document. LlamaIndex's further options are of its nodes and docstores, and mean nothing here.

        Raises:
            DuplicateDocumentError: its id is stored already; see :meth:`update_ref_doc`.
            DocumentError: it is empty or holds more than text.
        """
        with self._callback_manager.as_trace("insert"):
            if self._documents.get_ref_doc_info(document.id_) is not None:
                raise stored_already(document.id_)
            self._add([document], on_error="raise")

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Add nodes, each as a document of its own, without transformations.

        Raises:
            DuplicateDocumentError: an id is stored already.
            DocumentError: nodes cannot be stored (BatchError for several, with ``failures``).
        """
        with self._callback_manager.as_trace("insert_nodes"):
            self._insert(nodes)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """Delete what is stored under these ids: those of ``ref_doc_info``, and of nodes that were inserted.

        Raises:
            ConfigError: an id is a retrieved passage's, which is a part of a whole document.
            DocumentNotFoundError: nothing is stored under an id.
        """
        for node_id in node_ids:
            document, colon, _ = node_id.rpartition(":")
            if node_id not in self._store and colon and document in self._store:
                raise ConfigError(
                    f"node {node_id!r} is a passage of {document!r}, which is stored whole: delete that with "
                    f"delete_ref_doc({document!r}), or change its text with update_ref_doc()"
                )
        self._store.delete(node_ids)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """Delete a document with all that was derived from it; there is no separate docstore to spare.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        self._documents.delete_ref_doc(ref_doc_id)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace the document of the same id, or add it; options as in :meth:`insert`."""
        with self._callback_manager.as_trace("update_ref_doc"):
            self._add([document], on_error="raise", replace=True)

    def refresh_ref_docs(
        self, documents: Sequence[Document], *, on_error: OnError | None = None, **update_kwargs: Any
    ) -> list[bool]:
        """Bring the index up to date: new documents are added, changed ones replaced, the rest is left as it is.

        Of one that became empty or broken what is stored stays.

        Args:
            documents: all that may have changed.
            on_error: as in the class; None is the index's.
            update_kwargs: as in :meth:`insert`.

        Returns:
            For each document whether it was new or its text or metadata had changed.

        Raises:
            DocumentError: documents share an id, or none can be read (BatchError for several, with ``failures``);
                nothing was changed.
        """
        on_error = self._on_error if on_error is None else on_error
        documents = list(documents)
        with self._callback_manager.as_trace("refresh_ref_docs"):
            if self._transforms:
                changed = [d for d in documents if self._documents.get_document_hash(d.id_) != d.hash]
                self._add(changed, on_error=on_error, replace=True)
                refreshed = {document.id_ for document in changed}
            else:
                translated = load_documents(
                    to_documents(documents, on_error=on_error),
                    max_bytes=self._store.config.max_document_bytes,
                    on_error=on_error,
                )
                new = [d for d in translated if d.id not in self._store or self._store.get(d.id) != d]
                self._put(new, on_error, replace=True)
                refreshed = {document.id for document in new}
        return [document.id_ in refreshed for document in documents]

    def _add(self, documents: list[Document], *, on_error: OnError | None = None, replace: bool = False) -> None:
        """Store documents, transformed if the index transforms."""
        on_error = self._on_error if on_error is None else on_error
        nodes: Sequence[BaseNode] = documents
        hashes, before = None, {}
        if replace:
            infos = ((d.id_, self._documents.get_ref_doc_info(d.id_)) for d in documents)
            before = {id: info.node_ids for id, info in infos if info is not None}
        if self._transforms:
            hashes = {document.id_: document.hash for document in documents}
            nodes = run_transformations(documents, self._transformations, show_progress=self._show_progress)
        self._put(to_documents(nodes, hashes, on_error), on_error, replace=replace)
        # Pieces that a new text has no more; only now, and where something of it is stored, so that nothing is lost.
        made = {node.node_id: node.ref_doc_id or node.node_id for node in nodes if node.node_id in self._store}
        stale = (node_id for id in before.keys() & set(made.values()) for node_id in before[id])
        self._store.delete(set(stale) - made.keys())

    def _put(self, documents: list[StoreDocument], on_error: OnError, *, replace: bool = False) -> None:
        if not documents:
            return
        with tqdm(desc="Compressing documents", disable=not self._show_progress) as bar:

            def progress(done: int, total: int, what: str) -> None:
                bar.total = total
                bar.set_postfix_str(what, refresh=False)
                bar.update(done - bar.n)

            self._store.add(documents, replace=replace, on_error=on_error, progress=progress)

    # What BaseIndex asks of an index.

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        """Store nodes; the docstore needs no filling, it is the store's."""
        return self._build_index_from_nodes(nodes)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        self._insert(nodes)
        return ContextStoreStruct()

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._put(to_documents(nodes, on_error=self._on_error), self._on_error)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id])

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """:meth:`insert` without blocking the event loop."""
        await asyncio.to_thread(self.insert, document)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """:meth:`insert_nodes` without blocking the event loop."""
        await asyncio.to_thread(self.insert_nodes, nodes)

    async def adelete_nodes(self, node_ids: list[str], delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """:meth:`delete_nodes` without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """:meth:`delete_ref_doc` without blocking the event loop."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, delete_from_docstore)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """:meth:`update_ref_doc` without blocking the event loop."""
        await asyncio.to_thread(self.update_ref_doc, document)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """:meth:`refresh_ref_docs` without blocking the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents, **update_kwargs)


class _Whole(TransformComponent):
    """Leaves documents as they are, where LlamaIndex would split them by default."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return nodes


_REPLACED = {
    "embed_model": "documents are scored by the store's own embedder; give embedder=, or embedder=None for none",
    "objects": "a context store holds text; keep index nodes in a VectorStoreIndex and this index behind one of them",
    "vector_store": "use SharedContextIndex.from_vector_store(SharedContextVectorStore(store))",
    "use_async": "await ainsert(), or run from_documents() in a thread",
    "insert_batch_size": "documents are batched by their tokens; leave it out",
    "store_nodes_override": "the store keeps all text; leave it out",
    "service_context": "give llm=, transformations= and callback_manager= themselves",
}


def _refuse(options: dict[str, Any], nodes: Any) -> None:
    """Refuse what only other indexes have, by the name of what stands here in its place."""
    for name in options:
        if name not in _REPLACED:
            raise TypeError(f"SharedContextIndex() got an unexpected keyword argument {name!r}")
        raise ConfigError(f"{name}= is not of a SharedContextIndex: {_REPLACED[name]}")
    if isinstance(nodes, SharedLLMContextStore):
        raise ConfigError("nodes is a SharedLLMContextStore: use SharedContextIndex.from_store(store)")


def _store_in(storage_context: StorageContext | None) -> SharedLLMContextStore | None:
    """The store that a storage context brings; None where it brings none."""
    if storage_context is None:
        return None
    vectors = storage_context.vector_stores.get(DEFAULT_VECTOR_STORE, SimpleVectorStore())  # none of a persisted one
    if isinstance(vectors, SharedContextVectorStore):
        return vectors.client
    if not isinstance(vectors, SimpleVectorStore):
        raise ConfigError(_other_vector_store(vectors))
    if vectors.data.embedding_dict:
        raise ConfigError(
            "storage_context= holds the vectors of another index: give this one a StorageContext of its own, or none"
        )
    return None


def _persisted_with(storage_context: StorageContext) -> Path | None:
    """The folder of the store that a storage context was persisted with; None where it is a new one."""
    folder = persisted_store(storage_context)
    if folder is not None and not folder.is_dir():
        raise StoreFormatError(
            f"the store that this storage context was persisted with is not in {folder}, perhaps because it "
            "was moved: use SharedContextIndex.load(persist_dir)"
        )
    return folder


def _other_vector_store(vector_store: Any) -> str:
    return (
        f"a SharedContextIndex keeps documents in a context store, not in a {type(vector_store).__name__}: give path= "
        "or store=, or StorageContext.from_defaults(vector_store=SharedContextVectorStore(store))"
    )


def _shared_llm(llm: LLM | None, store: SharedLLMContextStore | None) -> SharedLLM:
    """``llm``, or where it is None the one of LlamaIndex's settings, or else one over the store's model."""
    if llm is None:
        if isinstance(Settings._llm, SharedLLM):  # Settings.llm would make an OpenAI client where nothing is set
            return Settings._llm
        return SharedLLM(model=store.model) if store is not None else SharedLLM()
    if not isinstance(llm, SharedLLM):
        raise ConfigError(
            f"llm is a {type(llm).__name__}: an index compresses with a SharedLLM; give this one to "
            "as_query_engine(llm=...) or as_chat_engine(llm=...), which then paste what is retrieved"
        )
    return llm


def _open(
    llm: SharedLLM, path: str | PathLike[str] | None, config: StoreConfig | None, embedder: Any
) -> SharedLLMContextStore:
    return open_store(llm.shared_model, path, config=config, embedder=embedder)


# What load_index_from_storage looks up.
INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[ContextStoreStruct.get_type()] = ContextStoreStruct
INDEX_STRUCT_TYPE_TO_INDEX_CLASS[ContextStoreStruct.get_type()] = SharedContextIndex
