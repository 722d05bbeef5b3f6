"""Decoding: from requests to answers, one piece at a time or a batch at once."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any, SupportsInt

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from shared_context.config import require, require_count
from shared_context.errors import ConfigError, SharedContextError
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.constraints import Constraint
from shared_context.model.decoder import InjectingDecoder, release
from shared_context.model.generation import (
    Clock,
    Completion,
    Detokenizer,
    StopStrings,
    cut_at_stop,
    one_by_one,
    until_stop,
)
from shared_context.model.prompt import PromptFormat
from shared_context.model.requests import Request
from shared_context.model.steps import Step

SEVERAL_ANSWERS = ("num_beams", "num_return_sequences")
"""Fields of GenerationConfig that ask for more than one answer to be worked on, which no stream does."""

SET_HERE = ("max_new_tokens", "eos_token_id", "pad_token_id", "num_beams")
"""Fields of transformers' ``GenerationConfig`` that :func:`generation_settings` gives besides those of the caller."""
COUNTS = (*SEVERAL_ANSWERS, "min_new_tokens")
"""Fields of GenerationConfig that are counts."""

NOT_GIVEN_BACK = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    "cache_implementation",
)
"""Fields of GenerationConfig that ask for more than text, or for a cache that holds no context."""

LEAST_TEMPERATURE = 1e-6
"""Below it the logits of float32 overflow; at it the likeliest token is as good as certain."""


def whole_number(setting: str, value: SupportsInt, unit: str) -> int:
    """A count as Python's own number, whatever library it comes from.

    Raises:
        ConfigError: where it is not a whole number of 1 or more.
    """
    require_count(setting, value, unit)
    return int(value)


def stop_strings(*given: str | Sequence[str] | None) -> list[str]:
    """All stop strings that a call was given, in whatever form.

    Raises:
        ConfigError: where one of them is no text.
    """
    for strings in given:
        texts = strings is None or isinstance(strings, str | Sequence)
        require(texts, "stop", strings, "must be a text or a list of texts")
    stop = [s for strings in given for s in ([strings] if isinstance(strings, str) else strings or ())]
    for string in stop:
        require(isinstance(string, str), "stop", string, "must be a text or a list of texts")
    return [s for s in stop if s]


def end_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat
) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: of them all, whoever names them.

    Many checkpoints name one end in their configuration and end turns with another, which the tokenizer or only the
    chat template knows. The first is the one that ends a turn.
    """
    configs = [getattr(config, "eos_token_id", None) for config in (model.generation_config, model.config)]
    named = [prompt_format.end_of_turn, *configs, tokenizer.eos_token_id]
    ends = [id for ids in named for id in (ids if isinstance(ids, list) else [ids])]
    return tuple(dict.fromkeys(id for id in ends if id is not None))


def generation_settings(
    ends: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    stop: Sequence[str],
    options: dict[str, Any],
) -> GenerationConfig:
    """What transformers' ``generate`` is told.

    Args:
        ends: ids of the tokens that end an answer.
        tokenizer: the model's.
        max_new_tokens, temperature, top_p, top_k, stop: as in ``SharedLLMModel.complete``.
        options: its ``generation_options``.

    Raises:
        ConfigError: where a value is out of range or a field unknown.
    """
    for setting, value in (("temperature", temperature), ("top_p", top_p), ("top_k", top_k)):
        require(value is None or isinstance(value, Real), setting, value, "must be a number")
    require(0 <= temperature < math.inf, "temperature", temperature, "must be 0 or more")
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
        temperature = max(float(temperature), LEAST_TEMPERATURE) if temperature else 1.0
        sampling |= {"temperature": temperature, "top_p": float(top_p or 1.0), "top_k": int(top_k or 0)}
    unknown = [name for name in options if not hasattr(GenerationConfig(), name)]
    mend = "transformers' GenerationConfig has no such fields; a chat template's go in chat_template_kwargs"
    require(not unknown, "generation_options", unknown, mend)
    for name in COUNTS:
        if options.get(name) is not None:
            whole_number(name, options[name], "answers" if name in SEVERAL_ANSWERS else "tokens")
    for name in NOT_GIVEN_BACK:
        require(not options.get(name), name, options.get(name), "an answer is its text; leave it out")
    # A control token is never part of an answer's text, so as a stop string it is an end.
    words = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = [*ends, *(words[s] for s in stop if s in words)] or None
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end and end[0]
    # What a checkpoint asks for beside that is honoured, but not several answers to one question.
    own = {"max_new_tokens": max_new_tokens, "eos_token_id": end, "pad_token_id": padding, "num_beams": 1}
    with _refusals_told(options):
        return GenerationConfig(**{**own, **{name: _plain(value) for name, value in options.items()}, **sampling})


def seed_number(seed: SupportsInt | None) -> int | None:
    """A seed as Python's own number.

    Raises:
        ConfigError: where it is none that torch takes.
    """
    whole = seed is None or (isinstance(seed, Integral) and -(1 << 63) <= int(seed) < 1 << 64)
    require(whole, "seed", seed, "must be a whole number of 64 bits")
    return None if seed is None else int(seed)


@contextmanager
def _refusals_told(options: Iterable[str]) -> Iterator[None]:
    """Say in the library's own error which options transformers refuses while it prepares a generation."""
    try:
        yield
    except SharedContextError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        given = sorted(set(options) - {"transformers_version", *SET_HERE})
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"generation_options ({', '.join(given)}) or the model's own generation_config cannot be honoured: {reason}"
        ) from error


