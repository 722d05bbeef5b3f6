"""Answers: how likely the model finds the gold answer, by what it is shown and how."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from shared_context import Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.baselines import ChunkedRAG, in_document_order, pasted
from shared_context.evaluation.metrics import paired_difference
from shared_context.evaluation.report import Report, Table, Target, model_setting, with_progress
from shared_context.evaluation.squad import Question, Squad, read_squad
from shared_context.store.embedder import load_default_embedder

BUDGET = 1024
"""KV entries of a selection."""

TOP_K = 4
"""Chunks of chunked RAG, 256 tokens each: as much as the budget."""

NONE = "no context"
RAG_BEST_FIRST = "chunked RAG, top 4 chunks as text, best first"
RAG_IN_ORDER = "chunked RAG, top 4 chunks as text, document order"
RAG_ONE = "chunked RAG, top chunk as text"
INJECTED = "selection, injected"
PASTED = "selection, its text pasted"
FULL = "selection without the floor, injected"
GOLD = "gold paragraph as text"
WRONG = "control: selection for another question, injected"


def measure(model: SharedLLMModel, data: str | Path, *, limit: int | None = None) -> Report:
    """Mean negative log-likelihood (nats per token) of the gold answer under several contexts, in the same prompt.

    Every article is one document. The control is a selection for another question, over the documents that do not
    hold the answer, of as many tokens: what the injected selection gains over it came through the context.

    Args:
        model: answers; MiniLM embeds for both sides.
        data: a file in SQuAD format.
        limit: only so many of its questions.
    """
    squad = _several_documents(data)
    questions, embedder = squad.sample(limit), load_default_embedder()
    rag = ChunkedRAG(model, embedder, squad.documents)
    scores: dict[str, list[float]] = {}
    shown: dict[str, list[int]] = {}
    with SharedLLMContextStore(model, embedder=embedder) as store:
        for id, text in squad.documents.items():
            store.add(text, id=id)
        for number, question in enumerate(with_progress(questions, "answers")):
            other = questions[(number + len(questions) // 2) % len(questions)]
            for name, context in _contexts(store, rag, squad, question, other).items():
                scores.setdefault(name, []).append(model.score(question.text, question.answer, context=context))
                shown.setdefault(name, []).append(_tokens(model, context))

    mean = {name: fmean(nll) for name, nll in scores.items()}
    rag_at_best = min(RAG_BEST_FIRST, RAG_IN_ORDER, key=mean.__getitem__)
    pairs = [
        (INJECTED, rag_at_best), (INJECTED, RAG_ONE), (INJECTED, PASTED), (PASTED, rag_at_best), (FULL, rag_at_best),
        (INJECTED, NONE), (INJECTED, WRONG),
    ]  # fmt: skip
    differences = {pair: paired_difference(scores[pair[0]], scores[pair[1]]) for pair in pairs}
    return Report(
        "answers",
        {**model_setting(model), "documents": len(squad.documents), "questions": len(questions), "budget": BUDGET},
        [
            Table(
                "Negative log-likelihood of the gold answer, nats per token",
                ("context", "mean NLL", "tokens shown"),
                [(name, mean[name], fmean(shown[name])) for name in mean],
            ),
            Table(
                "Differences, 95% interval over questions (below zero: the first is better)",
                ("first", "minus", "difference", "from", "to"),
                [(*pair, d.mean, d.low, d.high) for pair, d in differences.items()],
            ),
        ],
        [
            Target("mean NLL, injected, against chunked RAG at its best", mean[INJECTED], "<=", mean[rag_at_best]),
            Target("injected minus control, upper end", differences[INJECTED, WRONG].high, "<=", 0.0),
        ],
        [
            "Chunked RAG at its best: the better of the two orders of its four chunks, known only afterwards. The "
            f"selection may hold {BUDGET:,} KV entries and leaves out what is far below its best leaf; without the "
            "floor it spends them all."
        ],
    )


def _several_documents(data: str | Path) -> Squad:
    """The articles of a file as its documents, or its paragraphs if it has one article only."""
    squad = read_squad(data, unit="article")
    return squad if len(squad.documents) > 1 else read_squad(data, unit="paragraph")


def _contexts(
    store: SharedLLMContextStore, rag: ChunkedRAG, squad: Squad, question: Question, other: Question
) -> dict[str, Selection | str | None]:
    chunks = rag.top(question.text, TOP_K)
    selection = store.select(question.text, budget=BUDGET)
    elsewhere = [id for id in squad.documents if id != question.document]
    return {
        NONE: None,
        RAG_BEST_FIRST: pasted(chunks),
        RAG_IN_ORDER: pasted(in_document_order(chunks)),
        RAG_ONE: pasted(chunks[:1]),
        INJECTED: selection,
        PASTED: selection.text,
        FULL: store.select(question.text, budget=BUDGET, floor=0.0),
        GOLD: squad.documents[question.document][slice(*question.paragraph)],
        WRONG: store.select(
            other.text,
            budget=max(selection.kv_entries, store.config.tree.leaf_size),
            floor=0.0,
            doc_ids=elsewhere,
        ),
    }


def _tokens(model: SharedLLMModel, context: Selection | str | None) -> int:
    if isinstance(context, Selection):
        return context.kv_entries
    return 0 if context is None else model.count_tokens(context)
