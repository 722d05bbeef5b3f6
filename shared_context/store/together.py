"""Where the words of a query stand together, as those of a name do: each may be common by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np

from shared_context.store.lexical import Gains
from shared_context.store.words import parts_told_apart, told_apart

LEAST_SHARE = 0.9
"""Of what the words of a query say, as far as the store has them, which has to stand in one place."""

MOST_PLACES = 12
"""Leaves that hold as much; what stands in more of them names none."""

MOST_READ = 48
"""Places that are read to see in which of them the words stand side by side."""

WEIGHT = 2.0
"""Of a place against a term that stands there alone; with 1 the line that goes on behind it is cut more often."""

AS_PART = 0.75
"""What a word counts that stands there as a part of another one: 285 in 285X."""

Ways: TypeAlias = Sequence[frozenset[str]]
"""A word of a query in every way to write it, as :func:`ways_to_write` gives them."""

_NONE = np.zeros(0, np.int64)


def together(words: Sequence[Ways], gains: Gains, language: str, read: Callable[[int], str]) -> np.ndarray:
    """What is added to the scores of leaves near the place in which a query's words stand together, float32 [leaves].

    The place is where more of them stand than anywhere else, and nearly all; of several, where most of them stand side
    by side. It counts as one more term, which is as rare as such places are: lines of a list share all their words with
    others, and no two lines share all.

    Args:
        words: of the query, in its order.
        gains: of all their terms.
        language: which they are stemmed for.
        read: says what stands in a leaf, by its row among all.
    """
    scores = np.zeros(len(gains), np.float32)
    places = _places(words, gains, language, read)
    # A line that names something goes on behind the name.
    behind = gains.beside(places, 1)
    for rows, values in gains.of_leaves(np.union1d(places, behind)):
        scores[rows] += WEIGHT * values
    return scores


def _places(words: Sequence[Ways], gains: Gains, language: str, read: Callable[[int], str]) -> np.ndarray:
    """The leaves, of those that are scored, in which most of a query stands; where it takes two, both of them."""
    alone, paired, has = np.zeros(len(gains)), np.zeros(len(gains)), np.zeros(len(gains), bool)
    known, standing, total = [], 0, 0.0
    for ways in words:
        if len(rows := _rows(ways, gains)):
            known.append(ways)
            standing += max(len(way) for way in ways if all(len(gains.rows(term)) for term in way))
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
    if not known or best < LEAST_SHARE * total:
        return _NONE
    single, first = alone >= best * (1 - 1e-5), paired >= best * (1 - 1e-5)
    first[single] = first[gains.beside(np.flatnonzero(single), -1)] = False
    places: list[tuple[int, ...]] = [(leaf,) for leaf in np.flatnonzero(single).tolist()]
    broken: list[tuple[int, ...]] = [(leaf, leaf + 1) for leaf in np.flatnonzero(first).tolist()]
    if 1 < len(places) + len(broken) <= MOST_READ:
        said = {place: "".join(read(gains.row(leaf)) for leaf in place) for place in (*places, *broken)}
        runs = {place: _run(known, text, language) for place, text in said.items()}
        if max(runs.values()) <= 1:
            # "Moe, Ada" is asked for as Ada Moe.
            runs = {place: _run(known[::-1], text, language) for place, text in said.items()}
        longest = max(runs.values())
        places, broken = ([place for place in some if runs[place] == longest] for some in (places, broken))
    found = np.unique(np.array([leaf for place in places or broken for leaf in place], np.int64))
    # One word stands nowhere together with others, but what it stands in alone is the place.
    return _NONE if len(found) > (MOST_PLACES if standing > 1 else 1) else found


def _run(words: Sequence[Ways], text: str, language: str) -> float:
    """The longest run in a text, of its words or of their parts."""
    return max(longest_run(words, told(text, language)) for told in (told_apart, parts_told_apart))


def longest_run(words: Sequence[Ways], text: Sequence[tuple[str, frozenset[str]]]) -> float:
    """How many words of a query stand side by side in a text, in the query's order; as parts of others they count less.

    Args:
        words: of the query.
        text: its words, as :func:`told_apart` gives them.
    """
    longest, before = 0.0, [0.0] * (len(words) + 1)
    for whole, terms in text:
        counts = [_count(ways, whole, terms) for ways in words]
        ends = [0.0, *(before[n] + count if count else 0.0 for n, count in enumerate(counts))]
        longest, before = max(longest, *ends), ends
    return longest


def _count(ways: Ways, whole: str, terms: frozenset[str]) -> float:
    """What a word of a text counts for one of a query."""
    return 1.0 if frozenset([whole]) in ways else AS_PART if any(way <= terms for way in ways) else 0.0


def _rows(ways: Ways, gains: Gains) -> np.ndarray:
    """Rising rows of the leaves that hold a word whole; where none does, of those that hold its parts."""
    whole = [gains.rows(term) for way in ways if len(way) == 1 for term in way]
    found = whole[0] if len(whole) == 1 else np.unique(np.concatenate([_NONE, *whole]))
    for terms in ways:
        if not len(found):
            found = reduce(np.intersect1d, (gains.rows(term) for term in terms))
    return found
