"""Leaves that say what others have said: which of them are worth opening still."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
import torch

from shared_context.store.chosen_cuts import Twins
from shared_context.store.duplicates import NEARLY, Said, share_a_passage
from shared_context.store.scored import Scored
from shared_context.tree import Node

COMPARED = 2
"""Leaves that are looked at for duplicates, for each that the budget holds."""

COMPARED_AT_MOST = 4096
"""Leaves that are looked at where most of them repeat others."""

COMPARED_BESIDE = 32
"""Leaves or passages that are looked at whatever the budget."""


class Compared(NamedTuple):
    """Leaves that were compared with one another.

    Attributes:
        scores: of all leaves, [chunks, leaves]; minus infinity where one repeats another or nearly does.
        looked_at: which leaves were compared, [chunks, leaves].
        late: places, in the flattened scores, of those that nearly repeat another, best first.
        alike: places of those that say the same of something else.
        twins: what else says the same, or nearly, as a leaf that is taken.
    """

    scores: torch.Tensor
    looked_at: torch.Tensor
    late: list[int]
    alike: set[int]
    twins: Twins


def without_repeats(
    scored: Scored,
    wanted: int,
    read: Callable[[int, Node, int], tuple[int, int, str]],
    asked: Sequence[str],
) -> Compared:
    """Scores of the leaves in which each text that several leaves have counts once.

    The best leaves are taken one after the other. One that repeats what was taken is not opened, one of which a
    part is new keeps that share of its score. As many are looked at as it takes to fill the budget.

    Args:
        scored: the leaves.
        wanted: leaves that fill the budget.
        read: a chunk's document and number, and what one of its nodes says, with so many nodes before and behind it.
        asked: what is searched for.
    """

    def around(leaf: int) -> str:
        return read(leaf // slots, Node(scored.height, leaf % slots), 1)[2]

    flat, slots = scored.leaves.flatten().numpy(force=True), scored.leaves.shape[1]
    present = int(np.isfinite(flat).sum())
    compared = min(COMPARED * wanted + COMPARED_BESIDE, present)
    texts: dict[int, tuple[int, int, str]] = {}
    while True:
        best = np.argpartition(-flat, compared - 1)[:compared].tolist()
        for leaf in best:
            if leaf not in texts:
                texts[leaf] = read(leaf // slots, Node(scored.height, leaf % slots), 0)
        opened, late, alike, twins = _judged(flat, best, texts, around, slots, asked)
        if np.isfinite(opened[best]).sum() + len(late) >= wanted or compared in (present, COMPARED_AT_MOST):
            break
        compared = min(2 * compared, present, COMPARED_AT_MOST)
    looked_at = np.zeros(len(flat), bool)
    looked_at[best] = True
    scores, compared_ones = (
        torch.from_numpy(of).to(scored.leaves.device).view_as(scored.leaves) for of in (opened, looked_at)
    )
    return Compared(scores, compared_ones, late, alike, twins)


def _judged(
    scores: np.ndarray,
    best: Sequence[int],
    read: Mapping[int, tuple[int, int, str]],
    around: Callable[[int], str],
    slots: int,
    asked: Sequence[str],
) -> tuple[np.ndarray, list[int], set[int], dict[tuple[int, int, int], set[int]]]:
    """Of leaves, the scores of those that say something new, those that nearly say nothing new, those that say the
    same of something else, and their twins.

    Args:
        scores: of all leaves, [chunks * slots].
        best: those that are compared with one another.
        read: document, chunk and text of each of them.
        around: what one of them says, with what stands before and behind it.
        slots: leaves of a chunk.
        asked: what is searched for.
    """
    mean = float(scores[np.isfinite(scores)].mean())
    flat, said, late = scores.copy(), Said(asked), []
    waiting = [(-float(scores[leaf]), leaf) for leaf in best]
    heapify(waiting)
    taken: dict[int, int] = {}
    done: set[int] = set()
    documents: Counter[int] = Counter()
    twins: dict[tuple[int, int, int], set[int]] = {}
    alike: set[int] = set()
    same = defaultdict(list)
    for leaf in best:
        same[read[leaf][2]].append(leaf)
    while waiting:
        score, leaf = heappop(waiting)
        if leaf in done:
            continue
        key, number, text = read[leaf]
        new = said.novelty(text)
        worth = mean + new.share * (scores[leaf] - mean) if scores[leaf] > mean else scores[leaf]
        if new.repeated and new.twin is not None:
            flat[leaf] = -np.inf
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        elif new.share <= NEARLY and new.twin is not None:
            flat[leaf] = -np.inf
            late.append(leaf)
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        elif worth < -score - 1e-6:
            flat[leaf] = worth
            heappush(waiting, (-worth, leaf))
        else:
            # Of equal documents one is shown, rather than the first words of this and the last of that.
            chosen = max(same[text], key=lambda other: (documents[read[other][0]], -other))
            if chosen != leaf:
                flat[chosen], flat[leaf] = flat[leaf], -np.inf
                twins.setdefault(_place(read, chosen, slots), set()).add(key)
            if new.like is not None and share_a_passage(around(chosen), around(taken[new.like])):
                alike.add(chosen)
            taken[said.add(text)] = chosen
            done.add(chosen)
            documents[read[chosen][0]] += 1
    kept = []
    for leaf in sorted(late, key=lambda leaf: -scores[leaf]):
        key, _, text = read[leaf]
        # What was new when it was met has been said since, perhaps.
        if (new := said.novelty(text)).repeated and new.twin is not None:
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        else:
            taken[said.add(text)] = leaf
            kept.append(leaf)
    return flat, kept, alike, twins


def _place(read: Mapping[int, tuple[int, int, str]], leaf: int, slots: int) -> tuple[int, int, int]:
    """Document, chunk and slot of a leaf that was read."""
    key, number, _ = read[leaf]
    return key, number, leaf % slots
