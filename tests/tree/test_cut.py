"""Cuts: which rows of a chunk's one encoding are shown at which grain."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shared_context.tree import ContextTree, GrainedNode, Node, cut_rows, important_rows, kv_entries
from shared_context.tree.cut import node_rows

ratios = st.integers(1, 40)


@given(start=st.integers(0, 500), size=st.integers(0, 500), ratio=ratios)
def test_a_span_keeps_every_ratio_th_row_counted_from_its_end(start, size, ratio):
    rows = list(node_rows(start, start + size, ratio))
    assert rows == sorted(range(start + size - 1, start - 1, -ratio))
    assert len(rows) == kv_entries(size, ratio)


def test_a_span_shorter_than_the_ratio_keeps_its_last_row():
    assert list(node_rows(10, 13, 8)) == [12]


def test_a_span_of_which_nothing_is_shown_has_no_rows():
    assert list(node_rows(10, 13, None)) == []
    assert kv_entries(3, None) == 0


def test_ratio_1_keeps_everything():
    assert list(node_rows(3, 7, 1)) == [3, 4, 5, 6]


@given(length=st.integers(1, 600), height=st.integers(0, 4), noise=st.floats(0, 1), seed=st.integers(0, 999))
def test_any_cut_at_ratio_1_is_every_row_once(length, height, noise, seed):
    random = Random(seed)
    tree = ContextTree.noisy(length, height, noise, random)
    cut, open_nodes = [], [Node(0, 0)]
    while open_nodes:
        node = open_nodes.pop()
        if node.level < height and random.random() < 0.7:
            open_nodes += node.children
        else:
            cut.append(GrainedNode(node, 1))
    random.shuffle(cut)
    assert cut_rows(tree, cut) == list(range(length))


@given(level=st.integers(0, 3), index=st.integers(0, 7), exponent=st.integers(0, 4))
def test_a_coarse_node_and_its_leaves_at_the_same_ratio_show_the_same_rows(level, index, exponent):
    """Where the leaves' sizes are multiples of the ratio, as they are in every full chunk."""
    tree = ContextTree.regular(128, 128, 3)
    ratio = 2**exponent
    node = Node(level, index % 2**level)
    leaves = [Node(3, node.index * 2 ** (3 - level) + i) for i in range(2 ** (3 - level))]
    whole = cut_rows(tree, [GrainedNode(node, ratio)])
    assert cut_rows(tree, [GrainedNode(leaf, ratio) for leaf in leaves]) == whole
    finer = cut_rows(tree, [GrainedNode(leaf, max(1, ratio // 2)) for leaf in leaves])
    assert set(whole) <= set(finer)


@given(st.lists(st.tuples(st.integers(0, 7), ratios), unique_by=lambda pair: pair[0]), st.integers(1, 128))
def test_rows_of_a_cut_rise_and_number_its_entries(leaves, length):
    tree = ContextTree.regular(length, 128, 3)
    cut = [GrainedNode(Node(3, index), ratio) for index, ratio in leaves]
    rows = cut_rows(tree, cut)
    assert rows == sorted(set(rows))
    assert len(rows) == sum(kv_entries(tree.size(node), ratio) for node, ratio in cut)


def naive_important(importance, start, end, ratio):
    """By sorting every row of the span by its importance, its token and its head."""
    heads, _ = importance.shape
    rows = [(importance[h, t], t, -h) for h in range(heads) for t in range(start, end) if importance[h, t] >= 0]
    return {(-h, t) for _, t, h in sorted(rows, reverse=True)[: kv_entries(end - start, ratio) * heads]}


spans = st.tuples(st.integers(0, 20), st.integers(0, 40))
scores = st.lists(st.sampled_from([0.0, -0.0, 0.5, 0.25, 1e-7, 6e-8, 3.0, -1.0]), min_size=180, max_size=180)


@given(scores, spans, st.integers(1, 50))
def test_a_span_keeps_its_most_important_rows_over_all_heads(values, span, ratio):
    importance = np.array(values, np.float16).reshape(3, 60)
    start, end = span[0], sum(span)
    kept = important_rows(importance, [(start, end, ratio)])
    assert set(zip(*(axis.tolist() for axis in np.nonzero(kept)), strict=True)) == naive_important(
        importance, start, end, ratio
    )


@given(scores, spans, st.integers(1, 20), st.integers(1, 5))
def test_what_a_grain_keeps_every_finer_one_keeps_too(values, span, ratio, times):
    importance = np.abs(np.array(values, np.float16).reshape(3, 60))
    start, end = span[0], sum(span)
    coarser = important_rows(importance, [(start, end, ratio * times)])
    assert not (coarser & ~important_rows(importance, [(start, end, ratio)])).any()
    assert coarser.sum() == 3 * kv_entries(end - start, ratio * times)


five = st.lists(st.integers(1, 12), min_size=5, max_size=5)


@given(scores, five, five)
def test_spans_keep_together_what_each_keeps_alone(values, sizes, of_spans):
    importance = np.array(values, np.float16).reshape(3, 60)
    ends = np.cumsum(sizes).tolist()
    several = list(zip([0, *ends], ends, of_spans, strict=False))
    alone = [important_rows(importance, [span]) for span in several]
    assert (important_rows(importance, several) == np.logical_or.reduce(alone)).all()
