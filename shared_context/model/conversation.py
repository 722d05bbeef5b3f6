"""Conversations as chat templates take them: turns merged and folded where a template would refuse or drop them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Message = dict[str, str]

TURN_SEPARATOR = "\n\n"
"""Between what were turns of their own and are one now."""

SYSTEM_ROLES = ("system", "developer")


def variants(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The same conversation in ever plainer forms, the faithful one first.

    1. As it is.
    2. Only the roles that every template knows: what a tool says is the user's, the system speaks first or within the
       user's next turn, and neighbours of one role are one turn.
    3. No system message either: it opens the user's first turn. Where the assistant speaks first, it is a turn of the
       user's in front, which is empty where there is no system message.
    """
    yield list(messages)
    plain = _merged(_common_roles(messages))
    yield plain
    system, turns = (plain[0]["content"], plain[1:]) if plain[0]["role"] == "system" else ("", plain)
    if not turns or turns[0]["role"] == "assistant":
        yield [{"role": "user", "content": system}, *turns]
    else:
        first = TURN_SEPARATOR.join(part for part in (system, turns[0]["content"]) if part)
        yield [{"role": "user", "content": first}, *turns[1:]]


def _common_roles(messages: Sequence[Message]) -> Iterator[Message]:
    for number, message in enumerate(messages):
        if message["role"] in SYSTEM_ROLES and number == 0:
            yield {"role": "system", "content": message["content"]}
        elif message["role"] == "assistant":
            yield {"role": "assistant", "content": message["content"]}
        else:
            yield {"role": "user", "content": message["content"]}


def _merged(messages: Iterator[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"]:
            joined = (turns[-1]["content"], message["content"])
            turns[-1]["content"] = TURN_SEPARATOR.join(part for part in joined if part)
        else:
            turns.append(dict(message))
    return turns


def as_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The same messages as lists of parts, which templates of models that see pictures may insist on."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def prints_parts(text: str) -> bool:
    """Whether a template wrote such a list out as it is, for it knows texts alone."""
    return any(f"[{{{quote}type{quote}: " in text for quote in ("'", '"', "&#39;", "&#34;"))


def is_kept(message: Message, text: str, escaped: str) -> bool:
    """Whether a rendered text holds the end of a message: templates may leave out the reasoning that opens an answer.

    Args:
        message: the message.
        text: the rendered conversation.
        escaped: the message's content as it stands in JSON, which some templates write tools' results in.
    """
    content = message["content"].strip()
    return content[-32:] in text or escaped[-32:] in text
