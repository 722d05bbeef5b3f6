"""What asks a :class:`SharedContextIndex`: its retrievers, query engines and chat engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.memory import BaseMemory, Memory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, ResponseMode

from shared_context.errors import ConfigError
from shared_context.integrations.llamaindex.chat_engine import SharedContextChatEngine
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.retriever import DEFAULT_BUDGET, SharedContextRetriever
from shared_context.integrations.llamaindex.synthesizer import SharedContextSynthesizer

if TYPE_CHECKING:
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

_OF_OTHER_RETRIEVERS = {
    "top_k": "give similarity_top_k=, or budget=",
    "node_ids": "documents are whole; give doc_ids=",
    "vector_store_query_mode": "give policy=; the default, hybrid, takes words and embeddings together",
    "alpha": "the default policy weighs words and embeddings by itself; give policy= for one of them alone",
    "sparse_top_k": "words and embeddings are scored together; give similarity_top_k=",
    "hybrid_top_k": "words and embeddings are scored together; give similarity_top_k=",
    "embed_model": "questions are embedded by the store's own embedder; leave it out",
}

# Tokens of the window that a chat's memory leaves to the question and the chat format.
_QUESTION_TOKENS = 256

# Tokens that it leaves to the metadata of a passage.
_METADATA_TOKENS = 128


class Asked(BaseIndex[IndexDict]):
    """An index over a store, as far as it is asked."""

    _store: SharedLLMContextStore
    _llm: SharedLLM

    def as_retriever(self, **kwargs: Any) -> SharedContextRetriever:
        """A retriever: budget, similarity_top_k, filters, ... as in :class:`SharedContextRetriever`.

        Raises:
            ConfigError: an option is of other retrievers; it names what stands here in its place.
        """
        for name in _OF_OTHER_RETRIEVERS.keys() & kwargs.keys():
            raise ConfigError(f"{name}= is not of a SharedContextRetriever: {_OF_OTHER_RETRIEVERS[name]}")
        return SharedContextRetriever(self._store, **{"callback_manager": self._callback_manager, **kwargs})

    def as_query_engine(
        self,
        llm: LLMType | None = None,
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
        answering = self._resolve(llm)
        if isinstance(answering, StructuredLLM) and isinstance(answering.llm, SharedLLM):
            output_cls, answering = answering.output_cls, answering.llm
        mode = ResponseMode(response_mode) if response_mode is not None else None
        show_metadata = kwargs.setdefault("show_metadata", True)
        pasting = {name: kwargs.pop(name) for name in _PASTING_OPTIONS if name in kwargs}
        retriever = self.as_retriever(**kwargs)
        if response_synthesizer is None and isinstance(answering, SharedLLM) and mode in _INJECTED_MODES:
            if pasting:
                raise ConfigError(
                    f"{', '.join(pasting)}: the context is injected and read in one pass, there is no such step; "
                    "leave it out, or choose a response_mode that pastes text"
                )
            response_synthesizer = SharedContextSynthesizer(
                self._store,
                answering,
                text_qa_template=text_qa_template,
                output_cls=output_cls,
                show_metadata=show_metadata,
                streaming=streaming,
                callback_manager=self._callback_manager,
            )
        return RetrieverQueryEngine.from_args(
            retriever,
            llm=answering,
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
        llm: LLMType | None = None,
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
        answering, mode = self._resolve(llm), ChatMode(chat_mode)
        if memory is None:
            memory = self._memory(answering, kwargs)
        if chat_history is not None:
            # Not set(), nor from_defaults(chat_history=...): LlamaIndex's Memory only trims what is put.
            memory.reset()
            memory.put_messages(chat_history)
        if mode == ChatMode.SIMPLE:
            return SimpleChatEngine.from_defaults(llm=answering, memory=memory, system_prompt=system_prompt)
        if mode == ChatMode.CONDENSE_QUESTION:
            return CondenseQuestionChatEngine.from_defaults(
                query_engine=self.as_query_engine(answering, node_postprocessors=node_postprocessors, **kwargs),
                llm=answering,
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
        alike: dict[str, Any] = {
            "retriever": self.as_retriever(**kwargs),
            "memory": memory,
            "system_prompt": system_prompt,
            "condense_prompt": condense_prompt,
            "node_postprocessors": node_postprocessors,
            "callback_manager": self._callback_manager,
            "verbose": verbose,
        }
        if not isinstance(answering, SharedLLM):
            return CondensePlusContextChatEngine(llm=answering, skip_condense=mode == ChatMode.CONTEXT, **alike)
        return SharedContextChatEngine(
            llm=answering,
            skip_condense=mode != ChatMode.CONDENSE_PLUS_CONTEXT,
            show_metadata=kwargs.get("show_metadata", True),
            **alike,
        )

    def _resolve(self, llm: LLMType | None) -> LLM:
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
