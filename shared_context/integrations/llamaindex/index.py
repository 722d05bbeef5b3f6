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
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.llms.utils import resolve_llm
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, ResponseMode
from llama_index.core.schema import Document
from llama_index.core.settings import Settings
from llama_index.core.storage.docstore.types import RefDocInfo
from tqdm.auto import tqdm

from shared_context.config import StoreConfig
from shared_context.errors import ConfigError, StoreFormatError
from shared_context.integrations.llamaindex.chat_engine import SharedContextChatEngine
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.retriever import DEFAULT_BUDGET, SharedContextRetriever
from shared_context.integrations.llamaindex.synthesizer import SharedContextSynthesizer, check_model
from shared_context.integrations.llamaindex.translate import to_document, to_documents
from shared_context.store.documents import load_documents

if TYPE_CHECKING:
    from shared_context import Document as StoreDocument
    from shared_context import SharedLLMContextStore

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


class SharedContextIndex:
    """Whole documents in a context store, with the methods of a LlamaIndex index.

    ``SharedContextIndex.from_documents(documents, llm=SharedLLM(...)).as_query_engine().query("...")``: nothing is
    chunked, the question decides what of the documents the model sees, and its KV are injected instead of its text
    pasted. A document's ``id_`` is its id in the store; its metadata are the store's, for filters and sources.

    Args:
        store: the store.
        llm: what answers, over the store's model; None makes one.
        callback_manager: of everything made from this index; None takes the llm's if it has handlers, else
            ``Settings.callback_manager``.

    Raises:
        ModelMismatchError: ``llm`` runs another model than the one whose KV the store holds.
    """

    def __init__(
        self,
        store: SharedLLMContextStore,
        llm: SharedLLM | None = None,
        *,
        callback_manager: CallbackManager | None = None,
    ):
        self._store = store
        self._llm = _shared_llm(llm, store)
        check_model(self._llm, store)
        if callback_manager is None and self._llm.callback_manager.handlers:
            callback_manager = self._llm.callback_manager
        self._callback_manager = callback_manager if callback_manager is not None else Settings.callback_manager

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        llm: SharedLLM | None = None,
        *,
        store: SharedLLMContextStore | None = None,
        path: str | PathLike[str] | None = None,
        config: StoreConfig | None = None,
        embedder: Any = "auto",
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> SharedContextIndex:
        """An index of these documents; those that are empty or broken are left out, with a warning in the log.

        Args:
            documents: LlamaIndex documents with text.
            llm: what compresses and answers; None takes ``Settings.llm`` if that is a SharedLLM, else makes one with
                the default model.
            store: a store to add to; None makes one.
            path, config, embedder: of the store that is made; path None keeps it in memory. A program that is run
                again with the same path adds its documents again unless they have the same ids as before:
                ``SimpleDirectoryReader(..., filename_as_id=True)`` gives such ids, random ones otherwise. With them
                ``SharedContextIndex.load(path).refresh_ref_docs(documents)`` adds and replaces only what changed.
            show_progress: show a bar.
            callback_manager: see the class.

        Raises:
            ConfigError: ``llm`` is somebody else's LLM, or ``store`` comes with settings for a new one.
            DocumentError: documents hold images or have ids that are stored already, or none can be read (BatchError
                for several, with ``failures``); nothing was stored.
        """
        translated = to_documents(documents)
        if store is not None and not (path is None and config is None and embedder == "auto"):
            raise ConfigError("store= is given; path, config and embedder are settings of a new one: leave them out")
        llm = _shared_llm(llm, store)
        made = store is None
        if made:
            store = _open(llm, path, config, embedder)
        index = cls(store, llm, callback_manager=callback_manager)
        try:
            with index._callback_manager.as_trace("index_construction"):
                index._add(translated, show_progress)
        except BaseException:
            if made:
                store.close()
            raise
        return index

    @classmethod
    def from_store(
        cls,
        store: SharedLLMContextStore,
        llm: SharedLLM | None = None,
        *,
        callback_manager: CallbackManager | None = None,
    ) -> SharedContextIndex:
        """An index of what ``store`` holds."""
        return cls(store, llm, callback_manager=callback_manager)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        llm: SharedLLM | None = None,
        *,
        config: StoreConfig | None = None,
        embedder: Any = "auto",
        callback_manager: CallbackManager | None = None,
    ) -> SharedContextIndex:
        """An index that :meth:`persist` wrote, or that was made with ``path``.

        Raises:
            StoreFormatError: there is no store at ``path``.
            ModelMismatchError: ``llm`` runs another model than the one the store was made with.
        """
        if not Path(path).is_dir() or not any(Path(path).iterdir()):
            raise StoreFormatError(
                f"there is no store at {str(path)!r}: make one with SharedContextIndex.from_documents(..., path=...)"
            )
        llm = _shared_llm(llm, None)
        return cls(_open(llm, path, config, embedder), llm, callback_manager=callback_manager)

    def persist(self, persist_dir: str | PathLike[str]) -> None:
        """Write the index to a folder for :meth:`load`. One that was made with this ``path`` is there already.

        Raises:
            StoreFormatError: the folder holds something else, which is not written over.
        """
        if self._store.path is None or Path(self._store.path).resolve() != Path(persist_dir).resolve():
            self._store.persist(persist_dir)

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
        )

    def _resolve(self, llm: LLM | None) -> LLM:
        return self._llm if llm is None else resolve_llm(llm, callback_manager=self._callback_manager)

    def _memory(self, llm: LLM, retrieval: dict[str, Any]) -> Memory:
        """What fits the window beside question, answer and the most that these settings of a retriever retrieve."""
        metadata, tree = llm.metadata, self._store.config.tree
        retrieved = retrieval.get("budget") or DEFAULT_BUDGET
        if retrieval.get("similarity_top_k") is not None:
            retrieved = retrieval["similarity_top_k"] * (tree.chunk_size >> tree.embedded_level)
        room = metadata.context_window - metadata.num_output - retrieved - _QUESTION_TOKENS
        tokenizer = llm.shared_model.tokenizer.encode if isinstance(llm, SharedLLM) else None
        return Memory.from_defaults(token_limit=max(room, _QUESTION_TOKENS), tokenizer_fn=tokenizer)

    # ----------------------------------------------------------------------------------------------------- documents

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Every document's metadata by its id. ``node_ids`` is empty: what a node is, each question decides anew."""
        return {document.id: RefDocInfo(metadata=dict(document.metadata)) for document in self._store}

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Add a document. LlamaIndex's further options are of its nodes and docstores, and mean nothing here.

        Raises:
            DuplicateDocumentError: its id is stored already; see :meth:`update_ref_doc`.
            DocumentError: it is empty or holds more than text.
        """
        with self._callback_manager.as_trace("insert"):
            self._store.add(to_document(document))

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """Delete a document with all that was derived from it; there is no separate docstore to spare.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        self._store.delete(ref_doc_id)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace the document of the same id, or add it; options as in :meth:`insert`."""
        with self._callback_manager.as_trace("update_ref_doc"):
            self._store.add(to_document(document), replace=True)

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Bring the index up to date: new documents are added, changed ones replaced, the rest is left as it is.

        Of one that became empty or broken what is stored stays. Options as in :meth:`insert`.

        Returns:
            For each document whether it was new or its text or metadata had changed.

        Raises:
            DocumentError: documents hold more than text or share an id, or none can be read (BatchError for several,
                with ``failures``); nothing was changed.
        """
        with self._callback_manager.as_trace("refresh_ref_docs"):
            limit = self._store.config.max_document_bytes
            given = to_documents(documents)
            translated = load_documents(given, max_bytes=limit)
            changed = [d for d in translated if d.id not in self._store or self._store.get(d.id) != d]
            self._add(changed, replace=True)
        refreshed = {document.id for document in changed}
        return [document.id in refreshed for document in given]

    def _add(self, documents: list[StoreDocument], show_progress: bool = False, *, replace: bool = False) -> None:
        if not documents:
            return
        with tqdm(desc="Compressing documents", disable=not show_progress) as bar:

            def progress(done: int, total: int, what: str) -> None:
                bar.total = total
                bar.set_postfix_str(what, refresh=False)
                bar.update(done - bar.n)

            self._store.add(documents, replace=replace, progress=progress)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """:meth:`insert` without blocking the event loop."""
        await asyncio.to_thread(self.insert, document)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """:meth:`delete_ref_doc` without blocking the event loop."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, delete_from_docstore)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """:meth:`update_ref_doc` without blocking the event loop."""
        await asyncio.to_thread(self.update_ref_doc, document)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """:meth:`refresh_ref_docs` without blocking the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents)


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
    from shared_context import SharedLLMContextStore

    return SharedLLMContextStore(llm.shared_model, path, config=config, embedder=embedder)
