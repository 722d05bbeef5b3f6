"""Objects from a LlamaIndex LLM whose decoding follows a JSON schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.prompts import BasePromptTemplate

from shared_context.errors import QueryError

dispatcher = get_dispatcher(__name__)


class Structured(FunctionCallingLLM):
    """An LLM with ``structured_predict`` in all its forms: told the schema of a class, it can write nothing else.

    Raises (of its methods):
        QueryError: an answer ended at its most tokens before the object was whole.
    """

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return _read(self.chat(messages, **_asking(output_cls, llm_kwargs)), output_cls)

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return _read(await self.achat(messages, **_asking(output_cls, llm_kwargs)), output_cls)

    # The forms that stream are LlamaIndex's; these say where their objects come from.

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        found = None
        for response in self.stream_chat(messages, **_asking(output_cls, llm_kwargs)):
            found = _so_far(response, output_cls, found)
            yield found

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        responses = await self.astream_chat(messages, **_asking(output_cls, llm_kwargs))

        async def objects() -> AsyncGenerator[Any, None]:
            found = None
            async for response in responses:
                found = _so_far(response, output_cls, found)
                yield found

        return objects()


def _asking(output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of a call that is to answer with an object of a class."""
    return {**(llm_kwargs or {}), "told_schema": output_cls.model_json_schema()}


def _read(response: ChatResponse, output_cls: type[BaseModel]) -> BaseModel:
    _check(response, output_cls)
    return output_cls.model_validate_json(response.message.content or "")


def _so_far(response: ChatResponse, output_cls: type[BaseModel], found: Any) -> Any:
    """What the object is so far: one of the class once it is whole, before that one with what is there of it."""
    if response.raw is None:  # in the middle
        return process_streaming_content_incremental(response, output_cls, found)
    return _read(response, output_cls)


def _check(response: ChatResponse, output_cls: type[BaseModel]) -> None:
    """Say in words where an answer was cut, which the parser would call broken JSON."""
    if response.raw is not None and response.raw["finish_reason"] == "length":
        raise QueryError(
            f"the answer ended at its most tokens before the {output_cls.__name__} was whole: raise max_new_tokens, or "
            f"give its texts a max_length and its lists one, too. It began {(response.message.content or '')[:80]!r}"
        )
