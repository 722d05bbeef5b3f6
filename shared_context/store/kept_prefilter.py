"""The prefilter of a store that changes: made when it is first asked, and what it learns is kept for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from shared_context.store import prefilter as prefilters
from shared_context.store.leaves import Leaves
from shared_context.store.node_index import NodeIndex
from shared_context.store.prefilter import Prefilter
from shared_context.store.span_lists import SpanFile

Owner: TypeAlias = Literal["document", "chunk"]
"""What a span belongs to: a document, by its key, or a chunk, by its row in the leaves."""


class KeptPrefilter:
    """Tells which documents and chunks of an index are nearest to a query.

    Args:
        index: what is compared with the query.
        file: keeps how spans are divided into lists; None keeps nothing.
    """

    def __init__(self, index: NodeIndex, file: SpanFile | None = None):
        self._index, self._file = index, file
        self._made: tuple[Leaves, Prefilter] | None = None

    def nearest(self, embedding: np.ndarray, owner: Owner, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`~shared_context.store.prefilter.Prefilter.nearest`."""
        leaves = self._index.leaves()
        if self._made is None:
            many = len(leaves.span_document) > prefilters.EXHAUSTIVE_SPANS
            self._made = leaves, Prefilter(leaves, self._file.read() if many and self._file is not None else None)
        elif self._made[0] is not leaves:
            self._made[1].update(leaves)
            self._made = leaves, self._made[1]
        return self._made[1].nearest(embedding, spans_of(leaves, owner), count)

    def keep(self, of_now: Callable[[Leaves], bool]) -> None:
        """Write the file where much of what it tells has changed; called while the store is not read.

        Args:
            of_now: whether leaves are those that the store holds now, asked before the file is written, while nobody
                else writes. Not kept here, or a catalogue and its prefilter would hold each other, and the mapped file.
        """
        if self._file is not None and self._made is not None and self._made[1].due:
            leaves, prefilter = self._made
            # Else what was deleted meanwhile would come back.
            self._file.write(prefilter.kept, lambda: of_now(leaves))


def spans_of(leaves: Leaves, owner: Owner) -> np.ndarray:
    """What each span belongs to, int64 [spans]."""
    return leaves.span_document if owner == "document" else leaves.span_chunk
