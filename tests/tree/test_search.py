"""The searches: split-and-search and best-first expansion under one KV budget."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_context.config import paper_ratios
from shared_context.tree import (
    ContextTree,
    GrainedNode,
    Node,
    cut_rows,
    expand_under_budget,
    kv_entries,
    split_and_search,
)
from shared_context.tree.search import smallest_cut

HEIGHT = 3
NOTHING = (None,) * (HEIGHT + 1)
PAPER = paper_ratios(HEIGHT)

seeds = st.integers(0, 2**32 - 1)
budgets = st.integers(1, 600)
# Once something is shown at a level, all below it is shown: what the levels of a configuration mean.
coarse_ratios = st.builds(
    lambda shown, ratios: tuple([None] * (HEIGHT + 1 - shown) + ratios[:shown]),
    st.integers(0, HEIGHT + 1),
    st.lists(st.integers(1, 64), min_size=HEIGHT + 1, max_size=HEIGHT + 1),
)


def forest(seed: int, *, equal: bool = False) -> tuple[list[ContextTree], np.ndarray]:
    """Up to six chunks of up to 128 tokens with scores of their leaves, some of which may not be opened."""
    random = Random(seed)
    trees, scores = [], np.full((random.randint(0, 6), 2**HEIGHT), -np.inf)
    for row in range(len(scores)):
        kind = random.random()
        if equal or kind < 0.4:
            tree = ContextTree.regular(128, 128, HEIGHT)
        elif kind < 0.7:
            tree = ContextTree.regular(random.randint(1, 128), 128, HEIGHT)
        else:
            tree = ContextTree.noisy(random.randint(1, 128), HEIGHT, 0.3, random)
        for leaf in tree.level(HEIGHT):
            if tree.size(leaf) and (equal or random.random() < 0.9):
                scores[row, leaf.index] = random.choice([random.gauss(0, 1), random.randint(-1, 1)])
        trees.append(tree)
    return trees, scores


def node_scores(leaf_scores: np.ndarray) -> list[np.ndarray]:
    """By level, root first: an inner node is as good as its best leaf."""
    levels = [leaf_scores]
    while levels[0].shape[1] > 1:
        levels.insert(0, np.maximum(levels[0][:, ::2], levels[0][:, 1::2]))
    return levels


def entries(trees, cuts) -> int:
    return sum(kv_entries(trees[chunk].size(node), ratio) for chunk, cut in cuts.items() for node, ratio in cut)


def tokens_shown(tree: ContextTree, cut: list[GrainedNode]) -> list[int]:
    return [token for node, _ in cut for token in range(*tree.span(node))]


# split-and-search


def naive_split_and_search(tree, ratios, similarity):
    """The paper's words as a recursion over spans."""

    def search(node: Node) -> list[GrainedNode]:
        if node.level == tree.height:
            return [GrainedNode(node, ratios[node.level])]
        left, right = node.children
        if tree.size(right) == 0:
            chosen, kept = left, right
        elif tree.size(left) == 0 or similarity is None or similarity(right) > similarity(left):
            chosen, kept = right, left
        else:
            chosen, kept = left, right
        return [*search(chosen), GrainedNode(kept, ratios[kept.level])]

    return sorted((g for g in search(Node(0, 0)) if tree.size(g.node)), key=lambda g: tree.span(g.node))


@given(length=st.integers(1, 300), height=st.integers(0, 5), noise=st.floats(0, 0.6), seed=seeds, blind=st.booleans())
def test_split_and_search_does_what_the_paper_says_and_covers_the_chunk_once(length, height, noise, seed, blind):
    random = Random(seed)
    tree = ContextTree.noisy(length, height, noise, random)
    scores = {node: random.random() for level in range(height + 1) for node in tree.level(level)}
    similarity = None if blind else scores.__getitem__
    cut = split_and_search(tree, paper_ratios(height), similarity)
    assert cut == naive_split_and_search(tree, paper_ratios(height), similarity)
    assert tokens_shown(tree, cut) == list(range(length))


def test_without_a_query_the_right_child_is_always_taken():
    tree = ContextTree.regular(1024, 1024, 3)
    cut = split_and_search(tree, PAPER)
    assert [(g.node, g.ratio) for g in cut] == [
        (Node(1, 0), 16),
        (Node(2, 2), 8),
        (Node(3, 6), 4),
        (Node(3, 7), 4),
    ]


