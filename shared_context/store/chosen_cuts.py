"""What is chosen for a query: the cut of each chunk that something is shown of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from shared_context.config import Policy
from shared_context.tree import GrainedNode

Twins: TypeAlias = Mapping[tuple[int, int, int], Collection[int]]
"""Keys of documents that say the same, by document, chunk and leaf."""


class ChunkCut(NamedTuple):
    """What is shown of one chunk.

    Attributes:
        key: its document.
        number: its place in the document.
        cut: the grained nodes that are shown, from left to right.
        scores: of the nodes that are shown, by level and then by index; None where nothing was scored.
    """

    key: int
    number: int
    cut: Sequence[GrainedNode]
    scores: Sequence[np.ndarray] | Mapping[int, Mapping[int, float]] | None = None


class ChosenCuts(NamedTuple):
    """What is shown of all documents.

    Attributes:
        cuts: in document order.
        budget: KV entries that were allowed; None where there was no limit.
        policy: how nodes were scored; None where they were not.
        twins: documents that say the same as a leaf, by the leaf's document, chunk and slot.
    """

    cuts: list[ChunkCut]
    budget: int | None
    policy: Policy | None
    twins: Twins = MappingProxyType({})
