"""Cost of a long text: seconds from raw text to the first token, and peak memory, against what reads it instead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch

from benchmarks.memory import in_own_process, peak_bytes
from benchmarks.readers import SINKS, EncoderDecoder, FullAttention, Reader, Stream, kv_shape, reading
from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import MIB, CacheConfig, StoreConfig, TreeConfig
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.questions import QuestionSet
from shared_context.evaluation.report import (
    Cell,
    Lines,
    Point,
    Report,
    Series,
    Table,
    Target,
    model_setting,
)
from shared_context.kernels.launch import wait_for
from shared_context.progress import with_progress
from shared_context.store.embedder import Embedder, load_default_embedder

LENGTHS = (8192, 32_768, 131_072)
"""Tokens of the text."""

REPEATED = 8192
"""Texts of more tokens are read once."""

READ_AT_MOST = 16_384
"""Tokens that streaming and full attention read of a text; what reading the rest would cost is extrapolated."""

STEPS = (512, 1024, 2048)
"""Tokens that a stream is tried with at a time."""

BUDGET = 1024
"""KV entries of a selection."""

WARM_UP = 1024
"""Tokens of a text that every way reads first, which is not counted."""

STORE = "store: add the text, select, stream"
SECOND, AGAIN = "store: a second question", "store: the second question again"
SMALL_STORE = "small store: no MiniLM, no KV kept"
STREAMING, LAYOUT, FULL = "streaming, sinks and window", "encoder-decoder layout", "full attention"

NO_CACHE = CacheConfig(memory_bytes=0)

MEMORY_OF = (STORE, SMALL_STORE, STREAMING, LAYOUT, FULL)
"""Whose memory is measured."""

WANTED = {STREAMING: 2.0, LAYOUT: 3.0}
"""How many times less than these the store has to take."""

WANTED_AT = 131_072
"""Tokens of the text at which that is wanted."""


@dataclass(frozen=True)
class Taken:
    """What a way took.

    Attributes:
        seconds: from raw text, or from the question, to the first token.
        read: tokens of the text that were really read.
        of: tokens of the text.
    """

    seconds: float
    read: int
    of: int


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
                STORE: partial(_store, model, embedder, text, (question, second, second), budget),
                SMALL_STORE: partial(_store, bare, None, text, (question,), budget, NO_CACHE),
                STREAMING: partial(_streaming, model, text, question, step, at_most),
                LAYOUT: partial(_layout, model, layout, text, question),
                FULL: partial(_full, model, text, question, step, at_most),
            }
            for way in with_progress(list(ways), f"cost, {length:,} tokens"):
                names = (STORE, SECOND, AGAIN) if way == STORE else (way,)
                for name, one in zip(names, ways[way](), strict=True):
                    taken.setdefault((length, name), []).append(one)
    seconds = {key: [one.seconds for one in of] for key, of in taken.items() if key[0] != WARM_UP}
    ratios = {(n, way): median(s) / median(seconds[n, STORE]) for (n, way), s in seconds.items()}
    rows = [
        (n, way, median(s), min(s), max(s), len(s), ratios[n, way], _extent(taken[n, way]))
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


def measure_memory(
    name: str,
    asked: QuestionSet,
    *,
    lengths: Sequence[int] = LENGTHS,
    read_at_most: int = READ_AT_MOST,
    budget: int = BUDGET,
    step: int = STEPS[1],
) -> Report:
    """Peak resident memory of a process that reads a text and answers one question, each way in a process of its own.

    Args:
        name: name or folder of the model, which each process loads anew.
        asked: as for :func:`measure`.
        lengths: tokens of the text.
        read_at_most: tokens that streaming and full attention read, but never less than two windows of the model; what
            full attention would keep of the rest is added.
        budget: KV entries of a selection.
        step: tokens that streaming and full attention read at a time.
    """
    source, question = "\n\n".join(asked.documents.values()), asked.questions[0].text
    peaks: dict[tuple[int, str], int] = {}
    extents: dict[tuple[int, str], Cell] = {}
    base, setting = in_own_process(_loaded, name, False)
    with_store, _ = in_own_process(_loaded, name, True)
    for length in sorted(lengths):
        for way in with_progress(MEMORY_OF, f"memory, {length:,} tokens"):
            peak, taken = in_own_process(_peak, name, source, question, length, way, step, read_at_most, budget)
            peaks[length, way], extents[length, way] = peak, _extent([taken])
    return Report(
        "cost-memory",
        {**setting, "budget": budget, "tokens a step": step},
        [
            Lines(
                "Peak memory of the process",
                "tokens of the text",
                "MiB",
                [
                    Series(way, [Point(n, peak / MIB) for (n, of), peak in peaks.items() if of == way])
                    for way in MEMORY_OF
                ],
                log_x=True,
                log_y=True,
            ),
            Table(
                "Peak resident memory",
                ("tokens", "way", "MiB", "how"),
                [(n, way, round(peak / MIB), extents[n, way]) for (n, way), peak in peaks.items()],
                keys=2,
            ),
            Table(
                "Of that, after loading",
                ("what", "MiB"),
                [
                    ("the base model", round(base / MIB)),
                    ("the same with MiniLM, for the store", round(with_store / MIB)),
                ],
            ),
        ],
        [
            Target(
                f"{store}, peak in MiB at {WANTED_AT:,} tokens, against {way}",
                round(peaks[WANTED_AT, store] / MIB),
                "<=",
                round(peaks[WANTED_AT, way] / MIB),
            )
            for store in (STORE, SMALL_STORE)
            for way in WANTED
            if WANTED_AT in lengths
        ],
        notes=[
            "The store's process holds MiniLM and all KV that it computed, as it does by default; the others hold the "
            "base model only, and so does the small store, which computes the KV of its selection for each question "
            "anew. Extrapolated is full attention, by adding the keys and values of what it did not read, and "
            "streaming, which keeps no more once its window is full."
        ],
    )


# ---- the ways


def _store(
    model: SharedLLMModel,
    embedder: Embedder | None,
    text: str,
    questions: Sequence[str],
    budget: int,
    cache: CacheConfig | None = None,
) -> list[Taken]:
    """For each question the time to its first token; that of the first begins with the raw text."""
    taken = []
    start = time.perf_counter()
    with SharedLLMContextStore(model, config=StoreConfig(cache=cache or CacheConfig()), embedder=embedder) as store:
        store.add(text, id="document")
        tokens = store.stats()["tokens"]
        for question in questions:
            for _ in model.stream(question, context=store.select(question, budget=budget), max_new_tokens=1):
                pass
            taken.append(Taken(time.perf_counter() - start, tokens, tokens))
            start = time.perf_counter()
    return taken


def _streaming(model: SharedLLMModel, text: str, question: str, step: int, at_most: int) -> list[Taken]:
    rest = partial(rest_of_stream, window=model.context_window)
    return [_read(model, lambda _: Stream(model), text, question, step, at_most, rest)]


def _full(model: SharedLLMModel, text: str, question: str, step: int, at_most: int) -> list[Taken]:
    return [_read(model, partial(FullAttention, model), text, question, step, at_most, rest_of_full_attention)]


Marks = Sequence[tuple[int, float]]
"""How many tokens were read after how many seconds, step by step."""


def rest_of_stream(marks: Marks, tokens: int, *, window: int) -> float:
    """Seconds to read on up to so many tokens, as many for each as since the window was full."""
    read, seconds = np.array([mark for mark in marks if mark[0] >= window]).T
    slope, _ = np.polyfit(read, seconds, 1)
    return float(slope * (tokens - read[-1]))


def rest_of_full_attention(marks: Marks, tokens: int) -> float:
    """Seconds to read on up to so many tokens, by a line and a square fitted to what was read."""
    read, seconds = np.array(marks).T
    (square, line, _) = np.polyfit(read, seconds, 2)
    return float(line * (tokens - read[-1]) + square * (tokens**2 - read[-1] ** 2))


def _read(
    model: SharedLLMModel,
    reader: Callable[[int], Reader],
    text: str,
    question: str,
    step: int,
    at_most: int,
    rest: Callable[[Marks, int], float],
) -> Taken:
    """Read a text step by step, then a question.

    Args:
        reader: makes the reader, given the tokens that it will read.
        at_most: tokens of the text that are read.
        rest: seconds that reading on up to so many tokens would take.
    """
    start = time.perf_counter()
    before, behind = _around(model, question)
    ids = _ids(model, text)
    part, marks, read = ids[:at_most], [], 0
    reads = reader(len(before) + len(part) + len(behind))
    with reading(model):
        reads.read(before)
        for ahead in part.split(step):
            reads.read(ahead)
            read += len(ahead)
            wait_for(model.device)
            marks.append((read, time.perf_counter() - start))
        reads.read(behind).argmax().item()
    seconds = time.perf_counter() - start
    if read < len(ids):
        seconds += rest(marks, len(ids))
    return Taken(seconds, read, len(ids))


def _layout(model: SharedLLMModel, layout: EncoderDecoder, text: str, question: str) -> list[Taken]:
    start = time.perf_counter()
    ids = _ids(model, text)
    layout.first_token(ids, torch.cat(_around(model, question))).argmax().item()
    return [Taken(time.perf_counter() - start, len(ids), len(ids))]


def _ids(model: SharedLLMModel, text: str) -> torch.Tensor:
    return torch.from_numpy(model.tokenize(text).ids.astype(np.int64)).to(model.device)


def _around(model: SharedLLMModel, question: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids before a context and behind it."""
    prompt = model.prompt_format.render([{"role": "user", "content": question}], with_context=True)
    return torch.tensor(prompt.prefix, device=model.device), torch.tensor(prompt.suffix, device=model.device)


