"""Evidence: how much of what a question is about is shown, by how many tokens are, over whole documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from shared_context import Document, SharedLLMContextStore, SharedLLMModel
from shared_context.errors import DocumentError
from shared_context.evaluation.ledger import Ledger
from shared_context.evaluation.metrics import covered
from shared_context.evaluation.questions import Question, QuestionSet, Span, read_evidence
from shared_context.evaluation.remembering import RememberingEmbedder
from shared_context.evaluation.report import Report, model_setting
from shared_context.evaluation.retrieval import (
    AT_ITS_BEST,
    OURS,
    SHOWN,
    Shown,
    Way,
    baselines,
    compared,
    selections,
)
from shared_context.store.embedder import load_default_embedder

TOKENS = (128, 256, 512, 1024)
"""Tokens that a question is shown."""

ASKED_OTHERWISE = f"control: {OURS}, asked something else"
BEGINNING = "control: the beginning"


def measure(
    model: SharedLLMModel,
    data: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    tokens: Sequence[int] = TOKENS,
    resume: str | Path | None = None,
) -> Report:
    """Share of the evidence that is shown, and how often all of it is, of every policy and every baseline.

    Each document is searched by itself. Two controls say what is shown without regard to the question: what is shown
    for the next question about the document, and as many tokens from its beginning.

    Args:
        model: encodes and tokenizes for all; MiniLM embeds for all.
        data: documents with marked characters, as :func:`~shared_context.evaluation.questions.read_evidence` reads
            them.
        limit: only so many of their questions, drawn at random.
        seed: of the drawing and of the intervals.
        tokens: how many are shown.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.

    Raises:
        DocumentError: there is one question only.
    """
    asked = read_evidence(data)
    if len(asked.questions) < 2:
        raise DocumentError(f"{data} has one question: what another one finds is the control; mark evidence of two")
    chosen = asked.sample(limit, seed)
    not_run: dict[str, str] = {}
    of_document = _WaysOfDocuments(model, asked, not_run)
    ways = of_document(chosen[0].document)
    ledger = Ledger(
        resume,
        {
            "measurement": "evidence",
            "data": asked.identity,
            "model": model.identity,
            "embedder": of_document.embedder.name,
            "tokens": tokens,
            "ways": [way.name for way in ways],
        },
    )
    results = ledger.results(
        [asked.key(question) for question in chosen],
        lambda keys: [_result(of_document, asked.by_key(key), asked.documents, tokens) for key in keys],
        what="evidence",
    )
    of_document.close()
    reached = [(way.name, n) for way in ways for n in tokens if n >= way.least]
    share, whole, shown = (
        {key: np.array([float(result[key[0]][str(key[1])][what]) for result in results]) for key in reached}
        for what in range(3)
    )
    mean_shown = {key: fmean(values) for key, values in shown.items()}
    setting = {
        **model_setting(model), "embedder": of_document.embedder.name, "documents": len(asked.documents),
        "questions": len(chosen), "of": len(asked.questions), "left out": asked.left_out_text, "seed": seed,
    }  # fmt: skip
    parts = [
        *compared(ways, tokens, share, mean_shown, seed, title="Share of the evidence shown", short="share"),
        *compared(
            ways, tokens, whole, mean_shown, seed,
            title="Share of questions whose evidence is all shown", short="all shown",
        ),
    ]  # fmt: skip
    return Report("evidence", setting, parts, not_run=not_run, notes=[SHOWN, AT_ITS_BEST])


class _WaysOfDocuments:
    """The ways to choose from a document, for one document at a time.

    Args:
        model: encodes.
        asked: documents and questions.
        not_run: gets those baselines that cannot run.
    """

    def __init__(self, model: SharedLLMModel, asked: QuestionSet, not_run: dict[str, str]):
        self._model, self._asked, self._not_run = model, asked, not_run
        self.embedder = RememberingEmbedder(load_default_embedder())
        self._store: SharedLLMContextStore | None = None
        self._id: str | None = None
        self._ways: list[Way] = []

    def __call__(self, id: str) -> list[Way]:
        if id != self._id:
            self.close()
            text = self._asked.documents[id]
            self._store = SharedLLMContextStore(self._model, embedder=self.embedder)
            self._store.add(Document(text, id))
            ours = list(selections(self._store))
            (hybrid,) = (way for way in ours if way.name == OURS)
            controls = [
                Way(ASKED_OTHERWISE, "", hybrid.least, self._asked_otherwise(hybrid)),
                Way(BEGINNING, "", 1, self._beginning(id, text)),
            ]
            others = baselines(self._model, self.embedder, {id: text}, self._not_run)
            self._id, self._ways = id, [*ours, *controls, *others]
        return self._ways

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _asked_otherwise(self, way: Way) -> Callable[[str, Sequence[int]], Shown]:
        questions = self._asked.questions

        def show(question: str, tokens: Sequence[int]) -> Shown:
            place = next(n for n, q in enumerate(questions) if q.text == question and q.document == self._id)
            others = [*questions[place + 1 :], *questions[:place]]
            other = next((q for q in others if q.document == self._id and q.text != question), others[0])
            return way.show(other.text, tokens)

        return show

    def _beginning(self, id: str, text: str) -> Callable[[str, Sequence[int]], Shown]:
        bounds = self._model.tokenize(text).bounds

        def show(question: str, tokens: Sequence[int]) -> Shown:
            counts = {n: min(n, len(bounds) - 1) for n in tokens}
            return {n: ([Span(id, 0, int(bounds[count]))], count) for n, count in counts.items()}

        return show


def _result(
    of_document: Callable[[str], list[Way]], question: Question, documents: Mapping[str, str], tokens: Sequence[int]
) -> dict[str, dict[str, tuple[float, bool, int]]]:
    """For each way and number of tokens allowed: the share shown, whether that is all, and how many tokens are."""
    result: dict[str, Any] = {}
    for way in of_document(question.document):
        shown = way.show(question.text, [n for n in tokens if n >= way.least])
        shares = {n: covered(spans, question.spans, documents) for n, (spans, _) in shown.items()}
        result[way.name] = {str(n): (shares[n], shares[n] == 1, used) for n, (_, used) in shown.items()}
    return result
