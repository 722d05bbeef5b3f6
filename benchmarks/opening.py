"""Opening: what it costs to open a large store again and to select from it, by the number of its documents."""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.memory import in_own_process, peak_bytes, unmapped_bytes
from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import MIB
from shared_context.evaluation.report import Cell, Report, Table, model_setting
from shared_context.progress import with_progress
from shared_context.shards import ShardedContextStore, open_store
from shared_context.shards.writing import shard_for
from shared_context.store.embedder import load_default_embedder
from shared_context.store.leaf_words import LeafWords
from shared_context.store.line_rows import Entry
from shared_context.store.node_data import HeaderData, NodeData, StoredText
from shared_context.store.shard_folders import folders_of

DOCUMENTS = (1_000, 10_000, 100_000)

WORDS = 70
"""Of a document, about 100 tokens."""

HEADER_TOKENS = 6

TOGETHER = 5_000
"""Documents that land together."""

PREFILTER = 32
BUDGET = 1024

_Done = TypeVar("_Done")


def measure(
    model: str, text: str, questions: Sequence[str], *, documents: Sequence[int] = DOCUMENTS, shards: int | None = None
) -> Report:
    """Seconds and peak memory of opening a store and selecting from it, in a process of its own each.

    Documents are words of a text in chance order; their codes and embeddings are chance, too, for what is measured does
    not hang on them, and to compute them for ten million tokens takes hours.

    Args:
        model: name or folder of the model.
        text: whose words the documents are made of.
        questions: what is asked, two at least.
        documents: sizes of the store.
        shards: of a store of shards, all in this process; None makes a store of one file.
    """
    rows: list[tuple[Cell, ...]] = []
    setting: dict[str, Cell] = {}
    for size in sorted(set(documents)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            _make(model, text, size, path, shards)
            for opening in ("first, from the database", "again"):
                tokens, setting, found = in_own_process(_open, model, questions, path)
                nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                rows.append((size, tokens, opening, *found, nbytes / tokens))
    return Report(
        "opening",
        {**setting, "shards": shards or "none", "budget": BUDGET, "prefilter": PREFILTER},
        [
            Table(
                "Opening a store and selecting from it",
                (
                    "documents", "tokens", "opened", "open, s", "first selection, s", "selection, s",
                    "first with prefilter, s", "with prefilter, s", "open, s of the clock",
                    "with prefilter, s of the clock", "MiB beyond the models", "of these not mapped",
                    "bytes per token on disk",
                ),
                rows,
                keys=3,
            )
        ],
        notes=[
            "Seconds are those of the processor, all threads together, but where said. Peak memory counts what is "
            "mapped from the store's folder, which the system takes back where others need it; what is not mapped is "
            "that of the end."
        ],
    )  # fmt: skip


def _make(name: str, text: str, size: int, path: Path, shards: int | None) -> None:
    """A store of so many documents of chance words, each of its shards filled by a process of its own."""
    if shards is not None:
        in_own_process(_make_shards, name, path, shards)
    folders = [path] if shards is None else folders_of(path, shards)
    fill = partial(_fill, name, text, size, folders)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(fill, range(len(folders))))


def _make_shards(name: str, path: Path, shards: int) -> None:
    model = SharedLLMModel.from_pretrained(name)
    ShardedContextStore.create(model, path, shards, embedder=load_default_embedder()).close()


def _fill(name: str, text: str, size: int, folders: Sequence[Path], shard: int) -> None:
    """Put the documents into a folder that are of its shard."""
    model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    drawn, chance = random.Random(shard), np.random.default_rng(shard)
    words = sorted({word for word in text.split() if word.isalpha()})
    numbers = [number for number in range(size) if shard_for(_id(number), len(folders)) == shard]
    with SharedLLMContextStore(model, folders[shard], embedder=embedder) as store:
        tree, catalogue = store.config.tree, store._rooms.catalogue
        shape = catalogue.shape
        for first in with_progress(range(0, len(numbers), TOGETHER), f"{len(numbers)} documents"):
            with catalogue.changing() as change:
                for number in numbers[first : first + TOGETHER]:
                    said = f"Note {number}: {' '.join(drawn.choices(words, k=WORDS))}."
                    tokens = model.tokenize(said)
                    rows = {name: shape.rows(name, len(tokens)) for name in ("codes", "embeddings")}
                    embeddings = chance.standard_normal((rows["embeddings"], shape.dimension)).astype(np.float32)
                    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
                    codes = [_codes(chance, count, shape.code_size) for count in (rows["codes"], HEADER_TOKENS)]
                    found = LeafWords.by_chunk(said, tokens, tree.leaf_size, tree.chunk_size)
                    change.insert(
                        Entry("document", _id(number), {"page": number}),
                        StoredText(said, tokens),
                        NodeData(*codes[0], embeddings, found),
                        HeaderData(*codes[1], embeddings[:1]),
                    )


def _id(number: int) -> str:
    return f"note {number}"


def _codes(chance: np.random.Generator, tokens: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    codes = np.frombuffer(chance.bytes(tokens * size), np.int8).reshape(tokens, size)
    return codes, np.full(tokens, 0.01, np.float16)


def _open(name: str, questions: Sequence[str], path: Path) -> tuple[int, dict[str, Cell], list[float]]:
    """Tokens of the store, the setting, and the figures of the table."""
    model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    embedder.encode(list(questions[:1]))
    before, own = peak_bytes(), unmapped_bytes()
    processor: list[float] = []
    clock: list[float] = []

    def timed(work: Callable[[], _Done]) -> _Done:
        started, start = time.perf_counter(), time.process_time()
        done = work()
        processor.append(time.process_time() - start)
        clock.append(time.perf_counter() - started)
        return done

    store = timed(partial(open_store, model, path, embedder=embedder))
    for prefilter in (None, PREFILTER):
        for question in questions[:2]:
            timed(partial(store.select, question, budget=BUDGET, prefilter=prefilter))
    beyond = [(peak_bytes() - before) / MIB, (unmapped_bytes() - own) / MIB]
    tokens = store.stats()["tokens"]
    store.close()
    return tokens, model_setting(model), [*processor, clock[0], clock[-1], *beyond]
