"""The rows of an index's leaves that hold a word."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from shared_context.store.leaves import Leaves
from shared_context.store.node_index import NodeIndex
from shared_context.store.word_index import NamespaceWords

KEPT_ROWS = 1 << 23
"""Rows of leaves that are remembered, of all terms together; four bytes each."""


class Postings:
    """Looks words up and remembers what was found until the index changes.

    Args:
        words: which leaves of all documents hold a word.
        index: those of them that are asked about.
    """

    def __init__(self, words: NamespaceWords, index: NodeIndex):
        self._words, self._index = words, index
        self._leaves: Leaves | None = None
        self._rows: dict[str, np.ndarray] = {}
        self._languages: list[str] = []
        self._edges: tuple[np.ndarray, np.ndarray] | None = None

    def rows(self, terms: Collection[str]) -> dict[str, np.ndarray]:
        """Of each term, rising rows of the leaves that hold it, int32; all are looked up at once."""
        leaves = self._renewed()
        held = {term: rows for term in terms if (rows := self._rows.get(term)) is not None}
        if new := [term for term in dict.fromkeys(terms) if term not in held]:
            found = {term: _rows(*of, leaves) for term, of in zip(new, self._words.leaves_with(new), strict=True)}
            if sum(map(len, [*self._rows.values(), *found.values()])) > KEPT_ROWS:
                self._rows.clear()
            self._rows |= found
            held |= found
        return held

    def document_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each leaf, the first one of its document and the one behind the last, int64 [leaves]."""
        leaves = self._renewed()
        if self._edges is None:
            first = np.flatnonzero(np.diff(leaves.document, prepend=-1))
            lengths = np.diff(first, append=len(leaves))
            self._edges = np.repeat(first, lengths), np.repeat(first + lengths, lengths)
        return self._edges

    def languages(self) -> list[str]:
        """The languages that documents were taken for."""
        self._renewed()
        return self._languages

    def _renewed(self) -> Leaves:
        """The leaves that there are; what was remembered of others is forgotten."""
        leaves = self._index.leaves()
        if self._leaves is not leaves:
            self._leaves, self._rows, self._languages = leaves, {}, self._words.languages()
            self._edges = None
        return leaves


def _rows(documents: np.ndarray, leaves: np.ndarray, of: Leaves) -> np.ndarray:
    """Rows of those of some documents' leaves that there are."""
    rows = np.searchsorted(of.document, documents) + leaves
    there = rows < len(of)
    there[there] = of.document[rows[there]] == documents[there]
    return rows[there].astype(np.int32)
