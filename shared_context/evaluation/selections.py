"""Selections: what is best shown under a budget: few leaves whole, more of them coarse, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import TreeConfig
from shared_context.errors import DocumentError
from shared_context.evaluation.answers import several_documents
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.metrics import covered, paired_difference
from shared_context.evaluation.questions import Question, QuestionSet, Span, read_evidence
from shared_context.evaluation.remembering import RememberingEmbedder
from shared_context.evaluation.report import Cell, Report, Table, model_setting
from shared_context.store.embedder import load_default_embedder

BUDGETS = (128, 256, 512, 1024)
"""KV entries of a selection."""

DEFAULT = "the default"
CONTROL = "control: the default, asked something else"
NEAR_TOKENS, NEAR, FAR = 128, 8, 16
"""Grains of nodes that are not opened: of those of NEAR_TOKENS or fewer, beside opened leaves, and of larger ones."""


def ways(tree: TreeConfig) -> dict[str, dict[str, Any]]:
    """Settings of ``select`` that are compared, by name."""
    return {
        DEFAULT: {},
        "whole leaves above a floor of 0.4": {"floor": 0.4, "fine": 1},
        "whole leaves": {"floor": 0.0, "fine": 1},
        **{f"leaves at ratio {ratio}": {"floor": 0.0, "fine": ratio} for ratio in (2, 4, 8)},
        "whole leaves above a floor of 0.4, their chunks coarse": {
            "floor": 0.4,
            "fine": 1,
            "coarse": coarse_below(tree),
        },
    }


def coarse_below(tree: TreeConfig) -> tuple[int, ...]:
    """Grains of nodes that are not opened, by level, root first."""
    return tuple(NEAR if tree.chunk_size >> level <= NEAR_TOKENS else FAR for level in range(tree.height + 1))


def measure(
    model: SharedLLMModel,
    data: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    budgets: Sequence[int] = BUDGETS,
    resume: str | Path | None = None,
) -> Report:
    """Evidence that is shown and mean negative log-likelihood of the gold answer, of every way under every budget.

    Documents with marked evidence are searched each by itself, those of other questions all together.

    Args:
        model: selects and answers.
        data: questions, or documents with marked characters, as ``eval evidence`` takes them.
        limit: only so many questions, drawn at random.
        seed: of the drawing and of the intervals.
        budgets: KV entries of a selection.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    asked, alone = _read(data)
    questions = [q for q in asked.drawn(None, seed) if q.answers][:limit]
    documents = {q.document for q in questions} if alone else set(asked.documents)
    embedder = RememberingEmbedder(load_default_embedder())
    with SharedLLMContextStore(model, embedder=embedder) as store:
        compared = ways(store.config.tree)
        store.add([Document(asked.documents[id], id) for id in asked.documents if id in documents])
        settings = {
            "measurement": "selections", "data": asked.identity, "model": reader_identity(model),
            "budgets": budgets, "ways": list(compared),
        }  # fmt: skip

        def compute(keys: list[str]) -> Iterator[dict[str, dict[str, tuple[float, float, int]]]]:
            for question in map(asked.by_key, keys):
                yield _result(model, store, asked, question, alone, compared, budgets)

        results = Ledger(resume, settings).results([asked.key(q) for q in questions], compute, what="selections")
    scores = {
        (way, budget): [result[way][str(budget)] for result in results]
        for way in [*compared, CONTROL]
        for budget in budgets
    }
    rows: list[Sequence[Cell]] = [
        (budget, way, *(fmean(of) for of in zip(*scores[way, budget], strict=True)))
        for budget in budgets
        for way in [*compared, CONTROL]
    ]
    differences: list[Sequence[Cell]] = [
        (budget, way, *_difference(scores[way, budget], scores[DEFAULT, budget], what))
        for budget in budgets
        for way in [*compared, CONTROL]
        if way != DEFAULT
        for what in ("evidence", "NLL")
    ]
    return Report(
        "selections",
        {
            **model_setting(model), "embedder": embedder.name, "documents": len(documents),
            "questions": len(questions), "of": len(asked.questions), "left out": asked.left_out_text, "seed": seed,
        },
        [
            Table(
                "Evidence shown, and negative log-likelihood of the gold answer, nats per token",
                ("budget", "way", "evidence", "mean NLL", "KV entries"),
                rows,
                keys=2,
            ),
            Table(
                f"Differences to {DEFAULT}, 95% interval over questions",
                ("budget", "way", "of", "difference", "from", "to"),
                differences,
                keys=3,
            ),
        ],
    )  # fmt: skip


def _read(data: str | Path) -> tuple[QuestionSet, bool]:
    """The questions, and whether each is asked about its own document alone."""
    try:
        return read_evidence(data), True
    except DocumentError:
        return several_documents(data), False


def _difference(first: Sequence, second: Sequence, what: str) -> tuple[str, float, float, float]:
    column = ("evidence", "NLL").index(what)
    found = paired_difference([one[column] for one in first], [one[column] for one in second])
    return what, found.mean, found.low, found.high


def _result(
    model: SharedLLMModel,
    store: SharedLLMContextStore,
    asked: QuestionSet,
    question: Question,
    alone: bool,
    compared: Mapping[str, Mapping[str, Any]],
    budgets: Sequence[int],
) -> dict[str, dict[str, tuple[float, float, int]]]:
    """For each way and budget the share of the evidence shown, the likelihood and the KV entries."""
    within: dict[str, Any] = {"doc_ids": [question.document]} if alone else {}
    others = [q for q in asked.questions if q.document in store and (q.document != question.document) and q.answers]
    other = others[asked.questions.index(question) % len(others)]
    others_ids = [other.document] if alone else [id for id in asked.documents if id != question.document]
    elsewhere: dict[str, Any] = {"doc_ids": others_ids}
    shown: dict[tuple[str, int], Selection] = {}
    for budget in budgets:
        for way, settings in compared.items():
            shown[way, budget] = store.select(question.text, budget=budget, **settings, **within)
        shown[CONTROL, budget] = store.select(other.text, budget=budget, **elsewhere)
    named = {way: _what(selection) for way, selection in shown.items()}
    once = {name: shown[way] for way, name in named.items()}
    found = model.nll(
        [question.text] * len(once), [question.answers[0]] * len(once), context=list(once.values()), batch_size=8
    )
    nll = dict(zip(once, found, strict=True))
    result: dict[str, dict[str, tuple[float, float, int]]] = {}
    for (way, budget), selection in shown.items():
        spans = [Span(node.doc_id, node.start, node.end) for node in selection.nodes]
        share = covered(spans, question.spans, asked.documents)
        result.setdefault(way, {})[str(budget)] = share, nll[named[way, budget]], selection.kv_entries
    return result


def _what(selection: Selection) -> tuple:
    """What a selection shows."""
    return tuple((node.doc_id, node.start, node.end, node.ratio) for node in selection.nodes)
