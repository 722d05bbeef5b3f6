"""The injecting decoder as a LangChain completion model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import LLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import RunnableConfig, run_in_executor
from langchain_core.runnables.config import get_config_list

from shared_context import Completion, SharedLLMModel
from shared_context.integrations.langchain.settings import GenerationSettings, details_of, usage_of

RUN_ARGUMENTS = {"tags", "metadata", "run_name", "run_id"}
"""Arguments of ``generate`` that describe the run and not the answer."""


class SharedLLM(GenerationSettings, LLM):
    """Text in, text out; a batch of prompts is decoded together.

        SharedLLM(model="smollm2-135m-instruct").invoke("When does the night shift start?", context=selection)

    ``context`` (None, a string that is pasted, a Selection, or in ``batch`` a list of these, one per prompt) goes with
    a call or with ``bind``.

    Args:
        formatted: the prompt is already in the model's own format; otherwise it is one user message of a chat.

    Raises:
        WindowExceededError: context, prompt and answer do not fit the model's window.
    """

    formatted: bool = False

    @property
    def _llm_type(self) -> str:
        return "shared-context"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "formatted": self.formatted}

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers to ``prompts`` with what they took."""
        return super(SharedLLM, self._for_call(kwargs)).generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers to ``prompts`` with what they took, from a thread."""
        return await super(SharedLLM, self._for_call(kwargs)).agenerate(prompts, stop, callbacks, **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Answers to ``inputs``, decoded together."""
        return super().batch(inputs, self._undivided(inputs, config, kwargs), **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Answers to ``inputs``, decoded together in a thread."""
        return await super().abatch(inputs, self._undivided(inputs, config, kwargs), **kwargs)

    @staticmethod
    def _undivided(
        inputs: list[LanguageModelInput], config: RunnableConfig | list[RunnableConfig] | None, kwargs: dict[str, Any]
    ) -> RunnableConfig | list[RunnableConfig] | None:
        # By max_concurrency BaseLLM divides the inputs and hands each part the whole list of contexts.
        if not isinstance(kwargs.get("context"), list):
            return config
        return [{**each, "max_concurrency": None} for each in get_config_list(config, len(inputs))]

    def _for_call(self, kwargs: dict[str, Any]) -> SharedLLM:
        # BaseLLM's cache key leaves out what a call passes: with a context it would return another context's answer
        return self.model_copy(update={"cache": False}) if kwargs.keys() - RUN_ARGUMENTS else self

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return self._generate([prompt], stop, run_manager, **kwargs).generations[0][0].text

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        model, arguments = self._call_arguments(stop, {"formatted": self.formatted, **kwargs})
        context = arguments.pop("context", None)
        contexts = context if isinstance(context, list) else [context] * len(prompts)
        completions = model.complete(prompts, context=contexts, **arguments)
        return LLMResult(
            generations=[[Generation(text=each.text, generation_info=_info(model, each))] for each in completions],
            llm_output={"model_name": model.name},
        )

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        # LLM would ask for one prompt after the other
        return await run_in_executor(None, self._generate, prompts, stop, **kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        model, arguments = self._call_arguments(stop, {"formatted": self.formatted, **kwargs})
        with closing(model.stream(prompt, **arguments)) as pieces:
            for piece in pieces:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        assert pieces.completion is not None  # it was read to its end
        yield GenerationChunk(text="", generation_info=_info(model, pieces.completion))


def _info(model: SharedLLMModel, completion: Completion) -> dict[str, Any]:
    return {**details_of(model, completion), "usage_metadata": usage_of(completion)}
