"""The rows of an index's leaves that hold a word."""

from __future__ import annotations

import numpy as np

from shared_context.store.node_index import Leaves, NodeIndex
from shared_context.store.word_index import WordIndex

KEPT_ROWS = 1 << 23
"""Rows of leaves that are remembered, of all terms together; four bytes each."""


class Postings:
    """Looks words up and remembers what was found until the index changes.

    Args:
        words: which leaves of all documents hold a word.
        index: those of them that are asked about.
    """

    def __init__(self, words: WordIndex, index: NodeIndex):
        self._words, self._index = words, index
        self._leaves: Leaves | None = None
        self._rows: dict[str, np.ndarray] = {}
        self._languages: list[str] = []

    def rows(self, term: str) -> np.ndarray:
        """Rising rows of the leaves that hold a term, int32."""
        self._renew()
        if (rows := self._rows.get(term)) is None:
            rows = self._look_up(term)
            if sum(map(len, self._rows.values())) + len(rows) > KEPT_ROWS:
                self._rows.clear()
            self._rows[term] = rows
        return rows

    def languages(self) -> list[str]:
        """The languages that documents were taken for."""
        self._renew()
        return self._languages

    def _renew(self) -> None:
        if self._leaves is not self._index.leaves():
            self._leaves = self._index.leaves()
            self._rows, self._languages = {}, self._words.languages()

    def _look_up(self, term: str) -> np.ndarray:
        documents, leaves = self._words.leaves_with(term)
        first = np.searchsorted(self._leaves.document, documents)
        rows = first + leaves
        there = rows < len(self._leaves)
        there[there] = self._leaves.document[rows[there]] == documents[there]
        return rows[there].astype(np.int32)
