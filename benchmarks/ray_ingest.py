"""Ingestion by Ray actors beside one process: documents a second, once the models are loaded."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.memory import in_own_process
from shared_context import Document, SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.report import Cell, Report, Table, Target, model_setting
from shared_context.progress import with_progress
from shared_context.shards.ray_ingest import BATCH_CHARACTERS, IngestReport, ingest
from shared_context.store.embedder import load_default_embedder

DOCUMENTS = 2000
"""That are stored, each time into a new store."""

WORDS = 400
"""Of a document, about 550 tokens."""

PROCESS, ACTOR, TWO_ACTORS = "one process", "1 actor", "2 actors"
WAYS = {PROCESS: 0, ACTOR: 1, TWO_ACTORS: 2}
"""Actors of each; together they have all processors, and each computes in as many threads as it has of them."""

WANTED = {ACTOR: 1 / 1.1, TWO_ACTORS: 1.6}
"""At least, as a share of the documents a second of one process; the second where all compute in one thread each."""


def measure(model: str, text: str, *, documents: int = DOCUMENTS, runs: int = 1) -> Report:
    """Documents a second of one process, of one actor and of two, in turns; the first batch of each warms up.

    Args:
        model: name or folder of the model.
        text: whose words the documents are made of, in chance order: all differ.
        documents: how many are stored; all ways get the same ones.
        runs: of these the fastest counts.
    """
    import ray  # brought by the extra `ray`

    processors = os.cpu_count() or 1
    words, drawn = sorted({word for word in text.split() if word.isalpha()}), random.Random(1)
    made = [
        Document(f"Note {number}: {' '.join(drawn.choices(words, k=WORDS))}.", f"note {number}")
        for number in range(documents)
    ]
    rates: dict[str, float] = {}
    setting: dict[str, Cell] = {}
    for way in with_progress(list(WAYS) * runs, "ingest"):
        actors = WAYS[way]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            if not actors:
                rate, setting = in_own_process(_in_process, model, made, path)
            else:
                ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=False)
                try:
                    rate = _on_ray(model, made, path, actors, processors / actors)
                finally:
                    ray.shutdown()
        rates[way] = max(rates.get(way, 0.0), rate)
    return Report(
        "ray-ingest",
        {**setting, "documents": documents, "words of each": WORDS, "processors": processors, "runs": runs},
        [
            Table(
                "Ingestion",
                ("way", "documents a second", "times one process"),
                [(way, rate, rate / rates[PROCESS]) for way, rate in rates.items()],
            )
        ],
        [
            Target(f"{way}, times the documents a second of one process", rates[way] / rates[PROCESS], ">=", wanted)
            for way, wanted in WANTED.items()
        ],
    )


def _in_process(name: str, documents: Sequence[Document], path: Path) -> tuple[float, dict[str, Cell]]:
    model = SharedLLMModel.from_pretrained(name)
    with SharedLLMContextStore(model, path, embedder=load_default_embedder()) as store:
        # The first batch of an actor is as large.
        first = BATCH_CHARACTERS // len(documents[0].text)
        store.add(documents[:first])
        start = time.perf_counter()
        store.add(documents[first:])
        return len(documents[first:]) / (time.perf_counter() - start), model_setting(model)


def _on_ray(name: str, documents: Sequence[Document], path: Path, actors: int, processors: float) -> float:
    done: list[tuple[float, int]] = []

    def note(report: IngestReport) -> None:
        done.append((time.perf_counter(), report.stored))

    load = partial(SharedLLMModel.from_pretrained, name)
    ingest(load, path, documents, shards=actors, progress=note, num_cpus=processors)
    # Each has loaded its models when as many batches are done as there are actors.
    start, before = done[actors - 1]
    end, stored = done[-1]
    return (stored - before) / (end - start)
