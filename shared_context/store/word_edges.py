"""Where leaves begin and end in what is shown: at words, though scores are of as many tokens each.

A leaf is scored by a fixed number of tokens, so that codes need no bounds. An edge between two of them that lies within
a word or number is moved back to where that begins, so that neither is ever cut; ``149 euros`` does not become ``49``.
An edge between two chunks moves into the lead-in that the later chunk is encoded behind, as far as there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import overload

import numpy as np

from shared_context.config import TreeConfig
from shared_context.store.node_data import StoredText
from shared_context.store.passages import LONGEST_WORD, word_start
from shared_context.tree import ContextTree, Node

KEPT_EDGES = 1 << 16
KEPT_TREES = 1 << 12


class WordEdges:
    """The context trees of a store's documents as they are shown.

    Args:
        tree: the shape of the trees.
        lead_in: tokens of the chunk before that a chunk's first leaf may begin in.
        text: reads a document by its key; what it says never changes.
    """

    def __init__(self, tree: TreeConfig, lead_in: int, text: Callable[[int], StoredText]):
        self._tree, self._lead_in, self._text = tree, lead_in, text
        self._edge = lru_cache(KEPT_EDGES)(self._find_edge)
        self.of_chunk = lru_cache(KEPT_TREES)(self._of_chunk)

    def _find_edge(self, key: int, token: int) -> int:
        stored = self._text(key)
        if token >= len(stored.tokens):
            return len(stored.tokens)
        within = token % self._tree.chunk_size
        if not within:
            return word_edge(stored, token, self._lead_in)
        return max(word_edge(stored, token, LONGEST_WORD), self._edge(key, token - within))

    def _of_chunk(self, key: int, number: int) -> tuple[int, ContextTree]:
        """The first token of a chunk, counted in its document, and its tree."""
        first, size = number * self._tree.chunk_size, self._tree.leaf_size
        edges = [self._edge(key, first + size * leaf) for leaf in range(2**self._tree.height + 1)]
        return edges[0], ContextTree(tuple(edge - edges[0] for edge in edges))

    def span(self, key: int, number: int, node: Node) -> tuple[int, int]:
        """First token of a chunk's node and the one behind its last, counted in the document."""
        step = self._tree.chunk_size >> node.level
        first = number * self._tree.chunk_size + node.index * step
        return self._edge(key, first), self._edge(key, first + step)

    def leaf(self, key: int, token: int) -> int:
        """The leaf that shows a token, both counted in the document."""
        leaf = token // self._tree.leaf_size
        while self._edge(key, (leaf + 1) * self._tree.leaf_size) <= token:
            leaf += 1
        return leaf


class WordTrees(Sequence[ContextTree]):
    """The trees of chunks, each made when it is first asked for: few of many chunks are ever opened.

    Args:
        edges: makes them.
        places: each chunk's document, by its key, and its number there.
    """

    def __init__(self, edges: WordEdges, places: Sequence[tuple[int, int]]):
        self._edges, self._places = edges, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, chunk: int) -> ContextTree: ...

    @overload
    def __getitem__(self, chunk: slice) -> WordTrees: ...

    def __getitem__(self, chunk: int | slice) -> ContextTree | WordTrees:
        if isinstance(chunk, slice):
            return WordTrees(self._edges, self._places[chunk])
        return self._edges.of_chunk(*self._places[chunk])[1]


def word_edge(stored: StoredText, token: int, most: int) -> int:
    """The token that a word or a character begins with which the bound before ``token`` lies within.

    Args:
        stored: a text with its tokens.
        token: 0 or more and below the number of tokens.
        most: tokens that it lies before ``token`` at most; where it would be more, the bound stays where it is.
    """
    edge = token
    while (before := _beginning(stored, edge)) < edge:
        edge = before
    return edge if token - edge <= most else token


def _beginning(stored: StoredText, token: int) -> int:
    """A token before ``token`` that the same word or character has, or ``token`` itself."""
    bounds = stored.tokens.bounds
    # A character of several tokens belongs to the first of them, and the others have none.
    if bounds[token] == bounds[token + 1]:
        return max(0, token - 1)
    start = word_start(stored.text, int(bounds[token]))
    return min(token, int(np.searchsorted(bounds[:-1], start, side="right")) - 1)
