"""Ingest: how fast a long document is taken in, against reading it with the whole model."""

from __future__ import annotations

import time

import numpy as np
import torch

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.report import Report, Table, Target, model_setting, with_progress
from shared_context.store.embedder import load_default_embedder

TOKENS = 131_072

WANTED = 4.0
"""How many times faster than a prefill in the model's own window lazy ingest has to be."""


def measure(model: SharedLLMModel, text: str, *, tokens: int = TOKENS, limit: int | None = None) -> Report:
    """Seconds to ingest a document lazily, and to prefill the same tokens with the whole model.

    The prefill reads the tokens in windows, each by itself, which is generous to it: attention over the whole document
    would cost more with every token.

    Args:
        model: ingests and prefills; MiniLM embeds the leaves.
        text: Markdown, whose sections are repeated up to ``tokens`` tokens.
        tokens: of the document.
        limit: prefill only so many windows of each size and extrapolate to the rest; the report says so.
    """
    text = repeat_to(model, text, tokens)
    with SharedLLMContextStore(model, embedder=load_default_embedder()) as store:
        store.add("Words to warm up with.", id="warm-up")
        start = time.perf_counter()
        store.add(text, id="document")
        lazily = time.perf_counter() - start
        chunk_size = store.config.tree.chunk_size
    ids = model.tokenize(text).ids
    rows: list[tuple[str, float, float]] = [("ingest, lazily", lazily, len(ids) / lazily)]
    ratios, notes = [], []
    for size in (model.context_window, chunk_size):
        seconds, read = _prefill(model, ids, size, limit)
        if read < len(ids):
            notes.append(f"Windows of {size:,}: extrapolated from the first {read:,} tokens.")
        whole = seconds * len(ids) / read
        rows.append((f"prefill in windows of {size:,}", whole, len(ids) / whole))
        ratios.append(whole / lazily)
    return Report(
        "ingest",
        {**model_setting(model), "document": len(ids)},
        [
            Table(
                "Seconds",
                ("what", "seconds", "tokens per second", "times ingest"),
                [(*row, ratio) for row, ratio in zip(rows, [1.0, *ratios], strict=True)],
            )
        ],
        [Target("times faster than a prefill in the model's own window", ratios[0], ">=", WANTED)],
        notes=notes,
    )


@torch.inference_mode()
def _prefill(model: SharedLLMModel, ids: np.ndarray, size: int, limit: int | None) -> tuple[float, int]:
    """Seconds, and how many tokens were read."""
    windows = [torch.from_numpy(ids[at : at + size].astype(np.int64)) for at in range(0, len(ids), size)][:limit]
    seconds = 0.0
    for window in with_progress(windows, f"prefill in windows of {size}"):
        start = time.perf_counter()
        model.hf_model(input_ids=window[None].to(model.device), use_cache=True, logits_to_keep=1)
        seconds += time.perf_counter() - start
    return seconds, sum(map(len, windows))
