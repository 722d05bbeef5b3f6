"""The injecting decoder as a LangChain chat model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from operator import itemgetter
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    InvalidToolCall,
    ToolCall,
    ToolCallChunk,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from shared_context import SharedLLMModel
from shared_context.integrations.langchain.documents import describe
from shared_context.integrations.langchain.history import history_of_run
from shared_context.integrations.langchain.messages import to_conversation
from shared_context.integrations.langchain.settings import GenerationSettings, details_of, load_model, usage_of
from shared_context.integrations.langchain.structured import StructuredOutputMethod, parser_for
from shared_context.integrations.turns import schema_of, toolbox, with_instructions, with_schema
from shared_context.model.tool_calls import read_calls, words_before_calls

ANY_OBJECT = {"type": "json_object"}

CUT = "the answer ended at its most tokens, in the middle of this call: raise max_tokens"


class ChatSharedLLM(GenerationSettings, BaseChatModel):
    """A chat model that reads a Selection as injected KV.

        llm = ChatSharedLLM(model="smollm2-135m-instruct", max_tokens=64)
        llm.invoke("When does the night shift start?", context=store.select("When does the night shift start?"))

    ``context`` (None, a string that is pasted, or a Selection) goes with a call or with ``bind``. Answers carry
    ``usage_metadata`` (injected KV entries count as ``cache_read`` input) and ``response_metadata`` with
    ``model_name``, ``finish_reason``, ``time_to_first_token`` (seconds) and ``context_entries``.

    In a LangGraph thread that a SharedContextSaver keeps, and in a RunnableWithMessageHistory over a
    SharedContextChatMessageHistory, the older turns are injected too.

    ``bind_tools`` and ``with_structured_output`` tell the model what is wanted and let it write nothing else, so that
    every call and every object has the form asked for. What stands in it is the model's: the default model, of 135
    million parameters, fills a form but hardly knows when to call a tool; ``tool_choice="any"`` decides that for it.
    ``response_schema`` (a JSON schema) and ``grammar`` bind an answer without telling the model. ``response_format``,
    as OpenAI writes it and agents pass it, tells it; an answer is then the object, or a call where tools are.

    Args:
        streaming: generate through the streaming path in ``invoke`` too, so that callbacks see every token.

    Raises:
        QueryError: a message holds an image or anything else that is not text.
        WindowExceededError: context, messages and answer do not fit the model's window.
        ConfigError: a schema cannot be enforced, or another argument of a call is wrong.
    """

    streaming: bool = False

    @property
    def _llm_type(self) -> str:
        return "shared-context-chat"

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(
            name=self.model.name,
            max_input_tokens=self.model.context_window,
            max_output_tokens=self.max_tokens,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **_traceable(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # the key of LangChain's caches: two contexts must never share one
        return super()._get_llm_string(stop=stop, **_traceable(kwargs))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may call.

        Args:
            tools: functions, Pydantic classes, LangChain's tools, or schemas as OpenAI writes them; none leave the
                model as it is.
            tool_choice: None or "auto" leaves it to the model whether it calls one; "any", "required" or True makes it
                call one, a tool's name that one, and "none" none.
            parallel_tool_calls: an answer may hold several calls.
            strict: without effect; calls always follow the schemas.
            **kwargs: bound, too.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        if not schemas and tool_choice in (None, False, "auto", "none"):
            return self.bind(**kwargs)
        toolbox(schemas, tool_choice, parallel_tool_calls)  # what is wrong with them is said now
        return self.bind(tools=schemas, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: StructuredOutputMethod = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | Any]:
        """This model, whose answers are objects of ``schema``.

        Args:
            schema: a Pydantic class (answers are instances), a TypedDict or a JSON schema (answers are dicts).
            method: "json_schema" asks for JSON of this schema, "function_calling" for a call of a tool with these
                parameters, "json_mode" for any JSON object, whose form the prompt then has to describe.
            include_raw: answer with ``{"raw": message, "parsed": object or None, "parsing_error": error or None}``.
            strict: without effect; what can be said in a schema is always enforced.
            **kwargs: bound, too.

        Raises:
            ConfigError: ``method`` is none of these, or ``schema`` no schema.
        """
        parser = parser_for(schema, method)
        described = convert_to_json_schema(schema)
        output: dict[str, Any] = {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": described}}
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            llm = self.bind_tools([schema], tool_choice=name, **output, **kwargs)
        else:
            form = {"type": "json_schema", "json_schema": {"name": described.get("title", ""), "schema": described}}
            llm = self.bind(response_format=form if method == "json_schema" else ANY_OBJECT, **output, **kwargs)
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model, turns, arguments, calls_tools = self._prepared(messages, stop, kwargs)
        completion = model.complete(turns, **arguments)
        message = AIMessage(
            content=completion.text,
            usage_metadata=usage_of(completion),
            response_metadata=details_of(model, completion),
        )
        if calls_tools:
            answer = read_calls(completion.text)
            message = message.model_copy(update={"content": answer.text})
            message.tool_calls = [
                ToolCall(name=call.name, args=call.arguments, id=_call_id(), type="tool_call") for call in answer.calls
            ]
            if answer.unfinished:
                message.invalid_tool_calls = [
                    InvalidToolCall(
                        name=None, args=answer.unfinished, id=_call_id(), error=CUT, type="invalid_tool_call"
                    )
                ]
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        # LangChain reports each chunk to the callbacks itself; the last one alone carries the counts, as they add up
        model, turns, arguments, calls_tools = self._prepared(messages, stop, kwargs)
        text, given = "", 0
        with closing(model.stream(turns, **arguments)) as pieces:
            for piece in pieces:
                text += piece
                words = words_before_calls(text) if calls_tools else text
                if len(words) > given:
                    yield ChatGenerationChunk(message=AIMessageChunk(content=words[given:]))
                    given = len(words)
        if calls_tools:
            answer = read_calls(text)
            chunks = [
                ToolCallChunk(
                    name=call.name, args=json.dumps(call.arguments), id=_call_id(), index=index, type="tool_call_chunk"
                )
                for index, call in enumerate(answer.calls)
            ]
            if answer.unfinished:
                chunks.append(
                    ToolCallChunk(
                        name=None, args=answer.unfinished, id=_call_id(), index=len(chunks), type="tool_call_chunk"
                    )
                )
            if chunks or len(answer.text) > given:
                rest = AIMessageChunk(content=answer.text[given:], tool_call_chunks=chunks)
                yield ChatGenerationChunk(message=rest)
        assert pieces.completion is not None  # it was read to its end
        last = AIMessageChunk(
            content="",
            chunk_position="last",
            usage_metadata=usage_of(pieces.completion),
            response_metadata=details_of(model, pieces.completion),
        )
        yield ChatGenerationChunk(message=last)

    def _prepared(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[SharedLLMModel, list[dict[str, str]], dict[str, Any], bool]:
        """The model of one call, the turns it reads, its further arguments, and whether it may call tools."""
        kwargs = dict(kwargs)
        tools, (schema, told) = kwargs.pop("tools", None), schema_of(kwargs.pop("response_format", None))
        choice, parallel = kwargs.pop("tool_choice", None), kwargs.pop("parallel_tool_calls", False)
        model, arguments = self._call_arguments(stop, kwargs)
        history = history_of_run()
        if history is not None and history.store.model.identity == model.identity:
            messages, arguments["context"] = history.compressed(messages, arguments.get("context"))
        turns = to_conversation(messages, with_tools=bool(tools))
        box = toolbox(tools, choice, parallel, schema) if tools else None
        if box is not None:
            turns = with_instructions(turns, box.instructions(), model.system_prompt)
            arguments["grammar"] = box.grammar()
        elif schema is not None:
            turns = with_schema(turns, schema) if told else turns
            arguments["response_schema"] = schema
        return model, turns, arguments, box is not None


def _call_id() -> str:
    return f"call_{uuid4().hex}"


def _traceable(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call with JSON values in place of a context and a model."""
    described = dict(kwargs)
    if "context" in kwargs:
        described["context"] = describe(kwargs["context"])
    if "model" in kwargs:
        model = load_model(kwargs["model"])
        described["model"] = f"{model.name} ({model.identity})"
    return described
