"""Growth: what selecting costs by how many documents a store holds, against the frameworks' retrieval."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice, pairwise
from statistics import median

import numpy as np

from benchmarks.memory import in_own_process, peak_bytes
from shared_context import Document, SharedLLMContextStore, SharedLLMModel
from shared_context.config import MIB
from shared_context.evaluation.indexing import RetrievalFrom, retrievals
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
from shared_context.progress import with_progress
from shared_context.store.embedder import load_default_embedder

DOCUMENTS = (100, 1_000, 10_000)

PREFILTER = 32
"""Documents that the prefilter lets pass."""

BUDGET = 1024
"""KV entries of a selection."""

REST = 0.2
"""Seconds before each way: threads of the one before spin on for a while, which doubled the time of the next one."""

ALL, PREFILTERED = "every document scored", f"prefilter, {PREFILTER} documents scored"
STORE = "store"


def measure(
    model: str, texts: Sequence[str], questions: Sequence[str], *, documents: Sequence[int] = DOCUMENTS, runs: int = 9
) -> Report:
    """Seconds of a selection and peak memory of the process, by the number of documents, with slopes.

    One store grows in a process of its own, where at each size the frameworks' indexes of the same documents stand
    beside it. All ways take turns, question by question, after one question that is not counted. The memory of an index
    is that of a process of its own, which has no store.

    Args:
        model: name or folder of the model, which the processes load anew.
        texts: Markdown, whose paragraphs become the documents, over and over, each under a heading of its own.
        questions: what is asked, in turn.
        documents: sizes of the store.
        runs: selections that are counted for each way and size.
    """
    sizes, not_run = sorted(set(documents)), dict[str, str]()
    frameworks = retrievals(not_run)
    of_indexes = {
        framework: in_own_process(_index_peaks, model, texts, questions, sizes, retrieval_from)
        for framework, retrieval_from in frameworks.items()
    }
    seconds, of_store, tokens, setting = in_own_process(_grow, model, texts, questions, sizes, runs, frameworks)
    peaks = {STORE: of_store, **of_indexes}
    medians = {way: {n: median(s) for (n, of), s in seconds.items() if of == way} for _, way in seconds}
    beyond = {what: {n: of[n] - of[0] for n in sizes} for what, of in peaks.items()}
    first, last = sizes[0], sizes[-1]
    prefiltered = _slope(medians[PREFILTERED])
    notes = [
        f"The documents are the {len(_paragraphs(texts)):,} paragraphs of the texts, repeated under different "
        "headings.",
        "The prefilter's index is made by the first question that asks for it, which is not counted.",
        *(
            f"Memory, {what}: {(of[last] - of[first]) / max(1, last - first) / 1024:.1f} KiB per document between "
            f"{first:,} and {last:,} documents; {peaks[what][0] / MIB:,.0f} MiB with the models loaded, before what it "
            "takes to embed."
            for what, of in beyond.items()
        ),
    ]
    if frameworks:
        notes.append(
            "The frameworks keep each document as one chunk in their default vector stores and bring the best, "
            "LlamaIndex 2 and LangChain 4, their defaults. Each paragraph is embedded once, without its heading, for "
            "all chunks that hold it; what is timed, to embed the question and to score every chunk, is the same as "
            "with embeddings of their own."
        )
    return Report(
        "growth",
        {**setting, "budget": BUDGET, "runs": runs},
        [
            Lines(
                "Seconds of a selection, median",
                "documents",
                "seconds",
                [
                    Series(way, [Point(n, s, min(seconds[n, way]), max(seconds[n, way])) for n, s in of.items()])
                    for way, of in medians.items()
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
                [Series(what, [Point(n, peaks[what][n] / MIB) for n in sizes]) for what in peaks],
                log_x=True,
            ),
            Table(
                "Slopes on log scales: 1 is linear, less is sub-linear",
                ("what", "fitted", *(f"{a:,} to {b:,}" for a, b in pairwise(sizes))),
                [
                    *((f"seconds of a selection, {way}", *_slopes(of)) for way, of in medians.items()),
                    *((f"peak memory beyond the loaded models, {what}", *_slopes(of)) for what, of in beyond.items()),
                ],
            ),
        ],
        [] if prefiltered is None else [Target(f"slope of seconds, {PREFILTERED}", prefiltered, "<", 1.0)],
        not_run=not_run,
        notes=notes,
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The exponent of the power law that fits best; None of fewer than two places, or where a figure is not above 0."""
    if len(x) < 2 or min(y) <= 0:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _slope(figures: Mapping[int, float]) -> float | None:
    return slope(list(figures), list(figures.values()))


