"""Needles: whether a selection shows them and the model names them, by depth and length of the haystack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import ImportanceMethod, StoreConfig, one_of
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.metrics import containment, holds_a_span, mean_with_interval
from shared_context.evaluation.needle_tasks import AT_A_DEPTH, TASKS, Needles, Task, make_needles
from shared_context.evaluation.questions import Span
from shared_context.evaluation.remembering import RememberingEmbedder
from shared_context.evaluation.report import Exhibit, HeatMap, Report, Table, model_setting
from shared_context.store.embedder import load_default_embedder

LENGTHS = (1024, 4096, 16_384)
"""Tokens of a haystack."""

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

TRIALS = 2
BUDGET = 256
ANSWER_TOKENS = 48

SPREAD = "spread"


@dataclass(frozen=True)
class Cell:
    """One haystack.

    Attributes:
        task: of the needles.
        length: tokens of the haystack.
        depth: of the needle that is asked for; None where needles are spread.
        trial: which of several.
    """

    task: Task
    length: int
    depth: float | None
    trial: int

    @property
    def key(self) -> str:
        """Names the cell."""
        return f"{self.task}|{self.length}|{self.depth}|{self.trial}"

    def chance(self, seed: int) -> np.random.Generator:
        """Draws names and numbers: those of a cell do not depend on which other cells are measured.

        Lockers alone are the same at all depths, where only another one is asked for.
        """
        depth = None if self.task == "key-value" else self.depth
        return np.random.default_rng([seed, *replace(self, depth=depth).key.encode()])


def measure(
    model: SharedLLMModel,
    text: str,
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    tasks: Sequence[Task] = TASKS,
    trials: int = TRIALS,
    budget: int = BUDGET,
    ratio: int | None = None,
    importance: ImportanceMethod = "repetition",
    seed: int = 0,
    resume: str | Path | None = None,
) -> Report:
    """Share of the needles that a selection shows, and of the values that the answer names.

    The control is the answer without any context: what it names was guessed.

    Args:
        model: answers; MiniLM embeds.
        text: Markdown, whose sections are repeated to make haystacks.
        lengths: tokens of the haystacks.
        depths: of the needle that is asked for, between 0 and 1.
        tasks: which.
        trials: haystacks for each task, length and depth.
        budget: KV entries of a selection.
        ratio: show all of the haystack at this one grain instead of a selection, nothing left out.
        importance: how it is known which rows a coarse grain keeps.
        seed: of names, numbers and the intervals.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    for task in tasks:
        one_of("task", task, Task)
    cells = {
        cell.key: cell
        for task, length in product(tasks, lengths)
        for depth in (depths if task in AT_A_DEPTH else [None])
        for trial in range(trials)
        for cell in [Cell(task, length, depth, trial)]
    }
    embedder, tokenize = RememberingEmbedder(load_default_embedder()), cache(model.tokenize)
    haystacks = {length: repeat_to(model, text, length) for length in lengths}
    settings = {
        "measurement": "needle", "model": reader_identity(model), "embedder": embedder.name,
        "text": hashlib.sha256(text.encode()).hexdigest()[:16], "seed": seed,
        "budget": budget, "ratio": ratio, "importance": importance,
    }  # fmt: skip

    def compute(keys: list[str]) -> list[dict[str, float]]:
        results = []
        for key in keys:
            cell = cells[key]
            depth = 0.0 if cell.depth is None else cell.depth
            needles = make_needles(cell.task, haystacks[cell.length], depth, cell.chance(seed), tokenize)
            # The same store for all: what the needles leave as it was is neither embedded nor encoded again.
            if "haystack" in store:
                store.update("haystack", needles.text)
            else:
                store.add(needles.text, id="haystack")
            results.append(_result(store, needles, budget, ratio))
        return results

    with SharedLLMContextStore(model, embedder=embedder, config=StoreConfig(importance=importance)) as store:
        results = Ledger(resume, settings).results(list(cells), compute, what="needle")
    by_cell = dict(zip(cells.values(), results, strict=True))
    shown = f"the selection of {budget:,} KV entries" if ratio is None else f"what is shown at ratio {ratio}: all of it"
    grain = {"budget": budget} if ratio is None else {"ratio": ratio, "importance": importance}
    return Report(
        "needle",
        {**model_setting(model), "embedder": embedder.name, **grain, "trials": trials, "seed": seed},
        [*_maps(by_cell, tasks, lengths, depths), _summary(by_cell, tasks, seed)],
        notes=[
            f"A needle counts as shown if its whole sentence is in {shown}, and a value "
            "as named if it stands in the answer. Where several are asked for, the share of them counts. Tasks after "
            "RULER's definitions, in other sentences."
        ],
    )


def _result(store: SharedLLMContextStore, needles: Needles, budget: int, ratio: int | None) -> dict[str, float]:
    everything = ratio is not None
    selection = store.select(None, ratio=ratio) if everything else store.select(needles.question, budget=budget)
    shown = [Span(node.doc_id, node.start, node.end) for node in selection.nodes]
    answers = store.model.generate([needles.question] * 2, context=[selection, None], max_new_tokens=ANSWER_TOKENS)
    named, guessed = (fmean(containment(answer, [value]) for value in needles.values) for answer in answers)
    return {
        "shown": fmean(float(holds_a_span(shown, [span])) for span in needles.spans),
        "named": named,
        "guessed": guessed,
    }


def _maps(
    by_cell: dict[Cell, dict[str, float]], tasks: Sequence[Task], lengths: Sequence[int], depths: Sequence[float]
) -> list[Exhibit]:
    maps: list[Exhibit] = []
    for task, (measured, title) in product(
        tasks, (("shown", "needles shown"), ("named", "values named in the answer"))
    ):
        rows = depths if task in AT_A_DEPTH else [None]
        values = [
            [fmean(r[measured] for c, r in by_cell.items() if (c.task, c.depth, c.length) == (task, depth, length))
             for length in lengths]
            for depth in rows
        ]  # fmt: skip
        names = [SPREAD if depth is None else f"{depth:.0%}" for depth in rows]
        maps.append(HeatMap(f"{task}: {title}", "depth", "tokens", names, [f"{n:,}" for n in lengths], values))
    return maps


def _summary(by_cell: dict[Cell, dict[str, float]], tasks: Sequence[Task], seed: int) -> Table:
    rows = []
    for task in tasks:
        results = [result for cell, result in by_cell.items() if cell.task == task]
        named = mean_with_interval([result["named"] for result in results], seed=seed)
        rows.append((task, len(results), fmean(r["shown"] for r in results), named.mean, named.low, named.high,
                     fmean(r["guessed"] for r in results)))  # fmt: skip
    return Table(
        "All lengths and depths; 95% interval over haystacks",
        ("task", "haystacks", "shown", "named", "from", "to", "control: named without context"),
        rows,
    )
