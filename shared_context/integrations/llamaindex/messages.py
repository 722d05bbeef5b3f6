"""Messages: LlamaIndex's form, and what a model and a store read of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from shared_context.errors import QueryError
from shared_context.model.tool_calls import call_text, result_text

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}


def role_of(message: ChatMessage) -> str:
    """The role by the name that chat templates have for it."""
    return _ROLES.get(message.role, message.role.value)


def message_text(message: ChatMessage) -> str:
    """What a text model reads of a message.

    Text, calls of tools (``clock({"zone": "UTC"})``), documents that are text and cited passages with their titles;
    what a model thought on the way and cache marks are left out.

    Raises:
        QueryError: it holds something that a text model cannot read.
    """
    return "\n".join(filter(None, (_block_text(block, message.role.value) for block in message.blocks)))


def readable_text(message: ChatMessage) -> str:
    """:func:`message_text` of what can be read, for what is kept and searched; the rest of it is left out."""
    return message_text(message.model_copy(update={"blocks": [b for b in message.blocks if _is_readable(b)]}))


def _is_readable(block: ContentBlock) -> bool:
    try:
        _block_text(block, "")
    except QueryError:
        return False
    return True


def _block_text(block: ContentBlock, role: str) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, ThinkingBlock | CachePoint):
        return ""
    if isinstance(block, ToolCallBlock):
        arguments = block.tool_kwargs
        return f"{block.tool_name}({arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)})"
    if isinstance(block, CitableBlock | CitationBlock):
        cited = block.content if isinstance(block, CitableBlock) else [block.cited_content]
        source = f" ({block.source})" if block.source and block.source != block.title else ""
        return "\n".join([f"{block.title}{source}:", *(_block_text(part, role) for part in cited)])
    if isinstance(block, DocumentBlock):
        return _document_text(block, role)
    raise QueryError(
        f"the {role} message holds a block of type {block.block_type!r}, and this model reads text: put it in words"
    )


def _document_text(block: DocumentBlock, role: str) -> str:
    what = f"document {block.title!r} in the {role} message"
    try:
        content = block.resolve_document().read()
    except (OSError, ValueError) as error:
        raise QueryError(f"the {what} cannot be read ({error}): give its text in a TextBlock") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = block.document_mimetype or "no UTF-8"
        raise QueryError(f"the {what} is {kind}, and this model reads text: extract its text first") from error
    return f"{block.title}:\n{text}"


def to_conversation(messages: Sequence[ChatMessage], *, with_tools: bool = False) -> list[dict[str, str]]:
    """Messages as a chat template reads them: ``[{"role": ..., "content": ...}, ...]``.

    Args:
        with_tools: calls of tools and what came of them are written as a model that has tools writes and reads them.

    Raises:
        QueryError: a message is none, or holds something that a text model cannot read.
    """
    if isinstance(messages, str | ChatMessage) or not all(isinstance(message, ChatMessage) for message in messages):
        raise QueryError(f"messages={messages!r}: chat() takes a list of ChatMessage; complete() takes a text")
    if not with_tools:
        return [{"role": role_of(message), "content": message_text(message)} for message in messages]
    return [_turn_with_tools(message) for message in messages]


def _turn_with_tools(message: ChatMessage) -> dict[str, str]:
    if role_of(message) == "tool":  # text from outside, which chat templates without tools know no other place for
        return {"role": "user", "content": result_text(message_text(message))}
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    words = [block for block in message.blocks if not isinstance(block, ToolCallBlock)]
    said = message_text(message.model_copy(update={"blocks": words}))
    return {"role": role_of(message), "content": "\n".join(filter(None, [said, *map(_call_text, calls)]))}


def _call_text(block: ToolCallBlock) -> str:
    arguments = block.tool_kwargs
    try:
        return call_text(block.tool_name, json.loads(arguments) if isinstance(arguments, str) else arguments)
    except ValueError:  # no JSON: as another model wrote it
        return f"{block.tool_name}({arguments})"
