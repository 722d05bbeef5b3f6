"""Cuts: which rows of a chunk's keys and values the decoder is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from shared_context.tree.context_tree import ContextTree, Node


class Grained(NamedTuple):
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


def important_rows(importance: np.ndarray, start: int, end: int, ratio: int) -> np.ndarray:
    """Which tokens of a span each head keeps at ``ratio``: the most important over all heads together.

    Heads then keep very different numbers, :func:`kv_entries` on average. Grains are nested: what a ratio keeps, every
    finer one keeps, too. Of equally important rows the later ones are kept, and of one token's those of lower heads.

    Args:
        importance: of each row, float [heads, tokens], the heads of all layers; below zero where there is no row to
            keep. A head without enough of them leaves the span with fewer than that.
        start, end: first token of the span and the one behind its last.
        ratio: 1 or more.

    Returns:
        bool [heads, tokens], False outside the span.
    """
    kept = np.zeros(importance.shape, dtype=bool)
    span = np.ascontiguousarray(importance[:, start:end].T[::-1], dtype=np.float32) + 0.0  # no -0.0
    wanted = min(kv_entries(end - start, ratio) * len(importance), int((span >= 0).sum()))
    if wanted > 0:
        # The bits of floats that are not negative rise as they do; what lies behind them makes all of them different.
        order = span.view(np.int32).astype(np.int64).ravel() * span.size - np.arange(span.size)
        order[span.ravel() < 0] = -span.size
        least = np.partition(order, span.size - wanted)[span.size - wanted]
        kept[:, start:end] = (order >= least).reshape(span.shape)[::-1].T
    return kept


def cut_rows(tree: ContextTree, cut: Iterable[Grained]) -> list[int]:
    """Token positions of a chunk that a cut keeps, from left to right: the rows to take of its one encoding."""
    spans = sorted((*tree.span(node), ratio or 0) for node, ratio in cut if ratio is not None)
    return [row for start, end, ratio in spans for row in node_rows(start, end, ratio)]
