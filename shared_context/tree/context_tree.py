"""The context tree: one binary tree over the token positions of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from random import Random
from typing import NamedTuple


class Node(NamedTuple):
    """A place in a context tree: its level (root 0) and its index from the left within that level."""

    level: int
    index: int  # type: ignore[assignment]  # a tuple has a method of this name, which no one calls

    @property
    def children(self) -> tuple[Node, Node]:
        """The left and the right child."""
        return Node(self.level + 1, 2 * self.index), Node(self.level + 1, 2 * self.index + 1)


@dataclass(frozen=True)
class ContextTree:
    """A binary tree of equal height everywhere, given by where its leaves begin and end.

    A binary tree over a span is determined by its leaves' bounds, so these are all that is kept: node ``(w, k)`` of a
    tree of height h spans from bound ``k * 2**(h - w)`` to bound ``(k + 1) * 2**(h - w)``. Nodes may be empty, which
    is how the short last chunk of a document keeps the shape of the others.

    Args:
        bounds: ``2**height + 1`` token positions, never falling, the first 0 and the last the chunk's length.
    """

    bounds: tuple[int, ...]

    def __post_init__(self) -> None:
        leaves = len(self.bounds) - 1
        if leaves < 1 or leaves & (leaves - 1):
            raise ValueError(f"{len(self.bounds)} bounds: a tree of height h has 2**h + 1 of them")
        if self.bounds[0] != 0 or any(a > b for a, b in pairwise(self.bounds)):
            raise ValueError(f"bounds {self.bounds} must begin with 0 and never fall")

    @classmethod
    def regular(cls, length: int, chunk_size: int, height: int) -> ContextTree:
        """The tree used for inference: node ``k`` of level ``w`` spans ``chunk_size / 2**w`` tokens from its multiple.

        Args:
            length: tokens of the chunk, at most ``chunk_size``; the nodes beyond it are empty.
            chunk_size: tokens of a full chunk, a multiple of ``2**height``.
            height: levels below the root.
        """
        leaf = chunk_size >> height
        return cls(tuple(min(i * leaf, length) for i in range(2**height + 1)))

    @classmethod
    def noisy(cls, length: int, height: int, noise: float, random: Random) -> ContextTree:
        """The tree used for training: every span is split in half, give or take Gaussian noise.

        Args:
            length: tokens of the chunk.
            height: levels below the root.
            noise: standard deviation of the split point as a share of the span (arXiv 2603.04759: 1/5 for language
                modelling, 1/10 for fine-tuning).
            random: the source of the noise.
        """
        bounds = [0, length]
        for _ in range(height):
            split = [bounds[0]]
            for start, end in pairwise(bounds):
                middle = round(random.gauss((start + end) / 2, noise * (end - start)))
                split += [min(max(middle, start), end), end]
            bounds = split
        return cls(tuple(bounds))

    @cached_property
    def height(self) -> int:
        """Levels below the root."""
        return (len(self.bounds) - 1).bit_length() - 1

    @property
    def length(self) -> int:
        """Tokens of the chunk."""
        return self.bounds[-1]

    @cached_property
    def smallest_leaf(self) -> int:
        """Tokens of the smallest leaf that is not empty; 0 for an empty chunk."""
        return min((end - start for start, end in pairwise(self.bounds) if end > start), default=0)

    def span(self, node: Node) -> tuple[int, int]:
        """First token of the node and the one after its last, counted from the start of the chunk."""
        step = 1 << (self.height - node.level)
        return self.bounds[node.index * step], self.bounds[(node.index + 1) * step]

    def size(self, node: Node) -> int:
        """Tokens of the node."""
        start, end = self.span(node)
        return end - start

    def level(self, level: int) -> list[Node]:
        """All nodes of a level, from left to right, empty ones included."""
        return [Node(level, index) for index in range(1 << level)]
