"""Objects from the answers of a chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, TypeGuard

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel
from typing_extensions import is_typeddict

from shared_context.config import one_of, require

StructuredOutputMethod = Literal["json_schema", "function_calling", "json_mode"]


def parser_for(schema: dict[str, Any] | type, method: StructuredOutputMethod) -> Runnable[AIMessage, Any]:
    """What makes an object of ``schema`` from a message: an instance of a Pydantic class, and else a dict.

    Raises:
        ConfigError: ``method`` is none that there is, or ``schema`` no schema.
    """
    one_of("method", method, StructuredOutputMethod)
    schemas = isinstance(schema, dict) or is_typeddict(schema) or _is_class(schema)
    require(schemas, "schema", schema, "must be a Pydantic class, a TypedDict or a JSON schema")
    if method == "function_calling":
        if _is_class(schema):
            parser: Runnable = PydanticToolsParser(tools=[schema], first_tool_only=True)
        else:
            name = convert_to_openai_tool(schema)["function"]["name"]
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    else:
        parser = PydanticOutputParser(pydantic_object=schema) if _is_class(schema) else JsonOutputParser()
    return RunnableGenerator(_whole, _awhole) | parser


def _is_class(schema: dict[str, Any] | type) -> TypeGuard[type[BaseModel]]:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _whole(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    for message in messages:
        yield message
        _check(message)


async def _awhole(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    async for message in messages:
        yield message
        _check(message)


def _check(message: AIMessage) -> None:
    """Raise OutputParserException where an answer was cut, in words of its own: the parser knows only broken JSON."""
    if message.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "the answer ended at its most tokens before the object was whole: raise max_tokens, or give the schema's "
            "texts a maxLength and its lists a maxItems",
            llm_output=str(message.text),
        )
