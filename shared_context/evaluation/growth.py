"""Growth: what selecting costs by how many documents the store holds, with and without the FAISS prefilter."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle
from statistics import median

import numpy as np

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.memory import in_own_process, peak_bytes
from shared_context.evaluation.report import (
    Lines,
    Point,
    Report,
    Series,
    Table,
    Target,
    model_setting,
    with_progress,
)
from shared_context.store.embedder import load_default_embedder

DOCUMENTS = (100, 1_000, 10_000)

PREFILTER = 32
"""Documents that the prefilter lets pass."""

BUDGET = 1024
"""KV entries of a selection."""

ALL, PREFILTERED = "every document scored", f"prefilter, {PREFILTER} documents scored"


def measure(
    model: str, texts: Sequence[str], questions: Sequence[str], *, documents: Sequence[int] = DOCUMENTS, runs: int = 9
) -> Report:
    """Seconds of a selection and peak memory of the process, by the number of documents, with fitted slopes.

    One store grows in a process of its own. At each size both ways take turns, question by question, after one that is
    not counted.

    Args:
        model: name or folder of the model, which the process loads anew.
        texts: Markdown, whose paragraphs become the documents, over and over, each under a heading of its own.
        questions: what is asked, in turn.
        documents: sizes of the store.
        runs: selections that are counted for each way and size.
    """
    seconds, peaks, tokens, setting = in_own_process(_grow, model, texts, questions, sorted(documents), runs)
    slopes = {way: slope([n for n, _ in of], [median(s) for _, s in of]) for way, of in _by_way(seconds).items()}
    first, *_, last = sorted(peaks) if len(peaks) > 1 else [*peaks, *peaks]
    return Report(
        "growth",
        {**setting, "budget": BUDGET, "runs": runs},
        [
            Lines(
                "Seconds of a selection, median",
                "documents",
                "seconds",
                [
                    Series(way, [Point(n, median(s), min(s), max(s)) for n, s in of])
                    for way, of in _by_way(seconds).items()
                ],
                log_x=True,
                log_y=True,
            ),
            Table(
                "Selections",
                ("documents", "tokens", "way", "median, s", "least, s", "most, s"),
                [(n, tokens[n], way, median(s), min(s), max(s)) for (n, way), s in seconds.items()],
                keys=3,
            ),
            Lines(
                "Peak memory of the process",
                "documents",
                "MiB",
                [Series("peak resident memory", [Point(n, peak / 2**20) for n, peak in peaks.items()])],
                log_x=True,
            ),
            Table(
                "Fitted slopes on log scales: 1 is linear, less is sub-linear",
                ("what", "slope"),
                [
                    *((f"seconds of a selection, {way}", value) for way, value in slopes.items()),
                    ("peak memory", slope(list(peaks), list(peaks.values()))),
                ],
            ),
        ],
        [Target(f"slope of seconds, {PREFILTERED}", slopes[PREFILTERED], "<=", 1.0)] if len(peaks) > 1 else [],
        notes=[
            f"Memory per document between {first:,} and {last:,} documents: "
            f"{(peaks[last] - peaks[first]) / max(1, last - first) / 1024:.1f} KiB; the models are in the peak. The "
            "prefilter's index is made by the first question that asks for it, which is not counted."
        ],
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The exponent of the power law that fits best; None of fewer than two places."""
    if len(x) < 2:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _by_way(seconds: dict[tuple[int, str], list[float]]) -> dict[str, list[tuple[int, list[float]]]]:
    return {way: [(n, s) for (n, of), s in seconds.items() if of == way] for way in (ALL, PREFILTERED)}


def _grow(
    name: str, texts: Sequence[str], questions: Sequence[str], sizes: Sequence[int], runs: int
) -> tuple[dict[tuple[int, str], list[float]], dict[int, int], dict[int, int], dict[str, str | int]]:
    """Seconds by size and way, peak bytes by size, tokens by size, and the setting."""
    model = SharedLLMModel.from_pretrained(name)
    new, asked = _documents(texts), cycle(questions)
    seconds: dict[tuple[int, str], list[float]] = {}
    peaks, tokens = {}, {}
    with SharedLLMContextStore(model, embedder=load_default_embedder()) as store:
        for size in sizes:
            missing = size - len(store)
            for _ in with_progress(range(0, missing, 500), f"ingest, up to {size} documents"):
                store.add([next(new) for _ in range(min(500, size - len(store)))])
            for run in range(runs + 1):
                question = next(asked)
                ways: dict[str, Callable[[], Selection]] = {
                    ALL: lambda q=question: store.select(q, budget=BUDGET),
                    PREFILTERED: lambda q=question: store.select(q, budget=BUDGET, prefilter=PREFILTER),
                }
                for way, select in ways.items():
                    start = time.perf_counter()
                    select()
                    if run:
                        seconds.setdefault((size, way), []).append(time.perf_counter() - start)
            peaks[size], tokens[size] = peak_bytes(), store.stats()["tokens"]
    return seconds, peaks, tokens, model_setting(model)


def _documents(texts: Sequence[str]) -> Iterator[Document]:
    """Paragraphs as documents, over and over; a number tells them apart."""
    paragraphs = [part.strip() for text in texts for part in re.split(r"\n{2,}", text) if len(part.split()) >= 20]
    paragraphs = paragraphs or list(texts)
    for number in count(1):
        yield Document(f"# Note {number}\n\n{paragraphs[(number - 1) % len(paragraphs)]}", f"note {number}")