def _seconds_per_token(model: SharedLLMModel, text: str, steps: Sequence[int]) -> dict[int, float]:
    """Of a stream behind a full window, by its step; steps take turns, and of two the faster counts."""
    ids = _ids(model, text)
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


def _extent(taken: Sequence[Taken]) -> Cell:
    one = taken[0]
    return "measured" if one.read == one.of else f"extrapolated from {one.read:,} tokens"


# ---- processes of their own


def _loaded(name: str, with_store: bool) -> tuple[int, Mapping[str, Cell]]:
    """Peak bytes after loading, of the base model alone or with what a store has beside it; and the setting."""
    model, _embedder = _load(name, with_store)
    return peak_bytes(), model_setting(model)


def _peak(
    name: str, source: str, question: str, length: int, way: str, step: int, at_most: int, budget: int
) -> tuple[int, Taken]:
    """Peak bytes of one way, and how much it read."""
    model, embedder = _load(name, way == STORE)
    text = repeat_to(model, source, length)
    if way in (STORE, SMALL_STORE):
        (taken,) = _store(model, embedder, text, [question], budget, NO_CACHE if way == SMALL_STORE else None)
    elif way == LAYOUT:
        (taken,) = _layout(model, EncoderDecoder(model, TreeConfig().chunk_size), text, question)
    else:
        (taken,) = (_streaming if way == STREAMING else _full)(
            model, text, question, step, max(at_most, 2 * model.context_window)
        )
    # A stream keeps no more of what it did not read.
    missing = taken.of - taken.read if way == FULL else 0
    return peak_bytes() + math.prod(kv_shape(model, missing)) * model.dtype.itemsize, taken


def _load(name: str, with_store: bool) -> tuple[SharedLLMModel, Embedder | None]:
    """The model alone, or with MiniLM, as a store has it."""
    return SharedLLMModel.from_pretrained(name), load_default_embedder() if with_store else None
