"""SharedContextChatEngine: a conversation over injected context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.memory import BaseMemory
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.schema import NodeWithScore, QueryType, TextNode

from shared_context.errors import ConfigError
from shared_context.integrations.llamaindex.copies import PlainOverStore
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.messages import message_text
from shared_context.integrations.llamaindex.synthesizer import SharedContextSynthesizer

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore


class SharedContextChatEngine(PlainOverStore, CondensePlusContextChatEngine):
    """LlamaIndex's context chat engine, with the context injected instead of pasted into the system prompt.

    ``chat``, ``stream_chat``, ``achat``, ``astream_chat``, ``reset`` and ``chat_history`` are the framework's. Where
    nothing is retrieved it answers from the conversation.

    Args:
        retriever: what retrieves, usually a :class:`SharedContextRetriever`.
        llm: a SharedLLM over the store's model.
        memory: keeps the conversation.
        store: the store whose KV are injected; the retriever's, if it has one.
        show_metadata: as in :class:`SharedContextSynthesizer`.
        kwargs: as in CondensePlusContextChatEngine: system_prompt, condense_prompt, skip_condense (retrieve for the
            message as it stands instead of having the LLM rewrite it first), node_postprocessors, callback_manager.

    Raises:
        ConfigError: neither ``store`` nor the retriever's is there.
    """

    _llm: SharedLLM

    def __init__(
        self,
        retriever: BaseRetriever,
        llm: SharedLLM,
        memory: BaseMemory,
        *,
        store: SharedLLMContextStore | None = None,
        show_metadata: bool = True,
        **kwargs: Any,
    ):
        super().__init__(retriever=retriever, llm=llm, memory=memory, **kwargs)
        injected = store if store is not None else getattr(retriever, "store", None)
        if injected is None:
            raise ConfigError(f"the {type(retriever).__name__} has no store: give store=, whose KV are injected")
        self._store: SharedLLMContextStore = injected
        self._show_metadata = show_metadata

    def _get_response_synthesizer(  # type: ignore[override]  # another synthesizer than LlamaIndex's, which pastes
        self, chat_history: list[ChatMessage], streaming: bool = False
    ) -> SharedContextSynthesizer:
        return _ChatSynthesizer(
            self._store,
            self._llm,
            text_qa_template=_Conversation(self._before(chat_history)),
            show_metadata=self._show_metadata,
            streaming=streaming,
            callback_manager=self.callback_manager,
        )

    def _before(self, chat_history: Sequence[ChatMessage]) -> list[ChatMessage]:
        """System prompt and history, with at most one system message, at the start.

        Memories bring system messages of their own (what was said long ago), and many chat templates take only one.
        """
        system = [self._system_prompt] if self._system_prompt else []
        system += [message_text(message) for message in chat_history if message.role == MessageRole.SYSTEM]
        return [
            *([ChatMessage(role=MessageRole.SYSTEM, content="\n\n".join(system))] if system else []),
            *(message for message in chat_history if message.role != MessageRole.SYSTEM),
        ]


class _Conversation(ChatPromptTemplate):
    """A template of the question alone: what was said before it is text, whatever braces it has."""

    _before: list[ChatMessage] = PrivateAttr()

    def __init__(self, before: Sequence[ChatMessage]):
        super().__init__([ChatMessage(role=MessageRole.USER, content="{query_str}")])
        self._before = list(before)

    def format_messages(self, llm: BaseLLM | None = None, **kwargs: Any) -> list[ChatMessage]:
        return [*self._before, *super().format_messages(llm, **kwargs)]


class _ChatSynthesizer(SharedContextSynthesizer):
    """Answers without context too: in a conversation "thank you" is no question that needs a source."""

    def synthesize(self, query: QueryType, nodes: list[NodeWithScore], *args: Any, **kwargs: Any) -> RESPONSE_TYPE:
        return super().synthesize(query, nodes or [_NOTHING], *args, **kwargs)

    async def asynthesize(
        self, query: QueryType, nodes: list[NodeWithScore], *args: Any, **kwargs: Any
    ) -> RESPONSE_TYPE:
        return await super().asynthesize(query, nodes or [_NOTHING], *args, **kwargs)


_NOTHING = NodeWithScore(node=TextNode(text=""))
