"""Answering: one prompt or many, whole or piece by piece, awaited or not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, overload

from transformers import GenerationConfig

from shared_context.config import require
from shared_context.errors import ConfigError
from shared_context.model.assembled import AssembledPrompt, assembled
from shared_context.model.batching import batches
from shared_context.model.constraints import Constraint
from shared_context.model.conversation import Message
from shared_context.model.decoding import (
    SEVERAL_ANSWERS,
    answer_batch,
    answer_pieces,
    generation_settings,
    seed_number,
    stop_strings,
    whole_number,
)
from shared_context.model.generation import AsyncCompletionStream, Completion, CompletionStream
from shared_context.model.requests import Context, is_single
from shared_context.model.stacked import StackedModel

Batch = Sequence[str] | Sequence[Sequence[Message]]
"""Several prompts. A single one with ``num_return_sequences`` gives a list, too, which no type says."""


class AnsweringModel(StackedModel):
    """A model that answers, over an injected context or none."""

    @overload
    def generate(self, prompt: str | Sequence[Message], **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Batch, **options: Any) -> list[str]: ...
    def generate(self, prompt: str | Sequence, **options: Any) -> str | list[str]:
        """Answer, as text. Takes what :meth:`complete` takes; a batch of prompts gives a list."""
        completions = self.complete(prompt, **options)
        return [c.text for c in completions] if isinstance(completions, list) else completions.text

    @overload
    def complete(
        self,
        prompt: str | Sequence[Message],
        *,
        context: Context | str | None = ...,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float | None = ...,
        top_k: int | None = ...,
        stop: str | Sequence[str] | None = ...,
        seed: int | None = ...,
        formatted: bool = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        response_schema: Mapping[str, Any] | None = ...,
        grammar: str | None = ...,
        batch_size: int = ...,
        **generation_options: Any,
    ) -> Completion: ...
    @overload
    def complete(
        self,
        prompt: Batch,
        *,
        context: Context | str | Sequence[Context | str | None] | None = ...,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float | None = ...,
        top_k: int | None = ...,
        stop: str | Sequence[str] | None = ...,
        seed: int | None = ...,
        formatted: bool = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        response_schema: Mapping[str, Any] | None = ...,
        grammar: str | None = ...,
        batch_size: int = ...,
        **generation_options: Any,
    ) -> list[Completion]: ...
    def complete(
        self,
        prompt: str | Sequence,
        *,
        context: Context | str | Sequence[Context | str | None] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        formatted: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        batch_size: int = 8,
        **generation_options: Any,
    ) -> Completion | list[Completion]:
        """Answer, with what it took.

        Args:
            prompt: a question; or a conversation, as a list of ``{"role", "content"}``; or a batch, as a list of
                either.
            context: a Selection, whose KV are injected; text, which is pasted into the same prompt; or None. For a
                batch one for all prompts, or a list with one for each.
            max_new_tokens: tokens of the answer at most.
            temperature: 0 takes the likeliest token every time; above, tokens are sampled. With ``do_sample=True`` 0
                stands for 1.
            top_p, top_k: limits of the sampling; None leaves them off. Where the likeliest token is taken they change
                nothing: it lies within them.
            stop: strings that end the answer and are not part of it; ``stop_strings`` is the same.
            seed: of the sampling.
            formatted: the prompt is in the model's own format already, its control tokens with it.
            chat_template_kwargs: arguments of the chat template, over those that the model was made with.
            response_schema: a JSON schema; the answer is one line of JSON that follows it, unless max_new_tokens end it
                before. An object has the properties that its schema names and no others, where it says nothing else.
            grammar: a grammar that the answer follows instead, in llguidance's form of Lark.
            batch_size: prompts that run together.
            **generation_options: further fields of transformers' GenerationConfig.

        Raises:
            WindowExceededError: before any computing, where prompt, context and answer do not fit the window.
            QueryError: where a prompt is empty.
            ConfigError: where another argument is wrong.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, "tokens")
        stop, seed = stop_strings(stop, generation_options.pop("stop_strings", None)), seed_number(seed)
        settings = generation_settings(
            self.ends, self.tokenizer, max_new_tokens, temperature, top_p, top_k, stop, generation_options
        )
        constraint = self._constraint(response_schema, grammar, settings)
        single, requests = self._requests.read(
            prompt, context, formatted, max_new_tokens, self.identity, chat_template_kwargs
        )
        batch_size = whole_number("batch_size", batch_size, "prompts")
        if single and all(getattr(settings, option) in (None, 1) for option in SEVERAL_ANSWERS):
            # As a stream, so that both give the same answer and the same time to its first token.
            pieces = partial(answer_pieces, self._decoder, requests[0], settings, stop, seed, constraint)
            stream = CompletionStream(pieces, self._decoder.steps)
            for _ in stream:
                pass
            assert stream.completion is not None  # it was read to its end
            return stream.completion
        several = settings.num_return_sequences or 1
        answers: dict[int, list[Completion]] = {}
        for batch in batches(
            requests, batch_size, [max_new_tokens] * len(requests), self.context_window, self.injection.in_cache
        ):
            completions = answer_batch(self._decoder, [requests[i] for i in batch], settings, stop, seed, constraint)
            answers |= {i: completions[n * several : (n + 1) * several] for n, i in enumerate(batch)}
        completions = [completion for i in range(len(requests)) for completion in answers[i]]
        return completions[0] if single and several == 1 else completions

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        context: Context | str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        formatted: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        **generation_options: Any,
    ) -> CompletionStream:
        """Answer one prompt piece by piece; takes and raises what :meth:`complete` does, but no batch.

        What is wrong with the call is raised here; nothing is computed before the first piece is asked for.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, "tokens")
        stop, seed = stop_strings(stop, generation_options.pop("stop_strings", None)), seed_number(seed)
        settings = generation_settings(
            self.ends, self.tokenizer, max_new_tokens, temperature, top_p, top_k, stop, generation_options
        )
        single, requests = self._requests.read(
            prompt, context, formatted, max_new_tokens, self.identity, chat_template_kwargs
        )
        constraint = self._constraint(response_schema, grammar, settings)
        if not single:
            raise ConfigError(f"stream() takes one prompt, not a batch of {len(requests)}; use generate().")
        for option in SEVERAL_ANSWERS:
            given = getattr(settings, option)
            require(given in (None, 1), option, given, "a stream has one answer; use complete()")
        pieces = partial(answer_pieces, self._decoder, requests[0], settings, stop, seed, constraint)
        return CompletionStream(pieces, self._decoder.steps)

    @overload
    async def agenerate(self, prompt: str | Sequence[Message], **options: Any) -> str: ...
    @overload
    async def agenerate(self, prompt: Batch, **options: Any) -> list[str]: ...
    async def agenerate(self, prompt: str | Sequence, **options: Any) -> str | list[str]:
        """:meth:`generate`, in a thread; cancelling it is as in :meth:`acomplete`."""
        completions = await self.acomplete(prompt, **options)
        return [c.text for c in completions] if isinstance(completions, list) else completions.text

    @overload
    async def acomplete(self, prompt: str | Sequence[Message], **options: Any) -> Completion: ...
    @overload
    async def acomplete(self, prompt: Batch, **options: Any) -> list[Completion]: ...
    async def acomplete(self, prompt: str | Sequence, **options: Any) -> Completion | list[Completion]:
        """:meth:`complete`, in a thread.

        Cancelling it ends the generation of a single answer at its next piece. A batch, or several answers to one
        prompt, are computed to their end, and dropped.
        """
        if not is_single(prompt) or any(options.get(option) not in (None, 1) for option in SEVERAL_ANSWERS):
            return await asyncio.to_thread(partial(self.complete, prompt, **options))
        options.pop("batch_size", None)
        stream = self.astream(prompt, **options)
        async for _ in stream:
            pass
        assert stream.completion is not None  # it was read to its end
        return stream.completion

    def astream(self, prompt: str | Sequence[Message], **options: Any) -> AsyncCompletionStream:
        """:meth:`stream`, for ``async for``; what is wrong with the call is raised when the first piece is asked for.

        Cancelling the task that waits for a piece ends the generation.
        """
        return AsyncCompletionStream(partial(self.stream, prompt, **options))

    def _constraint(
        self, response_schema: Mapping[str, Any] | None, grammar: str | None, settings: GenerationConfig
    ) -> Constraint | None:
        constraint = self._constraints.compile(response_schema, grammar, settings.eos_token_id)
        one = constraint is None or settings.num_beams in (None, 1)
        require(one, "num_beams", settings.num_beams, "what follows a schema or a grammar is decoded without beams")
        return constraint

    def assemble(
        self,
        prompt: str | Sequence[Message],
        *,
        context: Context | None = None,
        max_new_tokens: int = 256,
        formatted: bool = False,
    ) -> AssembledPrompt:
        """A prompt with its injected context for another engine that has the same model.

        Where the model has an adapter, what is injected was made with its compressing set, and the engine answers
        behind it with the decoding set (``shared-context export-lora``); without a context as the base model does.

        Args:
            prompt: a question or a conversation.
            context: a Selection at ratio 1; None is none.
            max_new_tokens: tokens of the answer at most, for which there has to be room.
            formatted: as in :meth:`complete`.

        Raises:
            ConfigError: the context is coarser than ratio 1, or not all layers are injected.
            WindowExceededError, QueryError: as in :meth:`complete`.
        """
        single, (request, *_) = self._requests.read(prompt, context, formatted, max_new_tokens, self.identity, None)
        require(single, "prompt", type(prompt).__name__, "must be one prompt, no batch")
        return assembled(self._decoder, request)

    def check_window(
        self,
        prompt: str | Sequence,
        *,
        context: Context | str | Sequence[Context | str | None] | None = None,
        max_new_tokens: int = 256,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise WindowExceededError where :meth:`complete` would; nothing is computed."""
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, "tokens")
        self._requests.read(prompt, context, False, max_new_tokens, self.identity, chat_template_kwargs)