def test_the_paper_s_ratios_keep_an_eighth_of_a_full_chunk():
    tree = ContextTree.regular(1024, 1024, 3)
    assert len(cut_rows(tree, split_and_search(tree, PAPER))) == 1024 // 8


def test_the_empty_end_of_a_short_chunk_is_never_entered():
    tree = ContextTree.regular(100, 1024, 3)
    assert split_and_search(tree, PAPER) == [GrainedNode(Node(3, 0), 4)]


# Expansion


def test_no_chunks_give_no_cuts():
    assert expand_under_budget([], node_scores(np.zeros((0, 8))), NOTHING, 1, 1000) == {}


@given(seeds, coarse_ratios, st.integers(1, 16), budgets)
def test_the_budget_is_never_exceeded(seed, coarse, fine, budget):
    trees, scores = forest(seed)
    cuts = expand_under_budget(trees, node_scores(scores), coarse, fine, budget)
    assert entries(trees, cuts) <= budget
    assert sum(len(cut_rows(trees[chunk], cut)) for chunk, cut in cuts.items()) == entries(trees, cuts)


@given(seeds, st.lists(st.one_of(st.none(), st.integers(1, 64)), min_size=4, max_size=4), st.integers(1, 16), budgets)
def test_the_budget_holds_for_any_ratios_even_senseless_ones(seed, coarse, fine, budget):
    trees, scores = forest(seed)
    assert entries(trees, expand_under_budget(trees, node_scores(scores), coarse, fine, budget)) <= budget


@given(seeds, coarse_ratios, st.integers(1, 16), budgets)
def test_cuts_are_in_order_and_show_no_token_twice(seed, coarse, fine, budget):
    trees, scores = forest(seed)
    cuts = expand_under_budget(trees, node_scores(scores), coarse, fine, budget)
    assert list(cuts) == sorted(cuts)
    for chunk, cut in cuts.items():
        shown = tokens_shown(trees[chunk], cut)
        assert shown == sorted(set(shown))
        assert all(ratio is not None and trees[chunk].size(node) for node, ratio in cut)


@given(seeds, st.lists(st.integers(1, 64), min_size=4, max_size=4), st.integers(1, 16), budgets)
def test_where_no_level_is_hidden_a_shown_chunk_is_covered_exactly_once(seed, coarse, fine, budget):
    trees, scores = forest(seed)
    for hidden_root in (coarse, [None, *coarse[1:]]):
        for chunk, cut in expand_under_budget(trees, node_scores(scores), hidden_root, fine, budget).items():
            assert tokens_shown(trees[chunk], cut) == list(range(trees[chunk].length))


@given(seeds, coarse_ratios, budgets)
def test_leaves_of_minus_infinity_are_never_opened(seed, coarse, budget):
    trees, scores = forest(seed)
    fine = 3  # no coarse ratio below is 3, so this grain marks an opened leaf
    coarse = [None if ratio is None else ratio * 4 for ratio in coarse]
    for chunk, cut in expand_under_budget(trees, node_scores(scores), coarse, fine, budget).items():
        opened = [node for node, ratio in cut if ratio == fine]
        assert all(node.level == HEIGHT and scores[chunk, node.index] > -np.inf for node in opened)


def best_leaves(trees, scores, fine, budget):
    """Leaves in the order of their scores, each one that still fits."""
    leaves = [(-scores[c, i], c, i) for c in range(len(trees)) for i in range(2**HEIGHT) if scores[c, i] > -np.inf]
    taken, left = set(), budget
    for _, chunk, index in sorted(leaves):
        price = kv_entries(trees[chunk].size(Node(HEIGHT, index)), fine)
        if price <= left:
            left -= price
            taken.add((chunk, index))
    return taken


@given(seeds, st.integers(1, 8), budgets)
def test_where_nothing_coarse_is_shown_the_best_leaves_are_taken(seed, fine, budget):
    trees, scores = forest(seed)
    # Ties are broken by the place among the nodes waiting, which is no promise: here there are none.
    scores = scores + np.arange(scores.size).reshape(scores.shape) * 1e-6
    cuts = expand_under_budget(trees, node_scores(scores), NOTHING, fine, budget)
    assert {(c, node.index) for c, cut in cuts.items() for node, _ in cut} == best_leaves(trees, scores, fine, budget)
    assert all(node.level == HEIGHT and ratio == fine for cut in cuts.values() for node, ratio in cut)