def _plain(value: object) -> object:
    """NumPy's numbers and arrays as Python's, which transformers can write down."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


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
    clock = Clock(decoder.hf_model.device)
    contexts = decoder.contexts(requests, settings.max_new_tokens)
    with decoder.lock, torch.inference_mode():
        inputs, injected = decoder.inputs(requests, contexts, settings.max_new_tokens)
        begin = inputs["input_ids"].shape[1]
        ended = [StopStrings(decoder.tokenizer, stop, begin)] if stop else []
        several = max(settings.num_beams or 1, settings.num_return_sequences or 1)
        if several > 1:
            inputs[CACHE_ARGUMENT].batch_repeat_interleave(several)
        random = nullcontext() if seed is None else torch.random.fork_rng()
        with injected, random, _refusals_told(settings.to_diff_dict()):
            if seed is not None:
                torch.manual_seed(int(seed))
            ids = decoder.stepper(requests[0]).generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=[clock, *ended],
                logits_processor=_processors(constraint),
            )
        release(inputs)
    answers = ids[:, begin:].tolist()
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
) -> Generator[str | Step]:
    """The pieces of one answer, and the steps that are to be computed between them, with others' if need be."""
    clock, text = Clock(decoder.hf_model.device), Detokenizer(decoder.tokenizer)
    options = settings.to_diff_dict()
    contexts = decoder.contexts([request], settings.max_new_tokens)
    with decoder.lock, torch.inference_mode():
        inputs, injected = decoder.inputs([request], contexts, settings.max_new_tokens, in_place=True)
        chance = None if seed is None else torch.Generator(decoder.hf_model.device).manual_seed(int(seed))
        stepper = decoder.stepper(request)
        answering = decoder.answering(stepper, inputs, injected)
        with _refusals_told(options):
            tokens = stepper.generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=[clock],
                logits_processor=_processors(constraint),
                custom_generate=partial(one_by_one, answering=answering, generator=chance),
            )
    # Chance that belongs to the whole process is drawn by one at a time.
    drawn = decoder.lock if settings.do_sample and chance is None else nullcontext()
    answer: list[int] = []

    def pieces() -> Generator[str | Step]:
        while True:
            with drawn, torch.inference_mode(), _refusals_told(options):
                made = next(tokens, None)
            if made is None:
                break
            if isinstance(made, Step):
                yield made
            else:
                answer.append(made)
                yield text.put(made)
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
