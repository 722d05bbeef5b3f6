"""Tools by prompting: how they are told to a model, what it may answer, and how a call is read from the answer.

A call is written as Hermes, Qwen and SmolLM models were trained to write it: a JSON object with a name and arguments
between two tags. Any other model learns the form from the instructions and is kept to it by a grammar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_context.errors import ConfigError
from shared_context.model.constraints import inline_json

CALL_OPENS, CALL_ENDS = "<tool_call>", "</tool_call>"
RESULT_OPENS, RESULT_ENDS = "<tool_response>", "</tool_response>"


@dataclass(frozen=True)
class ToolCall:
    """A call as a model wrote it.

    Attributes:
        name: of the tool.
        arguments: by parameter.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ToolAnswer:
    """An answer of a model that has tools.

    Attributes:
        text: what stands before the calls.
        calls: in the order written.
        unfinished: a call that the answer ended in, as far as it came; mostly empty.
    """

    text: str
    calls: tuple[ToolCall, ...]
    unfinished: str = ""


class Toolbox:
    """The tools of one request.

    Args:
        tools: each with a ``name``, and a ``description`` and ``parameters`` (a JSON schema of an object) if it has
            them; of two with one name the later counts.
        required: the answer is a call; otherwise the model may answer in words instead.
        only: the one tool that is called then; None leaves the choice to the model.
        parallel: an answer may hold several calls. A small model that may go on mostly does.
        schema: what is answered instead of a call is JSON of this schema; None leaves it free.

    Raises:
        ConfigError: a tool has no name, or ``only`` is none of them.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        required: bool = False,
        only: str | None = None,
        parallel: bool = False,
        schema: Mapping[str, Any] | None = None,
    ):
        given = [tool.get("name") for tool in tools]
        names = [name for name in given if isinstance(name, str) and name]
        if not given or len(names) < len(given):
            raise ConfigError(f"The tools are named {given}: give one or more, each with a name.")
        if only is not None and only not in names:
            raise ConfigError(f"tool_choice={only!r}: no tool has this name; there are {', '.join(names)}.")
        self._all = list(dict(zip(names, tools, strict=True)).values())
        self._tools = [tool for tool in self._all if only in (None, tool["name"])]
        self._required = required or only is not None
        self._parallel = parallel
        self._schema = schema

    def instructions(self) -> str:
        """What a model is told of them, for its system message."""
        described = [
            {"name": tool["name"], "description": tool.get("description", ""), "parameters": _parameters(tool)}
            for tool in self._all
        ]
        form = call_text("name of the tool", {"parameter": "value"})
        lines = "\n".join(json.dumps(each, ensure_ascii=False) for each in described)
        when = "Answer by calling a tool" if self._required else "To call a tool, answer"
        words = (
            "in words" if self._schema is None else f"with JSON that follows this schema: {json.dumps(self._schema)}"
        )
        otherwise = "" if self._required else f"\nWhere no tool helps, or its response says enough, answer {words}."
        tools = f"You have these tools, each described by a JSON schema:\n{lines}"
        return f"{tools}\n{when} in this form:\n{form}{otherwise}"

    def grammar(self) -> str:
        """What an answer may be, for the ``grammar`` of a generation."""
        free = not self._required and self._schema is None
        begins = "opening" if free else f'"{CALL_OPENS}"'
        again = f'("\\n{CALL_OPENS}" body)*' if self._parallel else ""
        names = " | ".join(f"tool_{number}" for number in range(len(self._tools)))
        rules = [
            f"start: {'' if self._required else 'words | '}{begins} body {again}",
            f'body: "\\n" ({names}) "\\n{CALL_ENDS}"',
        ]
        if free:
            # A lazy rule ends with the first tag, so that words without one are words to their end.
            rules += ["words: WORDS", f'opening[lazy]: WORDS "{CALL_OPENS}"', r"WORDS: /(.|\n)*/"]
        elif self._schema is not None and not self._required:
            rules.append(f"words: {inline_json(self._schema)}")
        for number, tool in enumerate(self._tools):
            head = json.dumps(f'{{"name": {json.dumps(tool["name"], ensure_ascii=False)}, "arguments": ')
            rules.append(f'tool_{number}: {head} {inline_json(_parameters(tool))} "}}"')
        return "\n".join(rules)


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return tool.get("parameters") or {"type": "object", "properties": {}}


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as a model writes it."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL_OPENS}\n{call}\n{CALL_ENDS}"


def result_text(result: str) -> str:
    """A tool's response as a model reads it."""
    return f"{RESULT_OPENS}\n{result}\n{RESULT_ENDS}"


def words_before_calls(text: str) -> str:
    """What of an answer so far is words for certain: not a call, nor what may become the tag of one."""
    words, opened, _ = text.partition(CALL_OPENS)
    if opened:
        return words
    held = next(n for n in range(len(CALL_OPENS) - 1, -1, -1) if words.endswith(CALL_OPENS[:n]))
    return words[: len(words) - held]


def read_calls(text: str) -> ToolAnswer:
    """The words and the calls of a whole answer."""
    words, opened, rest = text.partition(CALL_OPENS)
    calls: list[ToolCall] = []
    while opened:
        body = rest.lstrip()
        try:
            # A tag may stand inside an argument, so it is the JSON that says where a call ends.
            call, end = json.JSONDecoder().raw_decode(body)
            calls.append(ToolCall(call["name"], call["arguments"]))
        except (ValueError, TypeError, KeyError):
            return ToolAnswer(words, tuple(calls), body)
        _, opened, rest = body[end:].partition(CALL_OPENS)
    return ToolAnswer(words, tuple(calls))
