"""Decoding: from requests to answers, one piece at a time or a batch at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StopStringCriteria,
)

from shared_context.config import require
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.constraints import Constraint
from shared_context.model.decoder import InjectingDecoder, release
from shared_context.model.generation import Clock, Completion, Detokenizer, cut_at_stop, one_by_one, until_stop
from shared_context.model.requests import Request

SEVERAL_ANSWERS = ("num_beams", "num_return_sequences")
"""Fields of GenerationConfig that ask for more than one answer to be worked on, which no stream does."""


def stop_strings(*given: str | Sequence[str] | None) -> list[str]:
    """All stop strings that a call was given, in whatever form."""
    return [s for stop in given for s in ([stop] if isinstance(stop, str) else stop or ()) if s]


def generation_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    options: dict[str, Any],
) -> GenerationConfig:
    """What transformers' ``generate`` is told; the arguments are those of ``SharedLLMModel.complete``.

    Raises:
        ConfigError: where a value is out of range or a field unknown.
    """
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be 1 or more tokens")
    require(temperature >= 0, "temperature", temperature, "must be 0 or more")
    require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "must be above 0 and at most 1")
    require(top_k is None or top_k >= 0, "top_k", top_k, "must be 1 or more tokens, or 0 for no limit")
    asked = options.get("do_sample")
    sampled = temperature > 0 if asked is None else bool(asked)
    require(
        sampled or temperature == 0,
        "temperature",
        temperature,
        "do_sample=False takes the likeliest token; drop one of the two",
    )
    sampling: dict[str, Any] = {"do_sample": sampled}
    if sampled:
        sampling |= {"temperature": temperature or 1.0, "top_p": top_p or 1.0, "top_k": top_k or 0}
    unknown = [name for name in options if not hasattr(GenerationConfig(), name)]
    require(not unknown, "generation_options", unknown, "transformers' GenerationConfig has no such fields")
    own = model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    ends = end if isinstance(end, list) else [end]
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    return GenerationConfig(
        **{"max_new_tokens": max_new_tokens, "eos_token_id": end, "pad_token_id": padding, **options, **sampling}
    )


def _criteria(tokenizer: PreTrainedTokenizerBase, clock: Clock, stop: Sequence[str]) -> list[StoppingCriteria]:
    # GenerationConfig's own stop_strings are lost on the way to one_by_one.
    return [clock, StopStringCriteria(tokenizer, list(stop))] if stop else [clock]


def _processors(constraint: Constraint | None) -> LogitsProcessorList:
    return LogitsProcessorList([] if constraint is None else [constraint.processor()])


def answer_batch(
    decoder: InjectingDecoder,
    requests: Sequence[Request],
    settings: GenerationConfig,
    stop: Sequence[str],
    seed: int | None,
    constraint: Constraint | None,
) -> list[Completion]:
    """One batch through transformers' ``generate``."""
    clock = Clock()
    with decoder.lock, torch.inference_mode():
        inputs, injected = decoder.inputs(requests, settings.max_new_tokens)
        several = max(settings.num_beams or 1, settings.num_return_sequences or 1)
        if several > 1:
            inputs[CACHE_ARGUMENT].batch_repeat_interleave(several)
        random = nullcontext() if seed is None else torch.random.fork_rng()
        with injected, random:
            if seed is not None:
                torch.manual_seed(seed)
            ids = decoder.reader(requests[0]).generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=_criteria(decoder.tokenizer, clock, stop),
                logits_processor=_processors(constraint),
            )
        release(inputs)
    answers = ids[:, inputs["input_ids"].shape[1] :].tolist()
    each = len(answers) // len(requests)
    return [
        _completion(decoder.tokenizer, requests[row // each], answer, settings, stop, clock)
        for row, answer in enumerate(answers)
    ]


def answer_pieces(
    decoder: InjectingDecoder,
    request: Request,
    settings: GenerationConfig,
    stop: Sequence[str],
    seed: int | None,
    constraint: Constraint | None,
    completion: list[Completion],
) -> Generator[str]:
    """The pieces of one answer; the lock and torch's modes are left between them, for others to compute."""
    clock, text = Clock(), Detokenizer(decoder.tokenizer)
    with decoder.lock, torch.inference_mode():
        inputs, injected = decoder.inputs([request], settings.max_new_tokens, in_place=True)
        chance = None if seed is None else torch.Generator(decoder.hf_model.device).manual_seed(seed)
        tokens = decoder.reader(request).generate(
            **inputs,
            generation_config=settings,
            stopping_criteria=_criteria(decoder.tokenizer, clock, stop),
            logits_processor=_processors(constraint),
            custom_generate=partial(one_by_one, generator=chance),
        )
    answer: list[int] = []

    def pieces() -> Generator[str]:
        while True:
            with decoder.lock, torch.inference_mode(), injected:
                ids = next(tokens, None)
            if ids is None:
                break
            answer.append(ids[0, -1].item())
            yield text.put(answer[-1])
        yield text.end()

    try:
        yield from until_stop(pieces(), stop)
    finally:
        release(inputs)
        completion.append(_completion(decoder.tokenizer, request, answer, settings, stop, clock))


def _completion(
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    answer: list[int],
    settings: GenerationConfig,
    stop: Sequence[str],
    clock: Clock,
) -> Completion:
    """What came of a request.

    Args:
        answer: the new token ids, which may go on with padding after the one that ended it.
    """
    seconds = clock.elapsed()
    end = settings.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    length = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    text = tokenizer.decode(answer[:length], skip_special_tokens=True)
    shown = cut_at_stop(text, stop)
    stopped = length < len(answer) or len(shown) < len(text) or length < settings.max_new_tokens
    return Completion(
        text=shown,
        finish_reason="stop" if stopped else "length",
        prompt_tokens=len(request.prompt),
        context_entries=request.context_entries,
        completion_tokens=length,
        time_to_first_token=clock.first_token or seconds,
        seconds=seconds,
    )
