"""Evidence: how often what a question is shown holds the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import get_args

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.config import Policy
from shared_context.evaluation.baselines import CHUNK_OVERLAP, CHUNK_SIZE, ChunkedRAG
from shared_context.evaluation.metrics import holds_a_span, paired_difference
from shared_context.evaluation.report import Report, Table, Target, model_setting, with_progress
from shared_context.evaluation.squad import Span, read_squad
from shared_context.store.embedder import load_default_embedder

BUDGETS = (128, 256, 512, 1024)
"""Tokens that a question is shown."""

WANTED = {256: 0.90, 512: 0.94, 1024: 0.985}
"""Recall that the hybrid policy has to reach."""

RAG = "chunked RAG"
DEFAULT = "hybrid, with the default floor"

Shown = Callable[[str, int], tuple[list[Span], int]]
"""What a question is shown under a budget: the characters, and how many tokens they are."""


def measure(model: SharedLLMModel, data: str | Path, *, limit: int | None = None) -> Report:
    """Answer-span recall of every scoring policy and of chunked RAG, at the same numbers of tokens.

    All paragraphs of ``data`` are one document. An answer counts as found if one of its gold spans is shown whole.

    Args:
        model: encodes and tokenizes for both sides; MiniLM embeds for both.
        data: a file in SQuAD format.
        limit: only so many of its questions.
    """
    squad = read_squad(data, unit="file")
    ((id, text),) = squad.documents.items()
    questions, embedder = squad.sample(limit), load_default_embedder()
    rag = ChunkedRAG(model, embedder, squad.documents)
    with SharedLLMContextStore(model, embedder=embedder) as store:
        store.add(text, id=id)
        # Without the floor, so that all are shown the same number of tokens; the floor has a row of its own.
        ways = {policy: _selection(store, policy, floor=0.0) for policy in get_args(Policy)}
        ways[DEFAULT] = _selection(store, "hybrid", floor=None)
        ways[RAG] = _chunks(rag)
        hits: dict[tuple[str, int], list[bool]] = {(way, budget): [] for way in ways for budget in BUDGETS}
        tokens: dict[tuple[str, int], list[int]] = {key: [] for key in hits}
        for question in with_progress(questions, "evidence"):
            for way, budget in hits:
                spans, count = ways[way](question.text, budget)
                hits[way, budget].append(holds_a_span(spans, question.spans))
                tokens[way, budget].append(count)

    recall = {key: fmean(found) for key, found in hits.items()}
    gains = {b: paired_difference(hits["hybrid", b], hits[RAG, b]) for b in BUDGETS if b >= CHUNK_SIZE}
    columns = ("", *(f"{budget} tokens" for budget in BUDGETS))
    return Report(
        "evidence",
        {**model_setting(model), "document": len(model.tokenize(text)), "questions": len(questions)},
        [
            Table("Share of questions whose answer is shown", columns, _by_way(ways, recall)),
            Table("Tokens shown, mean", columns, _by_way(ways, {key: fmean(counts) for key, counts in tokens.items()})),
            Table(
                "hybrid minus chunked RAG, 95% interval over questions",
                ("tokens", "difference", "from", "to"),
                [(budget, gain.mean, gain.low, gain.high) for budget, gain in gains.items()],
            ),
        ],
        [Target(f"hybrid at {b} tokens", recall["hybrid", b], ">=", wanted) for b, wanted in WANTED.items()]
        + [Target(f"hybrid over chunked RAG at {b} tokens", recall["hybrid", b], ">", recall[RAG, b]) for b in gains],
        [
            f"Chunked RAG: LlamaIndex's VectorStoreIndex over SentenceSplitter chunks of {CHUNK_SIZE} tokens, overlap "
            f"{CHUNK_OVERLAP}, with the same embedder and tokenizer. Nobody is shown more tokens than the column says; "
            "a chunk or leaf that does not fit any more is passed over for the next best."
        ],
    )


def _selection(store: SharedLLMContextStore, policy: Policy, floor: float | None) -> Shown:
    def shown(question: str, budget: int) -> tuple[list[Span], int]:
        nodes = store.select(question, budget=budget, policy=policy, floor=floor).nodes
        return [(node.start, node.end) for node in nodes], sum(node.token_count for node in nodes)

    return shown


def _chunks(rag: ChunkedRAG) -> Shown:
    def shown(question: str, budget: int) -> tuple[list[Span], int]:
        chunks = rag.within(question, budget)
        return [(c.node.start_char_idx, c.node.end_char_idx) for c in chunks], rag.count_tokens(chunks)

    return shown


def _by_way(ways: dict[str, Shown], figures: dict[tuple[str, int], float]) -> list[tuple[str | float | None, ...]]:
    # A budget below the size of a chunk is none that chunked RAG could serve.
    return [(w, *(None if w == RAG and b < CHUNK_SIZE else figures[w, b] for b in BUDGETS)) for w in ways]
