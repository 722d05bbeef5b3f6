"""Leaves that say what others have said: which of them are worth opening still."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
import torch

from shared_context.store.chosen_cuts import Twins
from shared_context.store.duplicates import NEARLY, Said
from shared_context.store.scored import Scored
from shared_context.tree import Node

COMPARED = 2
"""Leaves that are looked at for duplicates, for each that the budget holds."""

COMPARED_AT_MOST = 4096
"""Leaves that are looked at where most of them repeat others."""

COMPARED_BESIDE = 32
"""Leaves or passages that are looked at whatever the budget."""


def without_repeats(
    scored: Scored, wanted: int, read: Callable[[int, Node], tuple[int, int, str]]
) -> tuple[torch.Tensor, torch.Tensor, list[int], Twins]:
    """Scores of the leaves in which each text that several leaves have counts once.

    The best leaves are taken one after the other. One that repeats what was taken is not opened, one of which a
    part is new keeps that share of its score. As many are looked at as it takes to fill the budget.

    Args:
        scored: the leaves.
        wanted: leaves that fill the budget.
        read: a chunk's document and number, and what one of its nodes says.

    Returns:
        The scores, [chunks, leaves], minus infinity where a leaf repeats another or nearly does; which leaves were
        looked at, [chunks, leaves]; places of those that nearly repeat another, in the flattened scores, best
        first; and what else says the same, or nearly, as a leaf that is taken.
    """
    flat, slots = scored.leaves.flatten().numpy(force=True), scored.leaves.shape[1]
    present = int(np.isfinite(flat).sum())
    compared = min(COMPARED * wanted + COMPARED_BESIDE, present)
    texts: dict[int, tuple[int, int, str]] = {}
    while True:
        best = np.argpartition(-flat, compared - 1)[:compared].tolist()
        for leaf in best:
            if leaf not in texts:
                texts[leaf] = read(leaf // slots, Node(scored.height, leaf % slots))
        opened, late, twins = _judged(flat, best, texts, slots)
        if np.isfinite(opened[best]).sum() + len(late) >= wanted or compared in (present, COMPARED_AT_MOST):
            break
        compared = min(2 * compared, present, COMPARED_AT_MOST)
    looked_at = np.zeros(len(flat), bool)
    looked_at[best] = True
    scores, compared_ones = (
        torch.from_numpy(of).to(scored.leaves.device).view_as(scored.leaves) for of in (opened, looked_at)
    )
    return scores, compared_ones, late, twins


def _judged(
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
    done: set[int] = set()
    documents: Counter[int] = Counter()
    twins: dict[tuple[int, int, int], set[int]] = {}
    alike = defaultdict(list)
    for leaf in best:
        alike[read[leaf][2]].append(leaf)
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
            chosen = max(alike[text], key=lambda other: (documents[read[other][0]], -other))
            if chosen != leaf:
                flat[chosen], flat[leaf] = flat[leaf], -np.inf
                twins.setdefault(_place(read, chosen, slots), set()).add(key)
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
    return flat, kept, twins


def _place(read: Mapping[int, tuple[int, int, str]], leaf: int, slots: int) -> tuple[int, int, int]:
    """Document, chunk and slot of a leaf that was read."""
    key, number, _ = read[leaf]
    return key, number, leaf % slots
