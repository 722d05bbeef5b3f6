"""BM25 over whole words, in leaves with their surroundings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from shared_context.store.leaves import Leaves
from shared_context.store.postings import Postings

SURROUNDINGS = (2, 8)
"""Leaves on each side that are a leaf's surroundings, near and far: a passage is known by words around the answer, and
a section by all of them."""

K1 = 1.2
"""How soon more leaves with a word say nothing new; the usual value. Leaves are equally long, so that b is 0."""

_SATURATED = np.array([n * (K1 + 1) / (n + K1) for n in range(2 * max(SURROUNDINGS) + 2)], dtype=np.float32)


SPARSE = 4
"""Where a term is near to fewer leaves than one of so many, only these are counted; and where fewer are scored, each of
them looks for the term around it."""


class Gains:
    """What terms add to the scores of leaves, for several queries that have terms in common.

    Args:
        postings: looks terms up.
        terms: of all queries.
        leaves: all that there are.
        scored: rows of the few that are scored, int64 [scored]; None scores all.
    """

    def __init__(self, postings: Postings, terms: Collection[str], leaves: Leaves, scored: np.ndarray | None = None):
        self._rows, self._edges, self._all = postings.rows(terms), postings.document_edges(), len(leaves)
        self._scored = scored
        self._of_term: dict[str, list[tuple[np.ndarray | slice, np.ndarray]]] = {}

    def __len__(self) -> int:
        """Leaves that are scored."""
        return self._all if self._scored is None else len(self._scored)

    def of(self, term: str) -> list[tuple[np.ndarray | slice, np.ndarray]]:
        """Which of the leaves that are scored, and what the term adds to the score of each, one after the other."""
        if term not in self._of_term:
            self._of_term[term] = self._of_rows(self._rows[term])
        return self._of_term[term]

    def of_leaves(self, found: np.ndarray) -> list[tuple[np.ndarray | slice, np.ndarray]]:
        """The same of a term that some of the leaves that are scored hold, int64, rising."""
        return self._of_rows(found if self._scored is None else self._scored[found])

    def row(self, found: int) -> int:
        """The row among all leaves of one that is scored."""
        return found if self._scored is None else int(self._scored[found])

    def rows(self, term: str) -> np.ndarray:
        """Rising rows of all leaves that hold one of the terms."""
        return self._rows[term]

    def idf(self, leaves: int) -> np.float32:
        """What a term says that so many of all leaves hold."""
        return np.float32(np.log(1 + (self._all - leaves + 0.5) / (leaves + 0.5)))

    def among(self, rows: np.ndarray) -> np.ndarray:
        """Which of the leaves that are scored stand in some rising rows, rising."""
        if self._scored is None or not len(rows):
            return rows
        places = np.searchsorted(rows, self._scored.astype(rows.dtype)).clip(max=len(rows) - 1)
        return np.flatnonzero(rows[places] == self._scored)

    def beside(self, found: np.ndarray, step: int) -> np.ndarray:
        """Which of the leaves that are scored stand right before (-1) or behind (1) some, in their documents."""
        rows = found if self._scored is None else self._scored[found]
        first, behind = (edge[rows] for edge in self._edges)
        there = (rows + step >= first) & (rows + step < behind)
        if self._scored is not None:
            there &= self._scored[(found + step).clip(0, len(self._scored) - 1)] == rows + step
        return found[there] + step

    def _of_rows(self, rows: np.ndarray) -> list[tuple[np.ndarray | slice, np.ndarray]]:
        if not len(rows):
            return []
        idf = self.idf(len(rows))
        if self._scored is not None:
            return [(slice(None), idf * gain) for gain in self._around_few(rows, self._scored)]
        gains: list[tuple[np.ndarray | slice, np.ndarray]] = [(rows, np.full(len(rows), idf))]
        first, behind = (edge[rows] for edge in self._edges)
        for reach in SURROUNDINGS:
            near, counts = _around(np.maximum(rows - reach, first), np.minimum(rows + reach + 1, behind), self._all)
            gains.append((near, idf * _SATURATED[counts]))
        return gains

    def _around_few(self, rows: np.ndarray, scored: np.ndarray) -> Iterable[np.ndarray]:
        """Whether each of the few leaves is one of ``rows``, and how much those in its surroundings say."""
        first, behind = (edge[scored] for edge in self._edges)
        for reach in (0, *SURROUNDINGS):
            # Of their type, or all of them would be copied.
            begin, end = np.maximum(scored - reach, first), np.minimum(scored + reach + 1, behind)
            counts = np.searchsorted(rows, end.astype(rows.dtype)) - np.searchsorted(rows, begin.astype(rows.dtype))
            yield _SATURATED[counts] if reach else counts.astype(np.float32)


def bm25(terms: Iterable[str], gains: Gains) -> np.ndarray:
    """Score of each leaf that is scored for the terms of a query, float32 [leaves].

    ``sum_t idf(t) * (s(0 or 1) + s(near_t) + s(far_t))`` with ``s(n) = n (k1 + 1) / (n + k1)``: whether the leaf has
    the term, and how many of its near and of its far surroundings do, itself counted.
    ``idf(t) = ln(1 + (N - N_t + 0.5) / (N_t + 0.5))`` over all leaves (Robertson and Zaragoza, 2009, doi
    10.1561/1500000019).
    """
    scores = np.zeros(len(gains), dtype=np.float32)
    for term in terms:
        for rows, values in gains.of(term):
            scores[rows] += values
    return scores


def _around(begin: np.ndarray, end: np.ndarray, count: int) -> tuple[np.ndarray | slice, np.ndarray]:
    """Rows of leaves, of ``count``, and in how many stretches from one row up to another each of them is."""
    lengths = end - begin
    total = int(lengths.sum())
    if SPARSE * total < count:
        inside = np.arange(total) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
        return np.unique(inside, return_counts=True)
    # One more where a stretch begins, one less where it ends.
    change = np.bincount(begin, minlength=count + 1) - np.bincount(end, minlength=count + 1)
    return slice(None), np.cumsum(change[:-1])


def bm25_naive(terms: Iterable[str], leaves: Sequence[Collection[str]], documents: Sequence[int]) -> list[float]:
    """The same from the terms of each leaf and the document it belongs to; slow and obviously right."""
    scores = [0.0] * len(leaves)
    for term in terms:
        has = [term in leaf for leaf in leaves]
        idf = np.log(1 + (len(leaves) - sum(has) + 0.5) / (sum(has) + 0.5))
        for row, document in enumerate(documents):
            scores[row] += idf * has[row]
            for reach in SURROUNDINGS:
                around = range(max(0, row - reach), min(len(leaves), row + reach + 1))
                count = sum(has[other] for other in around if documents[other] == document)
                scores[row] += idf * count * (K1 + 1) / (count + K1)
    return scores
