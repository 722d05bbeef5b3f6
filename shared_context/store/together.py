"""Where the words of a query stand together, as those of a name do: each may be common by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from shared_context.store.lexical import Gains

LEAST_SHARE = 0.9
"""Of what the words of a query say, as far as the store has them, which has to stand in one place."""

MOST_PLACES = 12
"""Leaves that hold as much; what stands in more of them names none."""

WEIGHT = 2.0
"""Of a place against a term that stands there alone; with 1 the line that goes on behind it is cut more often."""

_NONE = np.zeros(0, np.int64)


def together(words: Sequence[Sequence[frozenset[str]]], gains: Gains) -> np.ndarray:
    """What is added to the scores of leaves near the place in which a query's words stand together, float32 [leaves].

    The place is where more of them stand than anywhere else, and nearly all. It counts as one more term, which is as
    rare as such places are: lines of a list share all their words with others, and no two lines share all.

    Args:
        words: of the query, each in every way to write it, as :func:`ways_to_write` gives them.
        gains: of all their terms.
    """
    scores = np.zeros(len(gains), np.float32)
    places = _places(words, gains)
    # A line that names something goes on behind the name.
    behind = gains.beside(places, 1)
    for rows, values in gains.of_leaves(np.union1d(places, behind)):
        scores[rows] += WEIGHT * values
    return scores


def _places(words: Sequence[Sequence[frozenset[str]]], gains: Gains) -> np.ndarray:
    """The leaves, of those that are scored, in which most of a query stands; where it takes two, both of them."""
    alone, paired, has = np.zeros(len(gains)), np.zeros(len(gains)), np.zeros(len(gains), bool)
    total = 0.0
    for ways in words:
        if len(rows := _rows(ways, gains)):
            idf = float(gains.idf(len(rows)))
            total += idf
            holding = gains.among(rows)
            alone[holding] += idf
            has[holding] = True
            before = gains.beside(holding, -1)
            for more in holding, before[~has[before]]:
                paired[more] += idf
            has[holding] = False
    best = float(paired.max(initial=0.0))
    if best == 0 or best < LEAST_SHARE * total:
        return _NONE
    equal = best * (1 - 1e-5)
    found = np.flatnonzero(alone >= equal)
    if not len(found):
        first = np.flatnonzero(paired >= equal)
        found = np.union1d(first, first + 1)
    return _NONE if len(found) > MOST_PLACES else found


def _rows(ways: Sequence[frozenset[str]], gains: Gains) -> np.ndarray:
    """Rising rows of the leaves that hold a word whole; where none does, of those that hold its parts."""
    whole = [gains.rows(term) for way in ways if len(way) == 1 for term in way]
    found = whole[0] if len(whole) == 1 else np.unique(np.concatenate([_NONE, *whole]))
    for terms in ways:
        if not len(found):
            found = reduce(np.intersect1d, (gains.rows(term) for term in terms))
    return found