@given(seeds, budgets, st.integers(0, 200))
def test_with_equal_leaves_a_higher_budget_only_adds_to_what_is_shown(seed, budget, more):
    trees, scores = forest(seed, equal=True)
    small, large = (expand_under_budget(trees, node_scores(scores), NOTHING, 1, b) for b in (budget, budget + more))
    assert all(set(cut) <= set(large[chunk]) for chunk, cut in small.items())


@given(seeds, coarse_ratios, st.integers(1, 16))
def test_a_budget_for_everything_opens_everything_that_may_be(seed, coarse, fine):
    trees, scores = forest(seed)
    cuts = expand_under_budget(trees, node_scores(scores), coarse, fine, 10**6)
    opened = {(c, node.index) for c, cut in cuts.items() for node, _ in cut if node.level == HEIGHT}
    assert opened >= {(int(c), int(i)) for c, i in zip(*np.nonzero(scores > -np.inf), strict=True)}


@given(seeds, coarse_ratios, st.integers(1, 16))
def test_the_smallest_cut_is_where_showing_something_begins(seed, coarse, fine):
    trees, scores = forest(seed, equal=True)
    if trees:
        smallest = min(smallest_cut(tree, coarse, fine) for tree in trees)
        assert expand_under_budget(trees, node_scores(scores), coarse, fine, smallest)
        if smallest > 1:
            assert not expand_under_budget(trees, node_scores(scores), coarse, fine, smallest - 1)


@given(length=st.one_of(st.just(128), st.integers(1, 128)), seed=seeds)
def test_it_generalises_split_and_search(length, seed):
    """On one chunk, with opened leaves at the leaves' own grain and the budget that split-and-search spends, both show
    the same rows: the best child is opened on the way down, its sibling stays coarse."""
    tree = ContextTree.regular(length, 128, HEIGHT)
    random = Random(seed)
    scores = np.array([[random.random() if tree.size(leaf) else -np.inf for leaf in tree.level(HEIGHT)]])
    levels = node_scores(scores)
    paper = split_and_search(tree, PAPER, lambda node: float(levels[node.level][0, node.index]))
    rows = cut_rows(tree, paper)
    cuts = expand_under_budget([tree], node_scores(scores), PAPER, PAPER[-1], len(rows))
    assert cut_rows(tree, cuts[0]) == rows
    if length == 128:  # in a shorter one the budget may be spent before a chain of only children is walked down
        assert cuts == {0: paper}


def test_a_node_that_does_not_fit_is_passed_over_for_the_next_best_that_does():
    trees = [ContextTree.regular(128, 128, HEIGHT), ContextTree.regular(5, 128, HEIGHT)]
    scores = np.full((2, 8), -np.inf)
    scores[0, 0], scores[1, 0] = 2.0, 1.0
    assert expand_under_budget(trees, node_scores(scores), NOTHING, 1, 15) == {1: [GrainedNode(Node(3, 0), 1)]}
    assert set(expand_under_budget(trees, node_scores(scores), NOTHING, 1, 16)) == {0}


def test_siblings_of_what_is_opened_stay_coarse_and_what_is_left_over_stays_out():
    trees = [ContextTree.regular(128, 128, HEIGHT)] * 2
    scores = np.zeros((2, 8))
    scores[0, 5] = 1.0
    cuts = expand_under_budget(trees, node_scores(scores), (32, 16, 8, 4), 1, 4 + 4 + 4 + 4 + 12)
    assert cuts == {
        0: [
            GrainedNode(Node(1, 0), 16),
            GrainedNode(Node(3, 4), 4),
            GrainedNode(Node(3, 5), 1),
            GrainedNode(Node(2, 3), 8),
        ]
    }


@pytest.mark.parametrize("score", [np.inf, 1e300])
def test_a_leaf_of_any_height_is_opened_first(score):
    trees = [ContextTree.regular(128, 128, HEIGHT)] * 3
    scores = np.zeros((3, 8))
    scores[1, 6] = score
    assert expand_under_budget(trees, node_scores(scores), NOTHING, 1, 16) == {1: [GrainedNode(Node(3, 6), 1)]}
