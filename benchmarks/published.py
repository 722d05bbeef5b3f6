"""Published: the first token from a store at an address, cold and warm, beside the same store on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.memory import in_own_process
from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import MIB
from shared_context.evaluation.report import Cell, Report, Table, model_setting
from shared_context.progress import with_progress
from shared_context.remote.publishing import push
from shared_context.store.embedder import load_default_embedder

DISK, COMPUTED = "on disk", "on disk, keys and values computed"
ADDRESS, AGAIN = "at the address", "at the address, fetched before"
BUDGET = 1024


def measure(name: str, text: str, questions: Sequence[str], address: str, *, runs: int = 3) -> Report:
    """Seconds of the clock to open a store and to a first token, each place in a process of its own, in turns.

    Args:
        name: of the model, or its folder.
        text: what the store holds.
        questions: two at least, about different places; the second finds the store open, and asked again it finds its
            keys and values in memory.
        address: ``s3://bucket/name`` or the like, where nothing is published yet. What is published there stays.
        runs: of which medians are given.
    """
    seconds: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stored, bare, fetched = (Path(folder) / of for of in ("store", "bare", "fetched"))
        setting = in_own_process(_make, name, text, stored)
        start = time.perf_counter()
        push(stored, address, kv=True)
        published = time.perf_counter() - start
        nbytes = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())
        for _ in with_progress(range(runs), "each place"):
            shutil.rmtree(fetched, ignore_errors=True)
            shutil.rmtree(bare, ignore_errors=True)
            shutil.copytree(stored, bare, ignore=shutil.ignore_patterns("kv"))
            for way, place in (DISK, str(stored)), (COMPUTED, str(bare)), (ADDRESS, address), (AGAIN, address):
                found = in_own_process(_ask, name, place, fetched, questions[:2])
                seconds.setdefault(way, []).append(found)
    rows: list[tuple[Cell, ...]] = [
        (way, *(median(of) for of in zip(*found, strict=True))) for way, found in seconds.items()
    ]
    return Report(
        "published",
        {**setting, "address": address, "budget": BUDGET, "runs": runs, "MiB published": nbytes / MIB,
         "seconds to publish": published},
        [
            Table(
                "Seconds to open a store, and from a question to its first token",
                ("store", "open", "first question", "another question", "the same again"),
                rows,
            )
        ],
    )  # fmt: skip


def _make(name: str, text: str, path: Path) -> dict[str, Cell]:
    """A store with all of its keys and values; the setting."""
    model = SharedLLMModel.from_pretrained(name)
    with SharedLLMContextStore(model, path, embedder=load_default_embedder()) as store:
        store.add(text, id="text")
        store.warm()
    return model_setting(model)


def _ask(name: str, place: str, fetched: Path, questions: Sequence[str]) -> list[float]:
    """Seconds to open a store and to the first tokens of the first question, the second, and the second again."""
    model, embedder = SharedLLMModel.from_pretrained(name), load_default_embedder()
    model.generate("Hello.", max_new_tokens=1)  # the first answer of a process takes longer
    os.environ["SHARED_CONTEXT_HOME"] = str(fetched)
    seconds = [time.perf_counter()]
    with SharedLLMContextStore(model, place, embedder=embedder) as store:
        seconds.append(time.perf_counter())
        for question in (*questions, questions[-1]):
            pieces = iter(model.stream(question, context=store.select(question, budget=BUDGET), max_new_tokens=1))
            next(pieces, None)
            seconds.append(time.perf_counter())
            for _ in pieces:  # to the end, so that nothing runs beside the next question
                pass
    return [end - start for start, end in zip(seconds, seconds[1:], strict=False)]
