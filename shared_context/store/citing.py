"""Citing: which of the passages that were shown an answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared_context.store.selected import Passage, SelectedNode
from shared_context.store.selection import Selection

CITED = 0.5
"""What leans on a node at least so much as on the one it leans on most, as a share, is cited."""


class Citation(NamedTuple):
    """A passage that an answer rests on.

    Attributes:
        passage: of a document.
        attention: that the answer paid to it, see :meth:`SharedLLMModel.attribute`; None where that was not watched.
    """

    passage: Passage
    attention: float | None = None


def leaned_on_most(selection: Selection, attention: Sequence[float]) -> list[tuple[SelectedNode, float]]:
    """The nodes that an answer leans on, in document order, each with the attention that it paid.

    Args:
        selection: what was shown.
        attention: that the answer paid to each of its nodes.
    """
    paid = [(node, paid) for node, paid in zip(selection.nodes, attention, strict=True) if not node.header]
    most = max((paid for _, paid in paid), default=0.0)
    return [(node, paid) for node, paid in paid if most > 0 and paid >= CITED * most]


def leaned_on(selection: Selection, attention: Sequence[float]) -> list[Citation]:
    """The passages of those nodes, what is leaned on most of all first; takes what :func:`leaned_on_most` does."""
    named = leaned_on_most(selection, attention)
    found = []
    for passage in selection.subset(node for node, _ in named).sources:
        own = [
            paid
            for node, paid in named
            if node.doc_id == passage.doc_id and passage.shown[0] <= node.start and node.end <= passage.shown[1]
        ]
        if own and not passage.header:
            found.append(Citation(passage, max(own)))
    return sorted(found, key=lambda citation: -(citation.attention or 0.0))
