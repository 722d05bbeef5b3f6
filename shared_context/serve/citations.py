"""Citations: what an answer rests on, as annotations in OpenAI's form."""

from __future__ import annotations

from typing import Any

from shared_context.store.selection import Passage, Selection


def sources(selection: Selection | None) -> list[Passage]:
    """The passages that were shown of documents, best score first."""
    shown = selection.sources if selection is not None else []
    return sorted((p for p in shown if not p.header and p.said is None), key=lambda passage: -passage.score)


def annotation(passage: Passage, answer: str) -> dict[str, Any]:
    """A passage as an annotation of the whole answer.

    ``start_index`` and ``end_index`` count in the answer, as in OpenAI's; ``start`` and ``end`` count the document's
    characters, and ``quote`` is exactly what stands there.
    """
    return {
        "type": "file_citation",
        "start_index": 0,
        "end_index": len(answer),
        "file_citation": {
            "file_id": passage.doc_id,
            "filename": str(passage.metadata.get("file_name", passage.doc_id)),
            "quote": passage.text,
            "start": passage.start,
            "end": passage.end,
            "score": round(passage.score, 4),
        },
    }
