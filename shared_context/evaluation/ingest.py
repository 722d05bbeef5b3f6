"""Ingest: how fast a long document is taken in, against chunked RAG and against reading it with the whole model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import TreeConfig
from shared_context.evaluation.indexing import NOTE, Indexer, indexers
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.report import Report, Table, Target, model_setting
from shared_context.kernels.launch import wait_for
from shared_context.progress import with_progress
from shared_context.store.embedder import Embedder, load_default_embedder

TOKENS = 131_072

WANTED = 4.0
"""How many times faster than a prefill in the model's own window lazy ingest has to be."""

INGEST = "ingest, lazily"


def measure(
    model: SharedLLMModel, text: str, *, tokens: int = TOKENS, limit: int | None = None, runs: int = 5
) -> Report:
    """Seconds to ingest a document lazily, to index it for chunked RAG, and to prefill it with the whole model.

    All ways take turns in one process, after a short text that is not counted. The prefill reads the tokens in windows,
    each by itself, which is generous to it: attention over the whole document would cost more with every token.

    Args:
        model: ingests and prefills; MiniLM embeds the leaves, and the frameworks' chunks.
        text: Markdown, whose sections are repeated up to ``tokens`` tokens.
        tokens: of the document.
        limit: prefill only so many windows of each size and extrapolate to the rest; the report says so.
        runs: how often each way takes the document in.
    """
    text = repeat_to(model, text, tokens)
    count, embedder, not_run = len(model.tokenize(text)), load_default_embedder(), dict[str, str]()
    windows = {f"prefill in windows of {n:,}": n for n in (model.context_window, TreeConfig().chunk_size)}
    own, *_ = windows
    ways: dict[str, Callable[[str], float]] = {
        INGEST: partial(_ingest, model, embedder),
        **{way: partial(_index, model, embedder, indexer) for way, indexer in indexers(not_run).items()},
        **{way: partial(_prefill, model, size, limit) for way, size in windows.items()},
    }
    for take_in in ways.values():
        take_in("Words to warm up with.")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in with_progress([*ways] * runs, "ingest"):
        seconds[way].append(ways[way](text))
    medians = {way: median(s) for way, s in seconds.items()}
    ratios = {way: taken / medians[INGEST] for way, taken in medians.items()}
    return Report(
        "ingest",
        {**model_setting(model), "document": count, "runs": runs},
        [
            Table(
                "Seconds",
                ("what", "median", "least", "most", "tokens per second", "times ingest"),
                [(way, medians[way], min(s), max(s), count / medians[way], ratios[way]) for way, s in seconds.items()],
            )
        ],
        [Target("times faster than a prefill in the model's own window", ratios[own], ">=", WANTED)],
        not_run=not_run,
        notes=[
            NOTE,
            *(
                f"Windows of {size:,}: extrapolated from the first {size * limit:,} tokens."
                for size in windows.values()
                if limit is not None and size * limit < count
            ),
        ],
    )


def _ingest(model: SharedLLMModel, embedder: Embedder, text: str) -> float:
    with SharedLLMContextStore(model, embedder=embedder) as store:
        start = time.perf_counter()
        store.add(text, id="document")
        return time.perf_counter() - start


def _index(model: SharedLLMModel, embedder: Embedder, indexer: Indexer, text: str) -> float:
    start = time.perf_counter()
    indexer(model, embedder, {"document": text})
    return time.perf_counter() - start


@torch.inference_mode()
def _prefill(model: SharedLLMModel, size: int, limit: int | None, text: str) -> float:
    """Seconds for the whole text, extrapolated where not all of it is read."""
    ids = model.tokenize(text).ids
    windows = [torch.from_numpy(ids[at : at + size].astype(np.int64)) for at in range(0, len(ids), size)][:limit]
    seconds = 0.0
    for window in windows:
        start = time.perf_counter()
        model.hf_model(input_ids=window[None].to(model.device), use_cache=True, logits_to_keep=1)
        wait_for(model.device)
        seconds += time.perf_counter() - start
    return seconds * len(ids) / sum(map(len, windows))
