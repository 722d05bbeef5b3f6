"""Storage: bytes that a store keeps for each token, and seconds to take them in, by the length of the document."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shared_context import CacheConfig, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.report import Lines, Point, Report, Series, Table, model_setting, with_progress
from shared_context.store.embedder import load_default_embedder

TOKENS = (1024, 8192, 32_768, 131_072)


def measure(model: SharedLLMModel, text: str, *, tokens: Sequence[int] = TOKENS) -> Report:
    """Bytes on disk for each token, without and with keys and values, and seconds to ingest.

    Args:
        model: ingests; MiniLM embeds the leaves.
        text: Markdown, whose sections are repeated up to the lengths wanted.
        tokens: lengths of the document.
    """
    embedder, rows = load_default_embedder(), []
    for length in with_progress(sorted(tokens), "storage"):
        document = repeat_to(model, text, length)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            with SharedLLMContextStore(model, path, embedder=embedder) as store:
                empty = store.stats()["database_bytes"]
                start = time.perf_counter()
                store.add(document, id="document")
                seconds = time.perf_counter() - start
                stats = store.stats()
            rows.append((stats["tokens"], seconds, (stats["database_bytes"] - empty) / stats["tokens"]))
    sample = repeat_to(model, text, 1024)
    kv = {name: _kv_bytes(model, sample, quantize) for name, quantize in (("as computed", False), ("int8", True))}
    return Report(
        "storage",
        model_setting(model),
        [
            Lines(
                "Bytes stored per token, without keys and values",
                "tokens of the document",
                "bytes per token",
                [Series("documents, codes, embeddings", [Point(n, size) for n, _, size in rows])],
                log_x=True,
            ),
            Lines(
                "Seconds to ingest",
                "tokens of the document",
                "seconds",
                [Series("ingest, lazily", [Point(n, seconds) for n, seconds, _ in rows])],
                log_x=True,
                log_y=True,
            ),
            Table(
                "Keys and values, of chunks that were selected from, within the cache's limits",
                ("kept", "bytes per token"),
                list(kv.items()),
            ),
        ],
    )


def _kv_bytes(model: SharedLLMModel, text: str, quantize: bool) -> float:
    """Bytes of keys and values per token in the cache."""
    config = StoreConfig(cache=CacheConfig(quantize=quantize))
    with SharedLLMContextStore(model, config=config, embedder=None) as store:
        store.add(text, id="document")
        store.warm()
        stats = store.stats()
        return stats["kv_cache"]["memory"]["bytes"] / stats["tokens"]
