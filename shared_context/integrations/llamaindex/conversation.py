"""A conversation of a store in LlamaIndex's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage

from shared_context.integrations.llamaindex.messages import readable_text, role_of

if TYPE_CHECKING:
    from shared_context.store.conversation_memory import ConversationMemory


def put(conversation: ConversationMemory, message: ChatMessage) -> None:
    """Keep a message whole; what is compressed and found again is its text."""
    conversation.append(role_of(message), readable_text(message), llamaindex=message.model_dump(mode="json"))


def edit(conversation: ConversationMemory, position: int, content: str) -> None:
    """Put other words in the place of a message's."""
    turns = conversation.messages()
    extra: dict[str, Any] = {}
    if -len(turns) <= position < len(turns) and "llamaindex" in turns[position]:
        message = to_message(turns[position])
        extra = {
            "llamaindex": ChatMessage(
                role=message.role, content=content, additional_kwargs=message.additional_kwargs
            ).model_dump(mode="json")
        }
    conversation.edit(position, content, **extra)


def replace(conversation: ConversationMemory, messages: list[ChatMessage]) -> None:
    """Hold these messages; those at the beginning that are there already stay, with when they were said."""
    before = messages_of(conversation)
    same = next(
        (at for at, (old, new) in enumerate(zip(before, messages, strict=False)) if old != new),
        min(len(before), len(messages)),
    )
    if same < len(before):
        conversation.forget(same, len(before) - same)
    for message in messages[same:]:
        put(conversation, message)


def messages_of(conversation: ConversationMemory) -> list[ChatMessage]:
    """All messages, oldest first."""
    return [to_message(turn) for turn in conversation.messages()]


def to_message(turn: dict[str, Any]) -> ChatMessage:
    """A kept message as LlamaIndex's own."""
    # A turn without the extra was written by the library itself or by another framework's adapter.
    if "llamaindex" in turn:
        return ChatMessage.model_validate(turn["llamaindex"])
    return ChatMessage(role=turn["role"], content=turn["content"])
