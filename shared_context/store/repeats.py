"""Leaves that say what others have said: which of them are worth opening still."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from shared_context.store.duplicates import NEARLY, Said

COMPARED = 2
"""Leaves that are looked at for duplicates, for each that the budget holds."""

COMPARED_AT_MOST = 4096
"""Leaves that are looked at where most of them repeat others."""

COMPARED_BESIDE = 32
"""Leaves or passages that are looked at whatever the budget."""


def judged(
    scores: np.ndarray, best: Sequence[int], read: Mapping[int, tuple[int, int, str]], slots: int
) -> tuple[np.ndarray, list[int], dict[tuple[int, int, int], set[int]]]:
    """Of leaves, the scores of those that say something new, those that nearly say nothing new, and their twins.

    Args:
        scores: of all leaves, [chunks * slots].
        best: those that are compared with one another.
        read: document, chunk and text of each of them.
        slots: leaves of a chunk.
    """
    mean = float(scores[np.isfinite(scores)].mean())
    flat, said, late = scores.copy(), Said(), []
    waiting = [(-float(scores[leaf]), leaf) for leaf in best]
    heapify(waiting)
    taken: dict[int, int] = {}
    twins: dict[tuple[int, int, int], set[int]] = {}
    alike = defaultdict(list)
    for leaf in best:
        alike[read[leaf][2]].append(leaf)
    while waiting:
        score, leaf = heappop(waiting)
        key, number, text = read[leaf]
        new = said.novelty(text)
        worth = mean + new.share * (scores[leaf] - mean) if scores[leaf] > mean else scores[leaf]
        if leaf in taken.values():
            continue
        if new.repeated and new.twin is not None:
            flat[leaf] = -np.inf
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        elif new.share <= NEARLY:
            flat[leaf] = -np.inf
            late.append(leaf)
        elif worth < -score - 1e-6:
            flat[leaf] = worth
            heappush(waiting, (-worth, leaf))
        else:
            # Of equal documents one is shown, rather than the first words of this and the last of that.
            documents = Counter(read[other][0] for other in taken.values())
            chosen = max(alike[text], key=lambda other: (documents[read[other][0]], -other))
            if chosen != leaf:
                flat[chosen], flat[leaf] = flat[leaf], -np.inf
                twins.setdefault(_place(read, chosen, slots), set()).add(key)
            taken[said.add(text)] = chosen
    kept = []
    for leaf in sorted(late, key=lambda leaf: -scores[leaf]):
        key, _, text = read[leaf]
        # What was new when it was met has been said since, perhaps.
        if (new := said.novelty(text)).repeated and new.twin is not None:
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        else:
            taken[said.add(text)] = leaf
            kept.append(leaf)
    return flat, kept, twins


def _place(read: Mapping[int, tuple[int, int, str]], leaf: int, slots: int) -> tuple[int, int, int]:
    """Document, chunk and slot of a leaf that was read."""
    key, number, _ = read[leaf]
    return key, number, leaf % slots
