"""The injecting decoder as a LangChain chat model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import ensure_config

from shared_context import SharedLLMModel
from shared_context.integrations.langchain.documents import describe
from shared_context.integrations.langchain.history import SharedContextChatMessageHistory
from shared_context.integrations.langchain.messages import to_conversation
from shared_context.integrations.langchain.settings import GenerationSettings, details_of, load_model, usage_of


class ChatSharedLLM(GenerationSettings, BaseChatModel):
    """A chat model that reads a Selection as injected KV.

        llm = ChatSharedLLM(model="smollm2-135m-instruct", max_tokens=64)
        llm.invoke("When does the night shift start?", context=store.select("When does the night shift start?"))

    ``context`` (None, a string that is pasted, or a Selection) goes with a call or with ``bind``. Answers carry
    ``usage_metadata`` (injected KV entries count as ``cache_read`` input) and ``response_metadata`` with
    ``model_name``, ``finish_reason``, ``time_to_first_token`` (seconds) and ``context_entries``.

    In a RunnableWithMessageHistory over a SharedContextChatMessageHistory the older turns are injected too.

    Tool calling and structured output are not implemented: a plain text model has neither.

    Args:
        streaming: generate through the streaming path in ``invoke`` too, so that callbacks see every token.

    Raises:
        QueryError: a message holds an image or anything else that is not text.
        WindowExceededError: context, messages and answer do not fit the model's window.
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
            tool_calling=False,
            structured_output=False,
        )

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **_traceable(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # the key of LangChain's caches: two contexts must never share one
        return super()._get_llm_string(stop=stop, **_traceable(kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model, messages, arguments = self._prepared(messages, stop, kwargs)
        completion = model.complete(to_conversation(messages), **arguments)
        message = AIMessage(
            content=completion.text,
            usage_metadata=usage_of(completion),
            response_metadata=details_of(model, completion),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        # LangChain reports each chunk to the callbacks itself; the last one alone carries the counts, as they add up
        model, messages, arguments = self._prepared(messages, stop, kwargs)
        with closing(model.stream(to_conversation(messages), **arguments)) as pieces:
            for piece in pieces:
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        last = AIMessageChunk(
            content="",
            chunk_position="last",
            usage_metadata=usage_of(pieces.completion),
            response_metadata=details_of(model, pieces.completion),
        )
        yield ChatGenerationChunk(message=last)

    def _prepared(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[SharedLLMModel, list[BaseMessage], dict[str, Any]]:
        """The model of one call, the messages it reads and its further arguments."""
        model, arguments = self._call_arguments(stop, kwargs)
        # where RunnableWithMessageHistory puts the history whose messages it has put into the prompt
        history = ensure_config().get("configurable", {}).get("message_history")
        if isinstance(history, SharedContextChatMessageHistory) and history.store.model.identity == model.identity:
            messages, arguments["context"] = history.compressed(messages, arguments.get("context"))
        return model, messages, arguments


def _traceable(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call with JSON values in place of a context and a model."""
    described = dict(kwargs)
    if "context" in kwargs:
        described["context"] = describe(kwargs["context"])
    if "model" in kwargs:
        model = load_model(kwargs["model"])
        described["model"] = f"{model.name} ({model.identity})"
    return described
