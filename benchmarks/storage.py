"""Storage: bytes that a store and chunked RAG keep for each token, and seconds to take them in, by length."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from shared_context import CacheConfig, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.evaluation.indexing import NOTE, Indexer, indexers
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.report import Lines, Point, Report, Series, Table, model_setting
from shared_context.progress import with_progress
from shared_context.store.embedder import Embedder, load_default_embedder

TOKENS = (1024, 8192, 32_768, 131_072)

STORE = "store: documents, codes, embeddings"


def measure(model: SharedLLMModel, text: str, *, tokens: Sequence[int] = TOKENS) -> Report:
    """Bytes on disk for each token, without and with keys and values, and seconds to ingest, beside chunked RAG's.

    Args:
        model: ingests; MiniLM embeds the leaves, and the frameworks' chunks.
        text: Markdown, whose sections are repeated up to the lengths wanted.
        tokens: lengths of the document.
    """
    embedder, not_run = load_default_embedder(), dict[str, str]()
    ways: dict[str, Callable[[str, Path], tuple[float, int]]] = {
        STORE: partial(_store, model, embedder),
        **{way: partial(_saved, model, embedder, indexer) for way, indexer in indexers(not_run).items()},
    }
    lengths = {len(model.tokenize(document)): document for document in (repeat_to(model, text, n) for n in tokens)}
    seconds: dict[str, list[Point]] = {way: [] for way in ways}
    sizes: dict[str, list[Point]] = {way: [] for way in ways}
    for take_in in ways.values():
        with tempfile.TemporaryDirectory() as folder:
            take_in("Words to warm up with.", Path(folder))
    for length, document in with_progress(sorted(lengths.items()), "storage"):
        for way, take_in in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                taken, size = take_in(document, Path(folder))
            seconds[way].append(Point(length, taken))
            sizes[way].append(Point(length, size / length))
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
                [Series(way, points) for way, points in sizes.items()],
                log_x=True,
            ),
            Lines(
                "Seconds to ingest",
                "tokens of the document",
                "seconds",
                [Series(way, points) for way, points in seconds.items()],
                log_x=True,
                log_y=True,
            ),
            Table(
                "Keys and values, of chunks that were selected from, within the cache's limits",
                ("kept", "bytes per token"),
                list(kv.items()),
            ),
        ],
        not_run=not_run,
        notes=[
            "On disk, the store is its database of documents, codes and embeddings, without what an empty one takes; "
            "LlamaIndex's index is what it persists by default, LangChain's what it dumps, both JSON with the text in "
            f"it. Each length is taken in once; writing the frameworks' files is not timed. {NOTE}"
        ],
    )


def _store(model: SharedLLMModel, embedder: Embedder, text: str, folder: Path) -> tuple[float, int]:
    """Seconds to ingest, and the bytes on disk that this added."""
    with SharedLLMContextStore(model, folder / "store", embedder=embedder) as store:
        empty = store.stats()["database_bytes"]
        start = time.perf_counter()
        store.add(text, id="document")
        return time.perf_counter() - start, store.stats()["database_bytes"] - empty


def _saved(model: SharedLLMModel, embedder: Embedder, indexer: Indexer, text: str, folder: Path) -> tuple[float, int]:
    """Seconds to index, and the bytes of the files it is saved in."""
    start = time.perf_counter()
    made = indexer(model, embedder, {"document": text})
    seconds = time.perf_counter() - start
    made.save(folder)
    return seconds, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _kv_bytes(model: SharedLLMModel, text: str, quantize: bool) -> float:
    """Bytes of keys and values per token in the cache."""
    config = StoreConfig(cache=CacheConfig(quantize=quantize))
    with SharedLLMContextStore(model, config=config, embedder=None) as store:
        store.add(text, id="document")
        store.warm()
        stats = store.stats()
        return stats["kv_cache"]["memory"]["bytes"] / stats["tokens"]
