"""The searches that turn node scores into cuts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from heapq import heapify, heappop, heappush
from math import inf

import numpy as np

from shared_context.tree.context_tree import ContextTree, Node
from shared_context.tree.cut import GrainedNode, kv_entries


def split_and_search(
    tree: ContextTree, ratios: Sequence[int | None], similarity: Callable[[Node], float] | None = None
) -> list[GrainedNode]:
    """The depth-first policy of arXiv 2603.04759, section 3: one path from the root is split, its siblings are kept.

    Of two children the one more similar to the query is split further and the other is preserved as it is; at the
    last level both are preserved.

    Args:
        tree: the chunk's tree.
        ratios: the ratio of a preserved node at each level, root first (the root's is used by a tree of height 0).
        similarity: similarity of a node to the query; None where there is no query, and then the right child,
            which is nearest to the running text, is always taken.

    Returns:
        A cut that covers the chunk exactly once, from left to right; empty nodes are left out.
    """
    node, cut = Node(0, 0), []
    while node.level < tree.height:
        left, right = node.children
        takes_right = tree.size(right) > 0 and (
            tree.size(left) == 0 or similarity is None or similarity(right) > similarity(left)
        )
        node, sibling = (right, left) if takes_right else (left, right)
        cut.append(sibling)
    cut.append(node)
    cut = [node for node in cut if tree.size(node) > 0]
    return [GrainedNode(node, ratios[node.level]) for node in sorted(cut, key=tree.span)]


def smallest_cut(tree: ContextTree, coarse: Sequence[int | None], fine: int) -> int:
    """The smallest budget under which :func:`expand_under_budget` shows anything of a chunk.

    That is the root or a pair of siblings at the first grain that ``coarse`` shows, or else one leaf at ``fine``.
    """
    level = next((level for level, ratio in enumerate(coarse) if ratio is not None), None)
    if level is None:
        return kv_entries(tree.smallest_leaf, fine)
    together = [tree.level(0)] if level == 0 else [node.children for node in tree.level(level - 1)]
    prices = [sum(kv_entries(tree.size(node), coarse[level]) for node in nodes) for nodes in together]
    return min((price for price in prices if price > 0), default=0)


def expand_under_budget(
    trees: Sequence[ContextTree],
    scores: Sequence[np.ndarray],
    coarse: Sequence[int | None],
    fine: int,
    budget: int,
    introduction: Callable[[int], tuple[Hashable, int]] | None = None,
) -> dict[int, list[GrainedNode]]:
    """Best-first expansion under one KV budget over all chunks of all documents.

    Generalises split-and-search: the most promising node anywhere is opened next, at the price of what its children
    cost at their coarse grain beyond what it cost itself; an opened leaf is shown at the fine grain. What is never
    opened stays coarse, a chunk that the budget cannot afford is left out, and a node that does not fit any more is
    passed over for the next best that does.

    Args:
        trees: the tree of each chunk, all of one height.
        scores: of the nodes of every level, root first, level ``w`` float [chunks, 2**w]; minus infinity where there
            is no node or none of its leaves may be opened.
        coarse: for each level, root first, the ratio of an unopened node; None shows nothing of it.
        fine: the ratio of an opened leaf.
        budget: the most KV entries that all cuts together may hold.
        introduction: of a chunk, what it belongs to and the KV entries that are shown once in front of all that is
            shown of that; they count in the budget.

    Returns:
        By chunk, the nodes of its cut from left to right. Chunks and nodes of which nothing is shown are missing.
    """
    height = len(scores) - 1
    only_leaves = all(ratio is None for ratio in coarse)
    cuts: dict[int, dict[Node, int | None]] = {}
    left = budget
    introduced: set[Hashable] = set()
    root = Node(0, 0)
    waiting = [(-score, chunk, root) for chunk, score in enumerate(scores[0][:, 0].tolist()) if score > -inf]
    heapify(waiting)

    while waiting and left > 0:
        _, chunk, node = heappop(waiting)
        tree = trees[chunk]
        # Opening a node that shows nothing costs nothing: without this, a spent budget would still open all of them.
        if only_leaves and kv_entries(tree.smallest_leaf, fine) > left:
            continue
        belongs_to, toll = introduction(chunk) if introduction is not None else (None, 0)
        toll = 0 if belongs_to in introduced else toll
        if chunk not in cuts:
            price = kv_entries(tree.length, coarse[0])
            price += toll if price else 0
            if price > left:
                continue
            if price:
                introduced.add(belongs_to)
                toll = 0
            left -= price
            cuts[chunk] = {root: coarse[0]}
        cut = cuts[chunk]
        opened = [(node, fine)] if node.level == height else [(c, coarse[node.level + 1]) for c in node.children]
        price = sum(kv_entries(tree.size(n), ratio) for n, ratio in opened) - kv_entries(tree.size(node), cut[node])
        shows = any(kv_entries(tree.size(n), ratio) for n, ratio in opened)
        price += toll if shows else 0
        if price > left:
            continue
        if shows:
            introduced.add(belongs_to)
        left -= price
        del cut[node]
        cut.update(opened)
        if node.level < height:
            for child in node.children:
                score = float(scores[child.level][chunk, child.index])
                if score > -inf:
                    heappush(waiting, (-score, chunk, child))

    shown = {
        chunk: sorted(
            (GrainedNode(n, ratio) for n, ratio in cut.items() if kv_entries(trees[chunk].size(n), ratio)),
            key=lambda grained: trees[chunk].span(grained.node),
        )
        for chunk, cut in cuts.items()
    }
    return {chunk: cut for chunk, cut in sorted(shown.items()) if cut}
