"""The scores of a query's leaves, arranged by the chunks that they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch

from shared_context.kernels import node_scores, preserved_cuts
from shared_context.store.chosen_cuts import ChunkCut
from shared_context.store.leaves import Leaves
from shared_context.store.word_edges import WordEdges, WordTrees
from shared_context.tree import ContextTree, GrainedNode, Node, kv_entries


def by_level(leaf_scores: torch.Tensor) -> list[np.ndarray]:
    """Scores of the nodes of every level, root first: an inner node is as good as its best leaf.

    Args:
        leaf_scores: [chunks, 2**height]; minus infinity where there is no leaf.
    """
    nodes = node_scores(leaf_scores).numpy(force=True)
    return [nodes[:, 2**level - 1 : 2 ** (level + 1) - 1] for level in range(leaf_scores.shape[1].bit_length())]


@dataclass(frozen=True)
class Scored:
    """Scores by chunk.

    Attributes:
        leaves: [chunks, 2**height]; minus infinity where there is no leaf.
        places: each chunk's document, by its key, and its number in the document.
        lengths: tokens of each chunk that are scored.
        trees: each chunk's context tree, as it is shown.
        first: row of each chunk's first leaf among all leaves of the index, [chunks].
    """

    leaves: torch.Tensor
    places: list[tuple[int, int]]
    lengths: list[int]
    trees: Sequence[ContextTree]
    first: np.ndarray

    @classmethod
    def of(cls, scores: torch.Tensor, leaves: Leaves, rows: np.ndarray, height: int, edges: WordEdges) -> Scored:
        """The scores of leaves.

        Args:
            scores: [rows].
            leaves: those of the index.
            rows: those that are scored, rising.
            height: of the context trees.
            edges: where leaves begin and end in what is shown.
        """
        owners = leaves.chunk[rows]
        begins = np.diff(owners, prepend=-1) != 0  # they rise
        first, place = np.flatnonzero(begins), np.cumsum(begins) - 1
        chunks = owners[first]
        places = leaves.places(chunks)
        by_chunk = scores.new_full((len(chunks), 2**height), -torch.inf)
        by_chunk[torch.from_numpy(place), torch.from_numpy(leaves.slot[rows])] = scores
        return cls(by_chunk, places, leaves.chunk_length[chunks].tolist(), WordTrees(edges, places), rows[first])

    @property
    def height(self) -> int:
        """Of the context trees."""
        return self.leaves.shape[1].bit_length() - 1

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Scores of the nodes of every level, root first."""
        return by_level(self.leaves)

    def cut(self, chunk: int, cut: Sequence[GrainedNode]) -> ChunkCut:
        """A cut of a chunk, with its place and its scores."""
        return ChunkCut(*self.places[chunk], cut, [level[chunk] for level in self.levels])

    def graded(self, chunk: int, cut: Sequence[GrainedNode], scores: Mapping[Node, float]) -> ChunkCut:
        """A cut of a chunk, with scores of its nodes that are not the policy's own."""
        levels: dict[int, dict[int, float]] = {}
        for node in scores:
            levels.setdefault(node.level, {})[node.index] = scores[node]
        return ChunkCut(*self.places[chunk], cut, levels)

    def stretches(self) -> np.ndarray:
        """Of an unbroken stretch of a document's chunks each has the same number, [chunks]."""
        apart = (np.diff(np.array(self.places), axis=0) != (0, 1)).any(axis=1)
        return np.concatenate([[0], np.cumsum(apart)])

    def flat_places(self, leaves: Sequence[int]) -> list[int]:
        """Where leaves of the only document, by their number in it, are in the flattened scores."""
        if not leaves:  # nearly always: nobody then walks over all chunks
            return []
        chunks, slots = {number: chunk for chunk, (_, number) in enumerate(self.places)}, 2**self.height
        return [chunks[leaf // slots] * slots + leaf % slots for leaf in leaves if leaf // slots in chunks]

    def last_leaves(self, tokens: int, leaf_size: int) -> int:
        """How many leaves so many tokens at the end of the last document reach into."""
        last = [length for (key, _), length in zip(self.places, self.lengths, strict=True) if key == self.places[-1][0]]
        sizes = [min(leaf_size, length - at) for length in last for at in range(0, length, leaf_size)]
        unseen = max(0, sum(sizes) - tokens)
        return sum(end > unseen for end in accumulate(sizes))

    def fitting(self, count: int, budget: int, fine: int) -> int:
        """How many of the last ``count`` leaves a budget holds, at least one: none is shown behind a gap."""
        fits = 0
        for chunk in reversed(range(len(self.trees))):
            leaves = range(int(self.leaves[chunk].isfinite().sum()))
            for leaf in reversed(leaves):
                budget -= kv_entries(self.trees[chunk].size(Node(self.height, leaf)), fine)
                if fits == count or (budget < 0 and fits):
                    return fits
                fits += 1
        return fits

    def similarity(self, chunk: int) -> Callable[[Node], float]:
        """How promising a node of a chunk is: as good as its best leaf."""
        return lambda node: float(self.levels[node.level][chunk, node.index])

    def paths(self, query: torch.Tensor, states: torch.Tensor) -> list[list[Node]]:
        """The paper's preserved cut of every chunk, which compares last tokens.

        Args:
            query: hidden state of the query's last token, [hidden].
            states: those of the last tokens of all leaves of the index, [all leaves, hidden].
        """
        device = states.device
        first, count = torch.from_numpy(self.first).to(device), self.leaves.isfinite().sum(dim=1)
        nodes = preserved_cuts(query.to(device), states, first, count, self.height).tolist()
        return [[Node(n.bit_length() - 1, n - (1 << n.bit_length() - 1)) for n in path if n] for path in nodes]
