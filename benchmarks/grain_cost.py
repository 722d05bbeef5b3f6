"""What coarse grains cost: importance beside keys and values, the first token over uneven heads, bytes on disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from shared_context import CacheConfig, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.config import ImportanceMethod
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.report import Report, Table, Target, model_setting
from shared_context.kernels.launch import wait_for
from shared_context.progress import with_progress

ENTRIES = (1024, 4096)
"""KV entries over which the first token is timed."""

RATIO = 8
"""Of the document that is shown in as many entries as another one is whole."""

FINEST = 4
"""Of a store that keeps coarse rows only."""

KV, REPETITION, PROBE = "keys and values", "and importance by repetition", "and importance by the probe"
WHOLE, RAGGED = "whole rows", f"rows at ratio {RATIO}"
ALL, COARSE = "all rows, and their importance", f"finest={FINEST}"

WANTED = {REPETITION: 2.3, PROBE: 1.1, RAGGED: 1.3, COARSE: 1 / 3.8}
"""At most, as a share of what it is compared with."""


def measure(
    model: SharedLLMModel, text: str, question: str, *, entries: Sequence[int] = ENTRIES, runs: int = 5
) -> Report:
    """Seconds and bytes of coarse grains, each beside what goes without them, in turns in one process.

    Args:
        model: encodes and answers.
        text: Markdown, whose sections are repeated up to the lengths wanted.
        question: asked over each document.
        entries: KV entries of the documents that are shown, whole, and of documents RATIO times as long, coarsely.
        runs: how often each is timed; medians are over these.
    """
    seconds = _encoding(model, text, runs)
    encoding = {way: median(of) for way, of in seconds.items()}
    first = _first_token(model, text, question, entries, runs)
    sizes = _bytes(model, text)
    targets = [
        Target(f"{way}, times as long as {KV} alone", encoding[way] / encoding[KV], "<=", WANTED[way])
        for way in encoding
        if way != KV
    ]
    targets += [
        Target(
            f"first token over {n:,} {RAGGED}, times as long as over {WHOLE}",
            median(first[n, RAGGED]) / median(first[n, WHOLE]), "<=", WANTED[RAGGED],
        )
        for n in entries
    ]  # fmt: skip
    targets.append(
        Target(f"{COARSE}, share of the bytes of all rows", sizes[COARSE] / sizes[ALL], "<=", WANTED[COARSE])
    )
    timed = "median", "least", "most"
    return Report(
        "grains-cost",
        {**model_setting(model), "tokens of a chunk": StoreConfig().tree.chunk_size, "runs": runs},
        [
            Table(
                "Seconds to encode a chunk behind its lead-in",
                ("what", *timed, "times keys and values alone"),
                [
                    (way, median(of), min(of), max(of), median(of) / encoding[KV])
                    for way, of in seconds.items()
                ],
            ),
            Table(
                "Seconds to the first token, keys and values in the cache",
                ("KV entries", "shown as", "tokens of the document", *timed),
                [
                    (n, way, n * (RATIO if way == RAGGED else 1), median(of), min(of), max(of))
                    for (n, way), of in first.items()
                ],
                keys=2,
            ),
            Table("Bytes of keys and values on disk for each token", ("kept", "bytes per token"), list(sizes.items())),
        ],
        targets,
    )  # fmt: skip


def _encoding(model: SharedLLMModel, text: str, runs: int) -> dict[str, list[float]]:
    """Seconds to encode one chunk, alone and with its importance."""
    config = StoreConfig()
    length = config.lead_in + config.tree.chunk_size
    ids = torch.from_numpy(model.tokenize(repeat_to(model, text, length)).ids[:length].astype("int64"))
    methods: dict[str, ImportanceMethod] = {REPETITION: "repetition", **({PROBE: "probe"} if model.has_probe else {})}
    scorers = {way: model.importance_scorer(method) for way, method in methods.items()}
    seconds: dict[str, list[float]] = {way: [] for way in (KV, *scorers)}
    for number in with_progress(range(runs + 1), "encoding"):
        start = time.perf_counter()
        encodings = model.compressor.encode([ids])
        wait_for(model.device)
        alone = time.perf_counter() - start
        taken = {KV: alone}
        for way, scorer in scorers.items():
            start = time.perf_counter()
            scorer.score([ids], encodings, config.lead_in)
            wait_for(model.device)
            taken[way] = alone + time.perf_counter() - start
        if number:  # the first one warms up
            for way, each in taken.items():
                seconds[way].append(each)
    return seconds


def _first_token(
    model: SharedLLMModel, text: str, question: str, entries: Sequence[int], runs: int
) -> dict[tuple[int, str], list[float]]:
    """Seconds from a question to its first token over a whole document, by KV entries and grain."""
    # Whatever the model's dtype is: what does not fit would be computed again for each question.
    cache = CacheConfig(memory_bytes=2**50)
    config = StoreConfig(cache=cache, importance="probe" if model.has_probe else "repetition")
    seconds: dict[tuple[int, str], list[float]] = {}
    with SharedLLMContextStore(model, embedder=None, config=config) as store:
        for n in entries:
            ways: dict[str, Callable[[], Iterator[str]]] = {}
            for way, ratio in (WHOLE, 1), (RAGGED, RATIO):
                store.add(repeat_to(model, text, n * ratio), id=f"{n} {way}")
                ways[way] = partial(_answer, model, store, question, f"{n} {way}", ratio)
            for number in with_progress(range(runs + 1), f"first token, {n:,} entries"):
                for way, answer in ways.items():
                    start = time.perf_counter()
                    pieces = answer()
                    next(pieces, None)
                    taken = time.perf_counter() - start
                    for _ in pieces:  # to the end, so that nothing runs beside the next measurement
                        pass
                    if number:  # the first one computes keys and values
                        seconds.setdefault((n, way), []).append(taken)
    return seconds


def _answer(model: SharedLLMModel, store: SharedLLMContextStore, question: str, id: str, ratio: int) -> Iterator[str]:
    return iter(model.stream(question, context=store.select(None, ratio=ratio, doc_ids=[id]), max_new_tokens=1))


def _bytes(model: SharedLLMModel, text: str) -> dict[str, float]:
    """Bytes of keys and values on disk for each token of two chunks."""
    tree = StoreConfig().tree
    document = repeat_to(model, text, 2 * tree.chunk_size)
    sizes = {}
    for way, finest in (ALL, 1), (COARSE, FINEST):
        config = StoreConfig(cache=CacheConfig(finest=finest), importance="probe" if model.has_probe else "repetition")
        with (
            tempfile.TemporaryDirectory() as folder,
            SharedLLMContextStore(model, Path(folder) / "store", embedder=None, config=config) as store,
        ):
            store.add(document, id="document")
            # All at the coarse grain, so that importance is computed and kept on both sides.
            store.warm(store.select(None, ratio=FINEST))
            stats = store.stats()
            sizes[way] = stats["kv_cache"]["disk"]["bytes"] / stats["tokens"]
    return sizes
