"""A conversation in a store as LangChain's chat message history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import (
    BaseMessage,
    BaseMessageChunk,
    convert_to_messages,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
)

from shared_context import Selection, SharedLLMContextStore
from shared_context.integrations.langchain.messages import role_of


class SharedContextChatMessageHistory(BaseChatMessageHistory):
    """A conversation that a store keeps: every message as it was, and old turns ready to be injected.

        history = SharedContextChatMessageHistory("alice", store)
        RunnableWithMessageHistory(llm, lambda session: SharedContextChatMessageHistory(session, store))

    A conversation that outgrows the model's window is read in two parts, the last turns as messages and what matters
    of the older ones as injected KV:

        llm.invoke([*history.recent_messages, HumanMessage(question)], context=history.select(question))

    Args:
        session_id: names the conversation in the store.
        store: keeps it; with a path it is there when the store is opened again.
        recent_tokens: tokens of the last turns that stay verbatim.
    """

    def __init__(self, session_id: str, store: SharedLLMContextStore, *, recent_tokens: int = 1024):
        super().__init__()
        self.session_id = session_id
        self.store = store
        self._memory = store.conversation(session_id, recent_tokens=recent_tokens)

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages, oldest first."""
        return [_to_message(turn) for turn in self._memory.messages()]

    @property
    def recent_messages(self) -> list[BaseMessage]:
        """The last messages, those within ``recent_tokens``, oldest first."""
        return [_to_message(turn) for turn in self._memory.recent()]

    def select(self, query: str, **options: Any) -> Selection:
        """What ``query`` is shown of the turns before ``recent_messages``; ``options`` as for ``store.select``."""
        return self._memory.select(query, **options)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages of any type. Their text is compressed; the rest of them is kept beside it."""
        for message in messages:
            whole = message_chunk_to_message(message) if isinstance(message, BaseMessageChunk) else message
            self._memory.append(role_of(whole), str(whole.text), langchain=message_to_dict(whole))

    def clear(self) -> None:
        """Forget the conversation."""
        self._memory.clear()


def _to_message(turn: dict[str, Any]) -> BaseMessage:
    # a turn without the extra was written by the library itself or by another adapter
    if "langchain" in turn:
        return messages_from_dict([turn["langchain"]])[0]
    return convert_to_messages([{"role": turn["role"], "content": turn["content"]}])[0]
