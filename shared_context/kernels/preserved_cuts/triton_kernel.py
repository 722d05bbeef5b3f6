"""Split-and-search on a GPU: one program descends one tree."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shared_context.kernels.launch import on_device

MAX_CHANNELS = 1024
"""Channels of a hidden state that are compared at a time."""


@triton.jit
def _cosine(query, state, state_stride, hidden, CHANNELS: tl.constexpr):
    """Cosine of the query with one state, as PyTorch defines it: norms below 1e-8 count as 1e-8."""
    product = tl.full([CHANNELS], 0.0, tl.float32)
    query_square = tl.full([CHANNELS], 0.0, tl.float32)
    state_square = tl.full([CHANNELS], 0.0, tl.float32)
    for start in range(0, hidden, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        a = tl.load(query + channel, mask=channel < hidden, other=0.0).to(tl.float32)
        b = tl.load(state + channel * state_stride, mask=channel < hidden, other=0.0).to(tl.float32)
        product += a * b
        query_square += a * a
        state_square += b * b
    norms = tl.maximum(tl.sqrt(tl.sum(query_square, axis=0)), 1e-8) * tl.maximum(
        tl.sqrt(tl.sum(state_square, axis=0)), 1e-8
    )
    return tl.sum(product, axis=0) / norms


@triton.jit
def preserved_cuts_kernel(
    query,  # float32 [hidden], contiguous
    states,  # [leaves, hidden]
    first,  # int64 [trees], contiguous
    count,  # int64 [trees], contiguous
    out,  # int64 [trees, HEIGHT + 1], contiguous
    hidden,
    states_leaf,
    states_channel,
    HEIGHT: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The cut of one tree. A right child ends where its parent ends, so only left children are compared anew."""
    tree = tl.program_id(0).to(tl.int64)
    leaves = tl.load(count + tree)
    of_tree = states + tl.load(first + tree) * states_leaf
    to = out + tree * (HEIGHT + 1)
    held = leaves > 0
    node = leaves * 0
    last = tl.maximum(leaves - 1, 0)
    of_node = _cosine(query, of_tree + last * states_leaf, states_channel, hidden * held, CHANNELS)
    for level in tl.static_range(1, HEIGHT + 1):
        last = tl.maximum(tl.minimum((2 * node + 1) * 2 ** (HEIGHT - level), leaves) - 1, 0)
        of_left = _cosine(query, of_tree + last * states_leaf, states_channel, hidden * held, CHANNELS)
        exists = (2 * node + 1) * 2 ** (HEIGHT - level) < leaves
        right = ((of_node > of_left) & exists).to(tl.int64)
        sibling = tl.where(exists, 2**level + 2 * node + 1 - right, 0)
        tl.store(to + level - 1, tl.where(held, sibling, 0))
        of_node = tl.where(right > 0, of_node, of_left)
        node = 2 * node + right
    tl.store(to + HEIGHT, tl.where(held, 2**HEIGHT + node, 0))


def preserved_cuts_triton(
    query: torch.Tensor, states: torch.Tensor, first: torch.Tensor, count: torch.Tensor, height: int
) -> torch.Tensor:
    """What :func:`~shared_context.kernels.preserved_cuts` does, in one launch; at least one tree."""
    out = torch.empty((len(first), height + 1), dtype=torch.int64, device=query.device)
    with on_device(query):
        preserved_cuts_kernel[(len(first),)](
            query.float().contiguous(),
            states,
            first.contiguous(),
            count.contiguous(),
            out,
            states.shape[1],
            *states.stride(),
            HEIGHT=height,
            CHANNELS=min(MAX_CHANNELS, triton.next_power_of_2(states.shape[1])),
        )
    return out
