"""Split-and-search over all trees against the search of one tree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.kernels import preserved_cuts
from shared_context.kernels.preserved_cuts import preserved_cuts_naive
from shared_context.tree import ContextTree, Node, split_and_search

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning:triton")


def with_triton(*arguments):
    triton_kernel = pytest.importorskip("shared_context.kernels.preserved_cuts.triton_kernel")
    return triton_kernel.preserved_cuts_triton(*arguments)


PATHS = [preserved_cuts, with_triton]


def example(counts, hidden, seed=0, dtype=torch.float16, device="cpu"):
    random = torch.Generator().manual_seed(seed)
    count = torch.tensor(counts)
    states = torch.randn((sum(counts), hidden), generator=random).to(dtype)
    arguments = torch.randn(hidden, generator=random), states, count.cumsum(0) - count, count
    return [x.to(device) for x in arguments]


def one_by_one(query, states, first, count, height):
    """The cut of each tree by the library's own search, as sets of ``2**level + index``."""
    cuts = []
    for start, leaves in zip(first.tolist(), count.tolist(), strict=True):
        similarity = torch.nn.functional.cosine_similarity(
            states[start : start + leaves].double(), query[None].double(), dim=1
        )

        def of_last_leaf(node: Node, similarity=similarity, leaves=leaves) -> float:
            width = 1 << (height - node.level)
            return float(similarity[min((node.index + 1) * width, leaves) - 1])

        cut = split_and_search(ContextTree.regular(leaves, 1 << height, height), [1] * (height + 1), of_last_leaf)
        cuts.append({2**grained.node.level + grained.node.index for grained in cut})
    return cuts


@settings(max_examples=40)
@given(height=st.integers(0, 4), hidden=st.integers(1, 40), seed=st.integers(0, 1000), data=st.data())
def test_every_tree_is_cut_as_it_is_alone(height, hidden, seed, data, device):
    counts = data.draw(st.lists(st.integers(0, 2**height), min_size=1, max_size=5).filter(any))
    arguments = [*example(counts, hidden, seed, device=device), height]
    expected = one_by_one(*(x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments))
    for path in PATHS:
        found = path(*arguments)
        assert found.shape == (len(counts), height + 1)
        assert [{node for node in cut if node} for cut in found.tolist()] == expected


@pytest.mark.parametrize("hidden", [576, 2500])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_hidden_states_of_real_sizes(hidden, dtype, device):
    arguments = [*example([8] * 20 + [3], hidden, dtype=dtype, device=device), 3]
    in_float64 = preserved_cuts_naive(arguments[0].double(), *arguments[1:])
    for path in PATHS:
        assert torch.equal(path(*arguments), in_float64)


@pytest.mark.parametrize("path", PATHS)
def test_states_need_not_be_contiguous(path, device):
    query, states, first, count = example([8, 4], 16, device=device)
    expected = preserved_cuts_naive(query, states, first, count, 3)
    assert torch.equal(path(query, states.T.contiguous().T, first, count, 3), expected)


@pytest.mark.parametrize("path", PATHS)
def test_equal_and_undefined_similarities_take_the_left_child(path, device):
    query, states, first, count = example([8, 8], 16, device=device)
    states[:8] = 1
    states[8:] = torch.nan
    # the right siblings from the root down, and the first leaf
    assert path(query, states, first, count, 3).tolist() == [[3, 5, 9, 8]] * 2


def test_no_tree_has_no_cut():
    none = torch.empty(0, dtype=torch.long)
    assert preserved_cuts(torch.ones(4), torch.empty(0, 4), none, none, 3).shape == (0, 4)


def test_inference_mode_and_compile_change_nothing():
    arguments = [*example([8, 5], 16), 3]
    expected = preserved_cuts(*arguments)
    with torch.inference_mode():
        assert torch.equal(preserved_cuts(*arguments), expected)
    assert torch.equal(torch.compile(preserved_cuts, backend="eager", fullgraph=True)(*arguments), expected)
