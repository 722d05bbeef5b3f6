"""Cuts: which rows of a chunk's keys and values the decoder is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from shared_context.tree.context_tree import ContextTree, Node


class GrainedNode(NamedTuple):
    """A node of a cut with its grain: one KV of ``ratio`` is kept, or none at all where ``ratio`` is None."""

    node: Node
    ratio: int | None


def kv_entries(tokens: int, ratio: int | None) -> int:
    """KV entries that a span of ``tokens`` keeps at ``ratio``: of every head, or on average over all heads."""
    return 0 if ratio is None else -(-tokens // ratio)


def node_rows(start: int, end: int, ratio: int | None) -> range:
    """Token positions of ``[start, end)`` that are kept at ``ratio``, in rising order.

    The stride is counted from the end, because under causal attention a span's last position is the one that has
    seen all of it; a span of fewer tokens than the ratio still keeps that one.
    """
    if ratio is None or end <= start:
        return range(0)
    return range(end - 1 - (kv_entries(end - start, ratio) - 1) * ratio, end, ratio)


def important_rows(importance: np.ndarray, spans: Iterable[tuple[int, int, int]]) -> np.ndarray:
    """Which tokens of some spans each head keeps: of each span the most important over all heads together.

    Heads then keep very different numbers, :func:`kv_entries` on average. Grains are nested: what a ratio keeps, every
    finer one keeps, too. Of equally important rows the later ones are kept, and of one token's those of lower heads.

    Args:
        importance: of each row, float [heads, tokens], the heads of all layers; below zero where there is no row to
            keep. A head without enough of them leaves a span with fewer than that.
        spans: of each its first token, the one behind its last, and its ratio, 1 or more; none overlaps another.

    Returns:
        bool [heads, tokens], False outside the spans.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for start, end, ratio in spans:
        if end > start:
            alike.setdefault((end - start, ratio), []).append(start)
    by_token = np.ascontiguousarray(importance.T, dtype=np.float32)
    kept = np.zeros(by_token.shape, dtype=bool)
    for (size, ratio), starts in alike.items():
        # The last token first, and of one token the lowest head.
        places = np.array(starts)[:, None] + np.arange(size)[::-1]
        rows = by_token[places].reshape(len(starts), -1)
        wanted = kv_entries(size, ratio) * len(importance)
        least = np.partition(rows, rows.shape[1] - wanted, axis=1)[:, rows.shape[1] - wanted, None]
        chosen = rows >= np.maximum(least, 0)
        for one in np.flatnonzero(np.count_nonzero(chosen, axis=1) > wanted):
            equal = np.flatnonzero(rows[one] == least[one])
            chosen[one, equal[wanted - np.count_nonzero(rows[one] > least[one]) :]] = False
        kept[places] = chosen.reshape(*places.shape, -1)
    return kept.T


def cut_rows(tree: ContextTree, cut: Iterable[GrainedNode]) -> list[int]:
    """Token positions of a chunk that a cut keeps, from left to right: the rows to take of its one encoding."""
    spans = sorted((*tree.span(node), ratio or 0) for node, ratio in cut if ratio is not None)
    return [row for start, end, ratio in spans for row in node_rows(start, end, ratio)]
