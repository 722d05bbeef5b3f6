"""SharedLLM: the model as a LlamaIndex LLM."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt as default_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import default_completion_to_prompt

from shared_context.errors import ConfigError, ModelMismatchError, QueryError
from shared_context.integrations.llamaindex.copies import Sharing
from shared_context.integrations.llamaindex.messages import to_conversation
from shared_context.integrations.llamaindex.structured import Structured
from shared_context.integrations.llamaindex.tools import Calling, blocks_of
from shared_context.integrations.loading import load_model, loaded_model
from shared_context.integrations.turns import toolbox, with_instructions, with_schema
from shared_context.model.tool_calls import words_before_calls

if TYPE_CHECKING:
    from shared_context import Completion, Selection, SharedLLMModel

DEFAULT_MODEL = "smollm2-135m-instruct"

_LOADING = ("adapter", "dtype", "device")

Response = TypeVar("Response", CompletionResponse, ChatResponse)


def _over_context(call: Callable) -> Callable:
    """Turns ``context=`` of a call into an LLM bound to it, so that callbacks and events get arguments that can be
    logged as JSON.
    """

    def bind(llm: SharedLLM, kwargs: dict[str, Any]) -> SharedLLM:
        return llm.with_context(kwargs.pop("context")) if "context" in kwargs else llm

    if inspect.iscoroutinefunction(call):

        @wraps(call)
        async def bound(self: SharedLLM, *args: Any, **kwargs: Any) -> Any:
            return await call(bind(self, kwargs), *args, **kwargs)

    else:

        @wraps(call)
        def bound(self: SharedLLM, *args: Any, **kwargs: Any) -> Any:
            return call(bind(self, kwargs), *args, **kwargs)

    return bound


class SharedLLM(Sharing, Structured, Calling):
    r"""A :class:`SharedLLMModel` as a LlamaIndex LLM, for pipelines that paste text and for those that inject KV.

    ``llm.chat(messages, context=selection)`` answers over a selection of a context store; so do ``complete`` and the
    streaming and async forms, and everything that is given ``llm.with_context(selection)``. Async calls work in a
    thread, async streams yield each piece when it is there.

    Responses carry the call's figures in ``additional_kwargs`` and in ``raw["usage"]``: prompt_tokens,
    completion_tokens, total_tokens, context_entries (injected KV) and time_to_first_token (seconds). A stream carries
    them in its last response, whose delta is empty.

    It calls tools (``FunctionAgent``, ``predict_and_call``) and fills classes (``structured_predict``,
    ``as_structured_llm``, ``output_cls``): it is told what is wanted and can write nothing else. The form is certain;
    what stands in it is the model's, and the default model, of 135 million parameters, hardly knows when to call.
    ``tools`` and ``tool_choice``, as OpenAI writes them, go with ``chat`` too, and so do ``response_schema`` (a JSON
    schema) and ``grammar``, which bind an answer without telling the model.

    Args:
        model: a loaded :class:`SharedLLMModel`, or a name or folder for ``SharedLLMModel.from_pretrained``; all that
            name the same model and settings share one.
        adapter, dtype, device: as in ``from_pretrained``, where ``model`` is a name.
        model_kwargs: further arguments of ``from_pretrained`` where ``model`` is a name (system_prompt, revision, ...).
        max_new_tokens: the most tokens of an answer.
        temperature: 0 is greedy decoding.
        top_p, top_k, stop, seed: as in ``SharedLLMModel.generate``.
        generate_kwargs: further generation settings of transformers, by their names there.

    All generation settings can be given per call as well: ``llm.complete(prompt, max_new_tokens=16, stop=["\n"])``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(default=DEFAULT_MODEL, description="Name or folder of the model.")
    adapter: str | None = Field(default=None, description="A trained adapter, by name or folder.")
    dtype: str = Field(default="auto", description="Of weights and KV, by torch's name.")
    device: str = Field(default="auto", description="Where the weights are.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Arguments the model is loaded with.")
    max_new_tokens: int = Field(default=256, gt=0, description="The most tokens of an answer.")
    temperature: float = Field(default=0.0, ge=0.0, description="0 is greedy decoding.")
    top_p: float | None = Field(default=None, gt=0.0, le=1.0, description="Share of probability sampled from.")
    top_k: int | None = Field(default=None, gt=0, description="Number of tokens sampled from.")
    stop: list[str] = Field(default_factory=list, description="Strings that end an answer; not part of it.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    generate_kwargs: dict[str, Any] = Field(default_factory=dict, description="Further generation settings.")

    _model: Any = PrivateAttr()
    _context: Any = PrivateAttr(default=None)

    def __init__(self, model: SharedLLMModel | str | Path = DEFAULT_MODEL, **fields: Any):
        # A path, a torch dtype or device by its name, so that the settings can be written as JSON.
        named = {n: str(fields[n]).removeprefix("torch.") for n in _LOADING if fields.get(n) is not None}
        loading = {name: named.get(name) for name in _LOADING if name in fields}
        model = load_model(model, **{**loading, **(fields.get("model_kwargs") or {})})
        fields |= named
        super().__init__(**{**fields, "model": model.name})
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        return "SharedLLM"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> SharedLLM:
        """An LLM of the settings that ``to_dict`` gave; a loaded ``model`` may be passed instead of its name."""
        if not isinstance(kwargs.get("model", ""), str | Path):
            data = {name: value for name, value in data.items() if name not in _LOADING}
        return super().from_dict(data, **kwargs)

    def _elsewhere(self) -> dict[str, Any]:
        if not isinstance(self._context, str | None):
            raise ConfigError(
                "the LLM is bound to a selection, which stays with its store and cannot be pickled: pickle the LLM "
                "that it was made of, and select again"
            )
        return {"identity": self._model.identity, "context": self._context}

    def _find_again(self, elsewhere: dict[str, Any]) -> None:
        """Take the model that is loaded already, or load it by its name.

        Raises:
            ModelNotFoundError: there is none of this name.
            ModelMismatchError: the model of this name is another one, or another adapter was on it.
        """
        loading = {name: getattr(self, name) for name in _LOADING}
        found = loaded_model(elsewhere["identity"]) or load_model(self.model, **{**loading, **self.model_kwargs})
        if found.identity != elsewhere["identity"]:
            raise ModelMismatchError(
                f"the pickled LLM ran {self.model} ({elsewhere['identity']}), and what is loaded by that name is "
                f"{found.identity}: name the adapter, SharedLLM({self.model!r}, adapter=...), before it is pickled"
            )
        self._model, self._context = found, elsewhere["context"]

    @property
    def shared_model(self) -> SharedLLMModel:
        """The model behind this LLM."""
        return self._model

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self._model.context_window,
            num_output=self.max_new_tokens,
            model_name=self.model,
            is_chat_model=True,
            is_function_calling_model=True,
        )

    def with_context(self, context: Selection | str | None) -> SharedLLM:
        """This LLM, with every call answered over ``context`` unless the call brings its own.

        For what takes an LLM but passes no arguments on to it: ``predict``, structured output, chat engines, agents.
        """
        bound = self.model_copy()
        bound._context = context
        return bound

    # ---------------------------------------------------------------------------------------------------- completion

    @_over_context
    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        completion = self._model.complete(**self._completion(prompt, formatted, kwargs))
        return _completion_response(completion.text, None, completion)

    @_over_context
    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._stream(self._completion(prompt, formatted, kwargs), _completion_response)

    @_over_context
    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        call = self._completion(prompt, formatted, kwargs)
        completion = await self._model.acomplete(**call)
        return _completion_response(completion.text, None, completion)

    @_over_context
    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        call = self._completion(prompt, formatted, kwargs)
        return await self._astream(call, _completion_response)

    # ---------------------------------------------------------------------------------------------------------- chat

    @_over_context
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call, respond = self._conversation(messages, kwargs)
        completion = self._model.complete(**call)
        return respond(completion.text, None, completion)

    @_over_context
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream(*self._conversation(messages, kwargs))

    @_over_context
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        call, respond = self._conversation(messages, kwargs)
        completion = await self._model.acomplete(**call)
        return respond(completion.text, None, completion)

    @_over_context
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return await self._astream(*self._conversation(messages, kwargs))

    # ----------------------------------------------------------------------------------------------------- arguments

    def _completion(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the model for a prompt: one user message, unless it comes in the model's own format."""
        if not isinstance(prompt, str):
            raise QueryError(f"the prompt is a {type(prompt).__name__}: complete() takes a text, chat() takes messages")
        to_prompt = self.completion_to_prompt
        if not formatted and to_prompt is not None and to_prompt is not default_completion_to_prompt:
            prompt, formatted = to_prompt(prompt), True
        return self._call(prompt, formatted, kwargs)

    def _conversation(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable[..., ChatResponse]]:
        """Arguments of the model for messages, and what makes a response of its answer.

        The messages are put in the model's chat template, unless the user brought another format.
        """
        kwargs = dict(kwargs)
        tools, schema = kwargs.pop("tools", None), kwargs.pop("told_schema", None)
        choice, parallel = kwargs.pop("tool_choice", None), kwargs.pop("parallel_tool_calls", False)
        box = toolbox(tools, choice, parallel) if tools else None
        if schema is not None:
            kwargs["response_schema"] = schema
        if box is not None:
            kwargs["grammar"] = box.grammar()
        respond = _chat_response if box is None else _calling_response
        to_prompt = self.messages_to_prompt
        if to_prompt is not None and to_prompt is not default_messages_to_prompt:
            return self._call(to_prompt(messages), True, kwargs), respond
        turns = to_conversation(messages, with_tools=bool(tools))
        if box is not None and turns:
            turns = with_instructions(turns, box.instructions(), self._model.system_prompt)
        if schema is not None and turns:
            turns = with_schema(turns, schema)
        return self._call(turns, False, kwargs), respond

    def _call(self, prompt: str | list[dict[str, str]], formatted: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "formatted": formatted,
            "context": self._context,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop": self.stop or None,
            "seed": self.seed,
            **self.generate_kwargs,
            **kwargs,
        }

    def _stream(self, call: dict[str, Any], respond: Callable[..., Response]) -> Generator[Response, None, None]:
        stream = self._model.stream(**call)  # now, not at the first piece, so that what is refused is refused here

        def responses() -> Generator[Response, None, None]:
            text = ""
            with closing(stream):  # a consumer that leaves early ends the generation
                for piece in stream:
                    text += piece
                    yield respond(text, piece, None)
                yield respond(stream.completion.text, "", stream.completion)

        return responses()

    async def _astream(self, call: dict[str, Any], respond: Callable[..., Response]) -> AsyncGenerator[Response, None]:
        stream = await asyncio.to_thread(self._model.stream, **call)

        async def responses() -> AsyncGenerator[Response, None]:
            text = ""
            try:
                while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                    text += piece
                    yield respond(text, piece, None)
                yield respond(stream.completion.text, "", stream.completion)
            finally:
                await asyncio.to_thread(stream.close)

        return responses()


# ---------------------------------------------------------------------------------------------------------- responses


def _usage(completion: Completion) -> dict[str, Any]:
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "context_entries": completion.context_entries,
        "time_to_first_token": completion.time_to_first_token,
    }


def _figures(completion: Completion | None) -> dict[str, Any]:
    """``raw`` and ``additional_kwargs`` of a response; both are what LlamaIndex's token counters read."""
    if completion is None:
        return {}
    usage = _usage(completion)
    raw = {"finish_reason": completion.finish_reason, "seconds": completion.seconds, "usage": usage}
    return {"raw": raw, "additional_kwargs": dict(usage)}


def _completion_response(text: str, delta: str | None, completion: Completion | None) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, **_figures(completion))


def _chat_response(text: str, delta: str | None, completion: Completion | None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, **_figures(completion))


def _calling_response(text: str, delta: str | None, completion: Completion | None) -> ChatResponse:
    """As :func:`_chat_response`, of an answer that may call tools: a call is there when it is whole."""
    if completion is None:
        words = words_before_calls(text)
        given = words_before_calls(text.removesuffix(delta or ""))
        message = ChatMessage(role=MessageRole.ASSISTANT, content=words)
        return ChatResponse(message=message, delta=words[len(given) :])
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks_of(text))
    rest = None if delta is None else (message.content or "")[len(words_before_calls(text)) :]
    return ChatResponse(message=message, delta=rest, **_figures(completion))
