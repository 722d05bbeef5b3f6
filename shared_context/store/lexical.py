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


def bm25(terms: Iterable[str], postings: Postings, leaves: Leaves) -> np.ndarray:
    """Score of each leaf for the terms of a query, float32 [leaves].

    ``sum_t idf(t) * (s(0 or 1) + s(near_t) + s(far_t))`` with ``s(n) = n (k1 + 1) / (n + k1)``: whether the leaf has
    the term, and how many of its near and of its far surroundings do, itself counted.
    ``idf(t) = ln(1 + (N - N_t + 0.5) / (N_t + 0.5))`` over all leaves (Robertson and Zaragoza, 2009, doi
    10.1561/1500000019).
    """
    scores = np.zeros(len(leaves), dtype=np.float32)
    for term in terms:
        rows = postings.rows(term)
        if not len(rows):
            continue
        idf = np.float32(np.log(1 + (len(leaves) - len(rows) + 0.5) / (len(rows) + 0.5)))
        scores[rows] += idf
        for reach in SURROUNDINGS:
            scores += idf * _SATURATED[_around(rows, reach, leaves)]
    return scores


def _around(rows: np.ndarray, reach: int, leaves: Leaves) -> np.ndarray:
    """Of each leaf, how many of those so many leaves around it are among ``rows``, int64 [leaves]."""
    first = np.searchsorted(leaves.document, leaves.document[rows], side="left")
    behind = np.searchsorted(leaves.document, leaves.document[rows], side="right")
    # One more where what a row is near to begins, one less where it ends.
    change = np.bincount(np.maximum(rows - reach, first), minlength=len(leaves) + 1)
    change -= np.bincount(np.minimum(rows + reach + 1, behind), minlength=len(leaves) + 1)
    return np.cumsum(change[:-1])


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
