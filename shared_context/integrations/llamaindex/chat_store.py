"""Conversations in a store as LlamaIndex's chat store: what its own memories keep their messages in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base import BaseChatStore

from shared_context.integrations.llamaindex.conversation import messages_of, put, replace
from shared_context.integrations.llamaindex.copies import OverStore

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore


class SharedContextChatStore(OverStore, BaseChatStore):
    """Keeps the messages of each key as the conversation of that id.

    ``ChatMemoryBuffer.from_defaults(chat_store=SharedContextChatStore(store), chat_store_key="alice")``; what it holds
    a :class:`~shared_context.integrations.llamaindex.SharedContextMemory` of the same id goes on with, and brings old
    turns back.

    Args:
        store: keeps the conversations.
    """

    def __init__(self, store: SharedLLMContextStore, **fields: Any):
        super().__init__(**fields)
        self._store = store

    @classmethod
    def class_name(cls) -> str:
        return "SharedContextChatStore"

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Hold these messages; those at the beginning that are there already stay as they are."""
        replace(self._store.conversation(key), messages)

    def get_messages(self, key: str) -> list[ChatMessage]:
        """The messages of a key, oldest first."""
        return messages_of(self._store.conversation(key))

    def add_message(self, key: str, message: ChatMessage) -> None:
        """Add a message."""
        put(self._store.conversation(key), message)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Forget all messages of a key; returns them, or None where there were none."""
        messages = self.get_messages(key)
        self._store.conversation(key).clear()
        return messages or None

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Forget one message; returns it, or None where there is none at ``idx``."""
        messages = self.get_messages(key)
        if not -len(messages) <= idx < len(messages):
            return None
        self._store.conversation(key).forget(idx)
        return messages[idx]

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Forget the last message; returns it, or None where there was none."""
        return self.delete_message(key, -1)

    def get_keys(self) -> list[str]:
        """Ids of the conversations that have messages."""
        return self._store.conversations()
