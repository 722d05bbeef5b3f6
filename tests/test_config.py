"""The settings' defaults that follow from each other."""

import pytest

from shared_context import TreeConfig


@pytest.mark.parametrize(("chunk_size", "leaf_size"), [(1024, 32), (512, 32), (128, 32), (48, 48), (16, 16)])
def test_leaves_of_small_chunks_are_no_smaller_than_those_of_others(chunk_size, leaf_size):
    assert TreeConfig(chunk_size).leaf_size == leaf_size
    assert len(TreeConfig(chunk_size).coarse) == TreeConfig(chunk_size).height + 1


def test_a_height_that_is_given_counts():
    assert TreeConfig(chunk_size=128, height=4).leaf_size == 8
