"""Cuts: which rows of a chunk's keys and values the decoder is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shared_context.tree.context_tree import ContextTree, Node


class Grained(NamedTuple):
    """A node of a cut with its grain: one KV of ``ratio`` is kept, or none at all where ``ratio`` is None."""

    node: Node
    ratio: int | None


def kv_entries(tokens: int, ratio: int | None) -> int:
    """KV entries that a span of ``tokens`` keeps at ``ratio``: every ratio-th, counted from the span's end."""
    return 0 if ratio is None else -(-tokens // ratio)


def node_rows(start: int, end: int, ratio: int | None) -> range:
    """Token positions of ``[start, end)`` that are kept at ``ratio``, in rising order.

    The stride is counted from the end, because under causal attention a span's last position is the one that has
    seen all of it; a span of fewer tokens than the ratio still keeps that one.
    """
    if ratio is None or end <= start:
        return range(0)
    return range(end - 1 - (kv_entries(end - start, ratio) - 1) * ratio, end, ratio)


def cut_rows(tree: ContextTree, cut: Iterable[Grained]) -> list[int]:
    """Token positions of a chunk that a cut keeps, from left to right: the rows to take of its one encoding."""
    spans = sorted((*tree.span(node), ratio or 0) for node, ratio in cut if ratio is not None)
    return [row for start, end, ratio in spans for row in node_rows(start, end, ratio)]