def _slopes(figures: Mapping[int, float]) -> list[float | None]:
    """The slope fitted to all sizes, and that of each step from one to the next."""
    return [_slope(figures), *(_slope(dict(step)) for step in pairwise(figures.items()))]


def _grow(
    name: str,
    texts: Sequence[str],
    questions: Sequence[str],
    sizes: Sequence[int],
    runs: int,
    frameworks: Mapping[str, RetrievalFrom],
) -> tuple[dict[tuple[int, str], list[float]], dict[int, int], dict[int, int], dict[str, Cell]]:
    """Seconds by size and way, peak bytes by size (at 0 with the models loaded), tokens by size, and the setting."""
    model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    new, asked = _documents(texts), cycle(questions)
    seconds: dict[tuple[int, str], list[float]] = {}
    peaks, tokens = {0: peak_bytes()}, {}
    embeddings = embedder.encode(_paragraphs(texts))
    with SharedLLMContextStore(model, embedder=embedder) as store:
        for size in sizes:
            missing = size - len(store)
            for _ in with_progress(range(0, missing, 500), f"ingest, up to {size} documents"):
                store.add([next(new) for _ in range(min(500, size - len(store)))])
            ways: dict[str, Callable[[str], object]] = {
                ALL: lambda question: store.select(question, budget=BUDGET),
                PREFILTERED: lambda question: store.select(question, budget=BUDGET, prefilter=PREFILTER),
            }
            uncounted = next(asked)
            for select in ways.values():
                select(uncounted)
            # Now, while no index stands beside the store: the last size's is gone, and what it took is free again.
            peaks[size], tokens[size] = peak_bytes(), store.stats()["tokens"]
            for framework, retrieval_from in frameworks.items():
                ways[framework] = retrieval_from(_chunks(texts, size, embeddings), embedder)
                ways[framework](uncounted)
            for question in islice(asked, runs):
                for way, select in ways.items():
                    time.sleep(REST)
                    start = time.perf_counter()
                    select(question)
                    seconds.setdefault((size, way), []).append(time.perf_counter() - start)
            del ways, select
            gc.collect()
    return seconds, peaks, tokens, model_setting(model)


def _index_peaks(
    name: str, texts: Sequence[str], questions: Sequence[str], sizes: Sequence[int], retrieval_from: RetrievalFrom
) -> dict[int, int]:
    """Peak bytes by size, at 0 with the models loaded."""
    _model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    peaks = {0: peak_bytes()}
    embeddings = embedder.encode(_paragraphs(texts))
    for size in sizes:
        retrieve = retrieval_from(_chunks(texts, size, embeddings), embedder)
        retrieve(questions[0])
        peaks[size] = peak_bytes()
        del retrieve
        gc.collect()
    return peaks


def _chunks(texts: Sequence[str], size: int, embeddings: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """So many documents, each with the embedding of its paragraph."""
    return zip((document.text for document in islice(_documents(texts), size)), cycle(embeddings), strict=False)


def _documents(texts: Sequence[str]) -> Iterator[Document]:
    """Paragraphs as documents, over and over; a number tells them apart."""
    for number, paragraph in enumerate(cycle(_paragraphs(texts)), start=1):
        yield Document(f"# Note {number}\n\n{paragraph}", f"note {number}")


def _paragraphs(texts: Sequence[str]) -> list[str]:
    """Paragraphs of 20 words or more, or the whole texts where there are none."""
    paragraphs = [part.strip() for text in texts for part in re.split(r"\n{2,}", text) if len(part.split()) >= 20]
    return paragraphs or list(texts)
