"""Cost of a long text: seconds from raw text to the first token, against what reads it instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from benchmarks.readers import SINKS, EncoderDecoder, Stream, reading
from benchmarks.ways import (
    AGAIN,
    BUDGET,
    FULL,
    LAYOUT,
    LENGTHS,
    NO_CACHE,
    READ_AT_MOST,
    SECOND,
    SMALL_STORE,
    STEPS,
    STORE,
    STREAMING,
    WANTED,
    WANTED_AT,
    Taken,
    extent,
    ids_of,
    read_by_full_attention,
    read_by_layout,
    read_by_store,
    read_by_stream,
)
from shared_context import SharedLLMModel
from shared_context.config import TreeConfig
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.questions import QuestionSet
from shared_context.evaluation.report import Lines, Point, Report, Series, Table, Target, model_setting
from shared_context.kernels.launch import wait_for
from shared_context.progress import with_progress
from shared_context.store.embedder import load_default_embedder

REPEATED = 8192
"""Texts of more tokens are read once."""

WARM_UP = 1024
"""Tokens of a text that every way reads first, which is not counted."""


def measure(
    model: SharedLLMModel,
    asked: QuestionSet,
    *,
    lengths: Sequence[int] = LENGTHS,
    runs: int = 3,
    read_at_most: int = READ_AT_MOST,
    budget: int = BUDGET,
    steps: Sequence[int] = STEPS,
) -> Report:
    """Seconds from raw text to the first token of an answer.

    All ways take turns in one process with the same base model, after a short text that is not counted.

    Args:
        model: reads and answers; MiniLM embeds for the store.
        asked: questions, and documents whose sections are repeated up to the lengths wanted.
        lengths: tokens of the text.
        runs: how often texts of up to ``REPEATED`` tokens are read, each time with another question.
        read_at_most: tokens that streaming and full attention read of a text, but never less than two windows of the
            model; the rest is extrapolated, which the report says.
        budget: KV entries of a selection.
        steps: tokens that streaming may read at a time; the fastest is taken.
    """
    source = "\n\n".join(asked.documents.values())
    questions = [question.text for question in asked.sample(runs + 1)]
    # The same base model, which an adapter leaves as it is.
    bare = SharedLLMModel(model.hf_model, model.tokenizer, name=model.name, context_window=model.context_window)
    embedder, layout = load_default_embedder(), EncoderDecoder(model, TreeConfig().chunk_size)
    # A stream's cost is known only once its window is full.
    at_most = max(read_at_most, 2 * model.context_window)
    per_step = _seconds_per_token(model, repeat_to(model, source, 2 * model.context_window), steps)
    step = min(per_step, key=per_step.__getitem__)
    taken: dict[tuple[int, str], list[Taken]] = {}
    for length in [WARM_UP, *sorted(lengths)]:
        text = repeat_to(model, source, length)
        rounds = runs if WARM_UP < length <= REPEATED else 1
        for number in range(rounds):
            question, second = questions[number % len(questions)], questions[(number + 1) % len(questions)]
            ways: dict[str, Callable[[], Sequence[Taken]]] = {
                STORE: partial(read_by_store, model, embedder, text, (question, second, second), budget),
                SMALL_STORE: partial(read_by_store, bare, None, text, (question,), budget, NO_CACHE),
                STREAMING: partial(read_by_stream, model, text, question, step, at_most),
                LAYOUT: partial(read_by_layout, model, layout, text, question),
                FULL: partial(read_by_full_attention, model, text, question, step, at_most),
            }
            for way in with_progress(list(ways), f"cost, {length:,} tokens"):
                names = (STORE, SECOND, AGAIN) if way == STORE else (way,)
                for name, one in zip(names, ways[way](), strict=True):
                    taken.setdefault((length, name), []).append(one)
    seconds = {key: [one.seconds for one in of] for key, of in taken.items() if key[0] != WARM_UP}
    ratios = {(n, way): median(s) / median(seconds[n, STORE]) for (n, way), s in seconds.items()}
    rows = [
        (n, way, median(s), min(s), max(s), len(s), ratios[n, way], extent(taken[n, way]))
        for (n, way), s in seconds.items()
    ]
    return Report(
        "cost",
        {**model_setting(model), "budget": budget, "window of streaming": model.context_window, "its step": step},
        [
            Lines(
                "Time from raw text to the first token, median",
                "tokens of the text",
                "seconds",
                [
                    Series(way, [Point(n, median(s), min(s), max(s)) for (n, of), s in seconds.items() if of == way])
                    for way in dict.fromkeys(way for _, way in seconds)
                ],
                log_x=True,
                log_y=True,
            ),
            Table(
                "Seconds to the first token",
                ("tokens", "way", "median", "least", "most", "runs", "times the store", "how"),
                rows,
                keys=2,
            ),
            Table(
                "A stream behind a full window, by its step",
                ("tokens a step", "seconds per 1,024 tokens"),
                [(size, 1024 * each) for size, each in per_step.items()],
            ),
        ],
        [
            Target(
                f"{way}, times as long at {WANTED_AT:,} tokens as {store}",
                median(seconds[WANTED_AT, way]) / median(seconds[WANTED_AT, store]),
                ">=",
                wanted,
            )
            for store in (STORE, SMALL_STORE)
            for way, wanted in WANTED.items()
            if WANTED_AT in lengths
        ],
        notes=[
            "The store takes the text in as it does by default, computes the keys and values of what it selects, and "
            "answers; a second question finds the text in it. The small store has no MiniLM and keeps no keys and "
            "values, so that each question computes them anew. The others read the text with the "
            f"base model and then the question. Streaming keeps the first {SINKS} tokens and the last ones, together "
            "with the step that is read as many as the model's window holds; what the paper streams with, Activation "
            "Beacon, has no weights for this model. The encoder-decoder layout (CEPE's shape: every layer encodes, and "
            "every layer attends to every token) is not trained and stands here for its cost only. All read chunks or "
            "steps with the same attention.",
            f"Extrapolated is what lies beyond {at_most:,} tokens: streaming by its steps behind a full window, full "
            "attention by a fit of a line and a square to its steps.",
        ],
    )


def _seconds_per_token(model: SharedLLMModel, text: str, steps: Sequence[int]) -> dict[int, float]:
    """Of a stream behind a full window, by its step; steps take turns, and of two the faster counts."""
    ids = ids_of(model, text)
    stream, seconds = Stream(model), {step: float("inf") for step in steps}
    with reading(model):
        for part in ids[: stream.window].split(min(steps)):
            stream.read(part)
        for _ in with_progress(range(2), "steps of a stream"):
            for step in steps:
                start = time.perf_counter()
                stream.read(ids[:step])
                wait_for(model.device)
                seconds[step] = min(seconds[step], (time.perf_counter() - start) / step)
    return seconds
