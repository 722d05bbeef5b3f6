"""LangChain messages, and the role-and-text turns that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, SystemMessage, ToolMessage

from shared_context.errors import QueryError
from shared_context.integrations.turns import TURN_SEPARATOR
from shared_context.model.tool_calls import call_text, result_text


def role_of(message: BaseMessage) -> str:
    """``"system"``, ``"assistant"``, ``"user"``, or what a ChatMessage says.

    A tool's output is a user turn: it is text from outside, and chat templates without tools know no other place.
    """
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, ChatMessage):
        return {"human": "user", "ai": "assistant"}.get(message.role, message.role)
    return "user"


def text_of(message: BaseMessage) -> str:
    """The text of a message's content, a string or blocks of type ``text``.

    Of an assistant's message the text alone is read; reasoning and tool calls that another model left there are not.

    Raises:
        QueryError: a block of another message is not text.
    """
    if not isinstance(message, AIMessage) and not isinstance(message.content, str):
        for position, block in enumerate(message.content):
            kind = "text" if isinstance(block, str) else block.get("type")
            if kind != "text":
                raise QueryError(
                    f"content block {position} of the {message.type} message is of type {kind!r}: this model reads "
                    "text only, so leave the block out or describe it in a block of type 'text'"
                )
    return str(message.text)


def answer_of(answer: Any) -> Any:
    """What a chat model, or an LLM, answered: its text, or the object that a parser behind it made of that."""
    return str(answer.text) if isinstance(answer, BaseMessage) else answer


def to_conversation(messages: Sequence[BaseMessage], *, with_tools: bool = False) -> list[dict[str, str]]:
    """The messages as ``[{"role": ..., "content": ...}]``, oldest first.

    Neighbours of one role become one turn, because many chat templates insist that roles alternate; an assistant's
    turn without text is left out.

    Args:
        with_tools: calls of tools and what came of them are written as a model that has tools writes and reads them;
            otherwise calls are left out, and a tool's output is a user's text.

    Raises:
        QueryError: a message holds something other than text, or there is nothing to read at all.
    """
    turns: list[dict[str, str]] = []
    for message in messages:
        role, text = role_of(message), text_of(message)
        if with_tools and isinstance(message, AIMessage):
            calls = [call_text(call["name"], call["args"]) for call in message.tool_calls]
            text = "\n".join(filter(None, [text, *calls]))
        elif with_tools and isinstance(message, ToolMessage):
            text = result_text(text)
        if role == "assistant" and not text:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += TURN_SEPARATOR + text
        else:
            turns.append({"role": role, "content": text})
    if not turns:
        raise QueryError("no message with text was given: end the conversation with a HumanMessage")
    return turns
