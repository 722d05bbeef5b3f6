"""Where a paged cache has the rows of its tokens, whatever way its backend lays them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shared_context.errors import SelectionError

BASE = 128
"""Numbers below it, and it, are exact in every dtype that keys and values have."""

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Writes keys and values, each [tokens, kv_heads, head_dim], into a cache at slots, int64 [tokens]."""


def slots(block_ids: Sequence[int], start: int, stop: int, block_size: int) -> torch.Tensor:
    """Where a request's tokens from ``start`` up to ``stop`` lie in the paged cache, int64 [stop - start].

    Args:
        block_ids: the request's blocks, in order.
        start, stop: positions in its prompt; neither has to be a multiple of the block size.
        block_size: tokens of a block.
    """
    positions = torch.arange(start, stop)
    return torch.tensor(block_ids, dtype=torch.int64)[positions // block_size] * block_size + positions % block_size


def places(write: Write, cache: torch.Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    """Where a block of a cache has each number of its keys and values, found by having the backend write some.

    A backend can write rows and hands none back, and its layout is its own: the kernels of processors interleave them.

    Args:
        write: the backend's own way.
        cache: of one layer, blocks first.
        shape: of a block: tokens, KV heads and numbers of a head.
        dtype: of keys and values.

    Returns:
        int64 [2, tokens, kv_heads, head_dim], keys first: indices into one block, flattened.

    Raises:
        SelectionError: the cache is not laid out block by block, or holds something else than keys and values.
    """
    scratch = torch.zeros_like(cache[:2])
    numbers = torch.arange(1, 1 + 2 * shape[0] * shape[1] * shape[2], device=cache.device)
    second = torch.arange(shape[0], 2 * shape[0], device=cache.device)
    found, scale = torch.zeros(scratch[1].numel(), dtype=torch.int64, device=cache.device), 1
    while scale <= len(numbers):
        keys, values = (numbers // scale % BASE).to(dtype).view(2, *shape)
        write(keys, values, scratch, second)
        found += scratch[1].flatten().to(torch.int64) * scale
        scale *= BASE
    order = found.argsort()[-len(numbers) :]
    if not torch.equal(found[order], numbers) or scratch[0].any():
        raise SelectionError(
            f"vLLM's cache of the shape {list(cache.shape)} does not hold keys and values of {list(shape)} block by "
            "block: chunks cannot be computed by this engine."
        )
    return order.view(2, *shape)


def rows(cache: torch.Tensor, places: torch.Tensor, block_ids: Sequence[int], start: int, stop: int) -> torch.Tensor:
    """Keys and values of a request's tokens from ``start`` up to ``stop``, [2, stop - start, kv_heads, head_dim].

    Args:
        cache: of one layer, blocks first.
        places: as :func:`places` finds them.
        block_ids: the request's blocks, in order.
        start, stop: positions in its prompt; neither has to be a multiple of the block size.
    """
    block_size = places.shape[1]
    first = start // block_size
    taken = torch.tensor(block_ids[first : -(-stop // block_size)], device=cache.device)
    blocks = cache[taken].flatten(1).index_select(1, places.flatten()).view(len(taken), *places.shape)
    return blocks.transpose(0, 1).flatten(1, 2)[:, start - first * block_size : stop - first * block_size]
