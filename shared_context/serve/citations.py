"""Citations: what an answer rests on, as annotations in OpenAI's form."""

from __future__ import annotations

from typing import Any

from shared_context.store.citing import Citation
from shared_context.store.selected import SelectedNode
from shared_context.store.selection import Selection
from shared_context.store.shown_document import parts_of


def shown(selection: Selection | None) -> list[Citation]:
    """All passages that were shown of documents, best score first."""
    passages = selection.sources if selection is not None else []
    found = [Citation(passage) for passage in passages if not passage.header and passage.said is None]
    return sorted(found, key=lambda citation: -citation.passage.score)


def seen_parts(selection: Selection | None, fine: int) -> list[dict[str, Any]]:
    """For each document that something is shown of, the parts of it that are seen, in its order.

    Args:
        selection: what is injected.
        fine: the largest ratio that counts as fine.
    """
    nodes: dict[str, list[SelectedNode]] = {}
    for node in selection.nodes if selection is not None else ():
        if not node.header and node.said is None:
            nodes.setdefault(node.doc_id, []).append(node)
    for shown in nodes.values():
        shown.sort(key=lambda node: node.start)
    return [
        {
            "file_id": id,
            "filename": str(shown[0].metadata.get("file_name", id)),
            "parts": [
                {
                    "start": part.start,
                    "end": part.end,
                    "grain": part.grain,
                    "ratio": part.node.ratio,
                    "score": round(part.node.score, 4),
                }
                for part in parts_of(max(node.end for node in shown), shown, fine)
                if part.node is not None
            ],
        }
        for id, shown in nodes.items()
    ]


def annotation(citation: Citation, answer: str) -> dict[str, Any]:
    """A citation as an annotation of the whole answer.

    ``start_index`` and ``end_index`` count in the answer, as in OpenAI's; ``start`` and ``end`` count the document's
    characters, and ``quote`` is exactly what stands there.
    """
    passage, attention = citation
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
            "also_in": list(passage.also_in),
            "attention": None if attention is None else round(attention, 4),
        },
    }
