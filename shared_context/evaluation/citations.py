"""Citations: is the passage that holds the answer among those that a right answer is said to rest on?"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from shared_context import Document, SharedLLMContextStore, SharedLLMModel
from shared_context.errors import DocumentError
from shared_context.evaluation.metrics import containment, holds_a_span, mean_with_interval
from shared_context.evaluation.questions import Question, Span, Unit, read_questions
from shared_context.evaluation.report import Report, Table, Target, model_setting
from shared_context.store.citing import Citation, leaned_on, leaned_on_most

DRAWS = 50
"""How often as many leaves are named at random, for the control."""

WANTED = 0.9


def measure(
    model: SharedLLMModel,
    data: str | Path,
    *,
    unit: Unit = "file",
    limit: int | None = None,
    seed: int = 0,
    budget: int = 1024,
    max_tokens: int = 24,
) -> Report:
    """Share of right answers whose gold passage is named by the attention that they paid.

    An answer is right where a gold one stands in it, and counts where what was shown holds a gold span. The control
    names as many of the leaves that were shown at random.

    Args:
        model: answers.
        data: questions with gold answers, as ``read_questions`` reads them.
        unit: what of the data becomes a document.
        limit: only so many questions, drawn at random.
        seed: of the drawing, of the control and of the interval.
        budget: KV entries of each selection.
        max_tokens: tokens of an answer at most.

    Raises:
        DocumentError: no answer was right.
    """
    asked = read_questions(data, unit=unit)
    chosen, rng = asked.sample(limit, seed), np.random.default_rng(seed)
    with SharedLLMContextStore(model) as store:
        for id, text in asked.documents.items():
            store.add(Document(text, id))
        found = [_result(store, question, budget, max_tokens, rng) for question in chosen]
    right = [one for one in found if one is not None]
    if not right:
        raise DocumentError(f"{data}: none of {len(chosen)} answers was right, so there is nothing to be named")
    named = mean_with_interval([one["named"] for one in right], seed=seed)
    columns = ("", "gold passage among them", "from", "to", "leaves named", "of leaves shown")
    leaves, shown = fmean(one["leaves"] for one in right), fmean(one["shown"] for one in right)
    rows = [
        ("by attention", named.mean, named.low, named.high, leaves, shown),
        ("control: as many at random", fmean(one["random"] for one in right), None, None, leaves, shown),
    ]
    setting = {
        **model_setting(model), "questions": len(chosen), "right answers": len(right), "budget": budget, "seed": seed,
    }  # fmt: skip
    cost = sum(one["cited_in"] for one in right) / sum(one["answered_in"] for one in right)
    notes = [f"Naming them took {cost:.2f} of the processor time that the answers took, first tokens and all."]
    targets = [Target("gold passage among those named", named.mean, ">=", WANTED)]
    return Report(
        "citations", setting, [Table("Passages that right answers rest on", columns, rows)], targets, notes=notes
    )


def _result(
    store: SharedLLMContextStore, question: Question, budget: int, max_tokens: int, rng: np.random.Generator
) -> dict[str, Any] | None:
    """What is named of a right answer; None where it is wrong, or right by chance."""
    selection = store.select(question.text, budget=budget)
    store.warm(selection)
    began = time.process_time()
    answer = store.model.generate(question.text, context=selection, max_new_tokens=max_tokens)
    answered = time.process_time()
    whole = [Span(passage.doc_id, passage.start, passage.end) for passage in selection.sources]
    if not containment(answer, question.answers) or not holds_a_span(whole, question.spans):
        return None
    began_to_cite = time.process_time()
    attention = store.model.attribute(question.text, answer, context=selection)
    cited_in = time.process_time() - began_to_cite
    leaves = len(selection.nodes)
    named = leaned_on(selection, attention)
    count = len(leaned_on_most(selection, attention))
    drawn = []
    for _ in range(DRAWS):
        chosen = np.zeros(leaves)
        chosen[rng.choice(leaves, count, replace=False)] = 1.0
        drawn.append(_holds(leaned_on(selection, chosen.tolist()), question))
    return {
        "named": float(_holds(named, question)),
        "random": fmean(drawn),
        "leaves": count,
        "shown": leaves,
        "answered_in": answered - began,
        "cited_in": cited_in,
    }


def _holds(citations: list[Citation], question: Question) -> bool:
    spans = [Span(passage.doc_id, passage.start, passage.end) for passage, _ in citations]
    return holds_a_span(spans, question.spans)
