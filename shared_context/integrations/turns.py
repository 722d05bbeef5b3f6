"""Turns of a conversation, as role and text: what a model is told in them beside what was said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared_context.errors import ConfigError
from shared_context.model.tool_calls import Toolbox

TURN_SEPARATOR = "\n\n"


def toolbox(
    schemas: Sequence[Mapping[str, Any]], choice: Any, parallel: bool, schema: Mapping[str, Any] | None = None
) -> Toolbox | None:
    """The tools of a call; None where it must call none.

    Args:
        schemas: as OpenAI writes them.
        choice: None or "auto" leaves it to the model whether it calls one; "any", "required" or True makes it call
            one, a tool's name, or OpenAI's dict with one, that tool, and "none" none.
        parallel: an answer may hold several calls.
        schema: what is answered instead of a call is JSON of this schema; None leaves it free.

    Raises:
        ConfigError: a tool is a provider's own or has no name, or ``choice`` is none of these.
    """
    for tool in schemas:
        if not isinstance(tool.get("function"), Mapping):
            raise ConfigError(
                f"the tool {json.dumps(tool, default=str)} is run by a provider of models, and here there is none: "
                "give a function, or a schema with a name and parameters"
            )
    tools = [tool["function"] for tool in schemas]
    if isinstance(choice, dict):
        choice = choice.get("function", choice).get("name", choice)
    if choice in (None, False, "auto"):
        return Toolbox(tools, parallel=parallel, schema=schema)
    if choice in (True, "any", "required"):
        return Toolbox(tools, required=True, parallel=parallel)
    if not isinstance(choice, str):
        raise ConfigError(f"tool_choice={choice!r}: must be 'auto', 'any', 'none' or the name of a tool")
    return None if choice == "none" else Toolbox(tools, only=choice, parallel=parallel)


def with_instructions(turns: list[dict[str, str]], instructions: str, default: str) -> list[dict[str, str]]:
    """The conversation with ``instructions`` in its system turn, behind ``default`` where it has none of its own."""
    own = turns[0]["role"] == "system"
    said = turns[0]["content"] if own else default
    content = TURN_SEPARATOR.join(filter(None, [said, instructions]))
    return [{"role": "system", "content": content}, *turns[own:]]


def with_schema(turns: list[dict[str, str]], schema: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation with a request for JSON of this schema at its end, in the user's words."""
    request = f"Answer with JSON that follows this schema:\n{json.dumps(schema)}"
    if turns[-1]["role"] != "user":
        return [*turns, {"role": "user", "content": request}]
    return [*turns[:-1], {"role": "user", "content": turns[-1]["content"] + TURN_SEPARATOR + request}]


def schema_of(response_format: Any) -> tuple[Mapping[str, Any] | None, bool]:
    """The JSON schema of a response format as OpenAI writes it, and whether the model is told it.

    Raises:
        ConfigError: it is none.
    """
    match response_format:
        case None | {"type": "text"}:
            return None, False
        case {"type": "json_object"}:
            return {"type": "object"}, False
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return schema, True
    raise ConfigError(
        f"response_format={response_format!r}: must be {{'type': 'json_schema', 'json_schema': {{'schema': ...}}}}, "
        "{'type': 'json_object'} or {'type': 'text'}; with_structured_output takes a class"
    )
