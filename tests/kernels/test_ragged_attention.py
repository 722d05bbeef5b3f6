"""Attention over ragged heads is attention over the same heads padded to the fullest and masked."""

import pytest
import torch

from shared_context.kernels import attention_with_lse, ragged_attention
from shared_context.kernels.ragged_attention import joined, ragged_attention_naive
from shared_context.kernels.ragged_attention.triton_kernel import attention_with_lse_triton, ragged_attention_triton

COUNTS = {
    "uneven": [[70, 0, 3], [1, 130, 17]],
    "one head keeps all": [[0, 0, 200], [0, 64, 0]],
    "nothing at all": [[0, 0, 0], [0, 0, 0]],
}
WAYS = {"processor": ragged_attention, "Triton": ragged_attention_triton}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def ragged(counts, dtype, head_dim=24, queries=21):
    """Rows of heads that lie in turned order, with rows of nobody between them that would spoil every sum."""
    counts = torch.tensor(counts)
    draw = torch.Generator().manual_seed(1)
    starts, at = torch.zeros_like(counts), 5
    for index in reversed(range(counts.numel())):
        starts.view(-1)[index] = at
        at += int(counts.view(-1)[index]) + 2
    keys, values = (torch.full((at, head_dim), torch.nan) for _ in range(2))
    for first, count in zip(starts.flatten().tolist(), counts.flatten().tolist(), strict=True):
        keys[first : first + count] = 2 * torch.randn((count, head_dim), generator=draw)
        values[first : first + count] = torch.randn((count, head_dim), generator=draw)
    query = torch.randn((*counts.shape, queries, head_dim), generator=draw)
    return query.to(dtype), keys.to(dtype), values.to(dtype), starts, counts


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("counts", COUNTS)
def test_ragged_heads_are_read_as_padded_ones(counts, way, dtype):
    query, keys, values, starts, counts = ragged(COUNTS[counts], dtype)
    expected, logarithms = ragged_attention_naive(query.double(), keys, values, starts, counts, 0.3)
    found, lse = WAYS[way](query, keys, values, starts, counts, 0.3)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < TOLERANCE[dtype]
    torch.testing.assert_close(lse, logarithms, atol=10 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("way", [attention_with_lse, attention_with_lse_triton])
@pytest.mark.parametrize("masked", [False, True])
def test_even_heads_with_a_mask_are_read_as_by_the_formula(way, masked):
    draw = torch.Generator().manual_seed(2)
    query = torch.randn((2, 3, 18, 16), generator=draw)
    # a view whose rows lie apart, as a cache's do
    key, value = torch.randn((2, 2, 3, 90, 16), generator=draw)[..., :77, :].unbind(0)
    mask = torch.zeros(2, 1, 18, 77).masked_fill(torch.rand((2, 1, 18, 77), generator=draw) < 0.5, -1e9)
    scores = query.double() @ key.double().transpose(2, 3) * 0.25 + (mask if masked else 0)
    found, lse = way(query, key, value, mask if masked else None)
    assert (found - scores.softmax(-1) @ value.double()).abs().max() < 1e-5
    assert (lse - scores.logsumexp(-1)).abs().max() < 1e-4


def test_parts_that_are_joined_are_one_softmax():
    query, keys, values, starts, counts = ragged(COUNTS["uneven"], torch.float32)
    draw = torch.Generator().manual_seed(3)
    own_keys, own_values = (torch.randn((2, 3, 9, 24), generator=draw) for _ in range(2))
    parts = [attention_with_lse(query, own_keys, own_values), ragged_attention(query, keys, values, starts, counts)]
    for row in range(2):
        for head in range(3):
            mine = slice(int(starts[row, head]), int(starts[row, head] + counts[row, head]))
            both = torch.cat([own_keys[row, head], keys[mine]]).double()
            scores = query[row, head].double() @ both.T * 24**-0.5
            expected = scores.softmax(-1) @ torch.cat([own_values[row, head], values[mine]]).double()
            assert (joined(parts)[row, head] - expected).abs().max() < 1e-5
