"""The ways to the first token of an answer about a long text: the store, and what reads the text instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.readers import EncoderDecoder, FullAttention, Reader, Stream, reading
from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import CacheConfig, StoreConfig
from shared_context.evaluation.report import Cell
from shared_context.kernels.launch import wait_for
from shared_context.store.embedder import Embedder

LENGTHS = (8192, 32_768, 131_072)
"""Tokens of the text."""

READ_AT_MOST = 16_384
"""Tokens that streaming and full attention read of a text; what reading the rest would cost is extrapolated."""

STEPS = (512, 1024, 2048)
"""Tokens that a stream is tried with at a time."""

BUDGET = 1024
"""KV entries of a selection."""

STORE = "store: add the text, select, stream"
SECOND, AGAIN = "store: a second question", "store: the second question again"
SMALL_STORE = "small store: no MiniLM, no KV kept"
STREAMING, LAYOUT, FULL = "streaming, sinks and window", "encoder-decoder layout", "full attention"

WANTED = {STREAMING: 2.0, LAYOUT: 3.0}
"""How many times less than these the store has to take."""

WANTED_AT = 131_072
"""Tokens of the text at which that is wanted."""

NO_CACHE = CacheConfig(memory_bytes=0)


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


def read_by_store(
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


def read_by_stream(model: SharedLLMModel, text: str, question: str, step: int, at_most: int) -> list[Taken]:
    """Read with a stream, so many tokens at a time."""
    rest = partial(rest_of_stream, window=model.context_window)
    return [_read(model, lambda _: Stream(model), text, question, step, at_most, rest)]


def read_by_full_attention(model: SharedLLMModel, text: str, question: str, step: int, at_most: int) -> list[Taken]:
    """Read with full attention, so many tokens at a time."""
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
    ids = ids_of(model, text)
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


def read_by_layout(model: SharedLLMModel, layout: EncoderDecoder, text: str, question: str) -> list[Taken]:
    """Read by the layout of encoder and decoder."""
    start = time.perf_counter()
    ids = ids_of(model, text)
    layout.first_token(ids, torch.cat(_around(model, question))).argmax().item()
    return [Taken(time.perf_counter() - start, len(ids), len(ids))]


def ids_of(model: SharedLLMModel, text: str) -> torch.Tensor:
    """A text's token ids, [tokens]."""
    return torch.from_numpy(model.tokenize(text).ids.astype(np.int64)).to(model.device)


def _around(model: SharedLLMModel, question: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids before a context and behind it."""
    prompt = model.prompt_format.render([{"role": "user", "content": question}], with_context=True)
    return torch.tensor(prompt.prefix, device=model.device), torch.tensor(prompt.suffix, device=model.device)


def extent(taken: Sequence[Taken]) -> Cell:
    """Whether all of the text was read, or how much of it."""
    one = taken[0]
    return "measured" if one.read == one.of else f"extrapolated from {one.read:,} tokens"
