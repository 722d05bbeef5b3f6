"""Context trees: every level tiles the chunk, whatever its length and wherever its spans are split."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_context.tree import ContextTree, Node


def assert_every_level_tiles_the_chunk(tree: ContextTree) -> None:
    for level in range(tree.height + 1):
        spans = [tree.span(node) for node in tree.level(level)]
        assert spans[0][0] == 0
        assert spans[-1][1] == tree.length
        assert all(left[1] == right[0] for left, right in pairwise(spans))
        assert all(start <= end for start, end in spans)
        assert [tree.size(node) for node in tree.level(level)] == [end - start for start, end in spans]


def assert_children_share_their_parent(tree: ContextTree) -> None:
    for level in range(tree.height):
        for node in tree.level(level):
            left, right = (tree.span(child) for child in node.children)
            assert (left[0], right[1]) == tree.span(node)
            assert left[1] == right[0]


@given(height=st.integers(0, 6), leaf=st.integers(1, 200), share=st.floats(0, 1))
def test_a_regular_tree_tiles_a_chunk_of_any_length(height, leaf, share):
    chunk_size = leaf << height
    length = round(share * chunk_size)
    tree = ContextTree.regular(length, chunk_size, height)
    assert (tree.height, tree.length) == (height, length)
    assert_every_level_tiles_the_chunk(tree)
    assert_children_share_their_parent(tree)
    for level in range(height + 1):
        for node in tree.level(level):
            start, end = tree.span(node)
            assert end == start or start == node.index * (chunk_size >> level)


@given(
    length=st.integers(0, 2000),
    height=st.integers(0, 5),
    noise=st.floats(0, 3),
    seed=st.integers(0, 2**32),
)
def test_a_noisy_tree_tiles_its_chunk_however_far_the_noise_throws_a_split(length, height, noise, seed):
    tree = ContextTree.noisy(length, height, noise, Random(seed))
    assert (tree.height, tree.length) == (height, length)
    assert_every_level_tiles_the_chunk(tree)
    assert_children_share_their_parent(tree)


def test_without_noise_a_noisy_tree_is_the_regular_one():
    assert ContextTree.noisy(1024, 3, 0.0, Random(0)) == ContextTree.regular(1024, 1024, 3)


def test_noise_moves_the_splits_and_a_seed_repeats_them():
    one, same, other = (ContextTree.noisy(1024, 3, 0.1, Random(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert one != ContextTree.regular(1024, 1024, 3)


def test_the_split_of_the_root_has_the_deviation_that_was_asked_for():
    splits = [ContextTree.noisy(1000, 1, 0.1, Random(seed)).bounds[1] for seed in range(2000)]
    mean = sum(splits) / len(splits)
    deviation = (sum((s - mean) ** 2 for s in splits) / len(splits)) ** 0.5
    assert mean == pytest.approx(500, abs=10)
    assert deviation == pytest.approx(100, rel=0.1)


def test_the_smallest_leaf_is_that_of_the_short_end():
    assert ContextTree.regular(1024, 1024, 3).smallest_leaf == 128
    assert ContextTree.regular(300, 1024, 3).smallest_leaf == 44
    assert ContextTree.regular(0, 1024, 3).smallest_leaf == 0


def test_nodes_know_their_children():
    assert Node(2, 3).children == (Node(3, 6), Node(3, 7))


@pytest.mark.parametrize("bounds", [(), (0,), (0, 1, 2, 3), (1, 2), (0, 3, 2)])
def test_bounds_that_are_no_tree_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds"):
        ContextTree(bounds)
