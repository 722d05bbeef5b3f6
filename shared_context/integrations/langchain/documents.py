"""LangChain documents, and the documents, nodes and selections of a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument

from shared_context import Document, SelectedNode, Selection, SharedLLMContextStore
from shared_context.store.selection import JoinedSelections

Span = tuple[str, int, int, int, float]
"""Document id, start and end in characters, ratio, score."""


def to_store(documents: Iterable[LangChainDocument]) -> list[Document]:
    """Documents to be stored, whole: page content, id (None is derived by the store) and metadata."""
    return [Document(text=each.page_content, id=each.id, metadata=each.metadata) for each in documents]


def from_runs(runs: Iterable[Sequence[SelectedNode]]) -> list[LangChainDocument]:
    """One passage for each run of nodes that touch in their document, best first.

    Its metadata is the stored document's, and then ``doc_id``, ``start`` and ``end`` (characters), ``level``,
    ``ratio`` and ``score``, which win over keys of the same name.

    Args:
        runs: nodes of one grain each, in document order.
    """
    passages = [_passage(run) for run in runs]
    return sorted(passages, key=lambda passage: passage.metadata["score"], reverse=True)


def _passage(run: Sequence[SelectedNode]) -> LangChainDocument:
    first, start, end = run[0], run[0].start, run[-1].end
    return LangChainDocument(
        id=f"{first.doc_id}:{start}-{end}",
        page_content="".join(node.text for node in run),
        metadata={
            **first.metadata,
            "doc_id": first.doc_id,
            "start": start,
            "end": end,
            "level": first.level,
            "ratio": first.ratio,
            "score": max(node.score for node in run),
        },
    )


def divide(
    store: SharedLLMContextStore, passages: Iterable[LangChainDocument]
) -> tuple[list[Span], list[LangChainDocument]]:
    """Parts passages into those whose KV ``store`` can give and those that exist as text only.

    A passage is the store's if its text is word for word what stands where its metadata says. One that was changed on
    the way (masked, shortened) is not: its KV would still say what the change took out.

    Returns:
        Spans to inject, without doubles and scored by their rank, and the passages to paste, both in the order given.
    """
    texts: dict[str, str] = {}
    spans: dict[tuple[str, int, int, int], None] = {}
    foreign = []
    for passage in passages:
        where = passage.metadata
        doc_id, start, end = where.get("doc_id"), where.get("start"), where.get("end")
        # Other retrievers name documents by this key too, and say of places nothing or something else.
        placed = isinstance(doc_id, str) and isinstance(start, int) and isinstance(end, int)
        if placed and doc_id in store and doc_id not in texts:
            texts[doc_id] = store.get(doc_id).text
        if placed and passage.page_content and texts.get(doc_id, "")[start:end] == passage.page_content:
            spans[(doc_id, start, end, where.get("ratio", 1))] = None
        else:
            foreign.append(passage)
    # The order is a reranker's last word, where the scores may still be the retriever's.
    return [(*span, -float(rank)) for rank, span in enumerate(spans)], foreign


def describe(context: Any) -> Any:
    """A context as JSON values, for traces and cache keys: every passage with its grain and text."""
    if isinstance(context, Selection | JoinedSelections):
        return [
            {"doc_id": n.doc_id, "start": n.start, "end": n.end, "ratio": n.ratio, "text": n.text}
            for n in context.nodes
        ]
    return context
