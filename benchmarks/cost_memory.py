"""Peak memory of a process that reads a long text and answers, against what reads it instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.memory import in_own_process, peak_bytes
from benchmarks.readers import EncoderDecoder, kv_shape
from benchmarks.ways import (
    BUDGET,
    FULL,
    LAYOUT,
    LENGTHS,
    NO_CACHE,
    READ_AT_MOST,
    SMALL_STORE,
    STEPS,
    STORE,
    STREAMING,
    WANTED,
    WANTED_AT,
    Taken,
    extent,
    read_by_full_attention,
    read_by_layout,
    read_by_store,
    read_by_stream,
)
from shared_context import SharedLLMModel
from shared_context.config import MIB, TreeConfig
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.questions import QuestionSet
from shared_context.evaluation.report import Cell, Lines, Point, Report, Series, Table, Target, model_setting
from shared_context.progress import with_progress
from shared_context.store.embedder import Embedder, load_default_embedder

MEMORY_OF = (STORE, SMALL_STORE, STREAMING, LAYOUT, FULL)
"""Whose memory is measured."""


def measure(
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
        asked: questions, and documents whose sections are repeated up to the lengths wanted.
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
            peaks[length, way], extents[length, way] = peak, extent([taken])
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
        (taken,) = read_by_store(model, embedder, text, [question], budget, NO_CACHE if way == SMALL_STORE else None)
    elif way == LAYOUT:
        (taken,) = read_by_layout(model, EncoderDecoder(model, TreeConfig().chunk_size), text, question)
    else:
        (taken,) = (read_by_stream if way == STREAMING else read_by_full_attention)(
            model, text, question, step, max(at_most, 2 * model.context_window)
        )
    # A stream keeps no more of what it did not read.
    missing = taken.of - taken.read if way == FULL else 0
    return peak_bytes() + math.prod(kv_shape(model, missing)) * model.dtype.itemsize, taken


def _load(name: str, with_store: bool) -> tuple[SharedLLMModel, Embedder | None]:
    """The model alone, or with MiniLM, as a store has it."""
    return SharedLLMModel.from_pretrained(name), load_default_embedder() if with_store else None
