"""Attention over ragged heads on a GPU: one launch, every head reads its own rows where they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shared_context.kernels.launch import on_device

ELEMENT = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}

QUERIES = 16
"""Queries of one program."""

VALUES = 2048
"""Channels times entries that a program reads at a time."""


@triton.jit
def ragged_attention_kernel(
    query,  # [batch * kv_heads, queries, HEAD_DIM], contiguous
    keys,
    values,  # the rows of a head lie row_stride elements apart; its first is table[head, 0] elements from the pointer
    table,  # int64 [batch * kv_heads, 2]: that place, and how many rows there are
    mask,  # float32 [batch or 1, queries, entries], contiguous in its last two axes
    out,  # as query
    lse,  # float32 [batch * kv_heads, queries]
    scaling,
    queries,
    kv_heads,
    row_stride,
    mask_batch,
    mask_query,
    HEAD_DIM: tl.constexpr,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    ENTRIES: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    DOT: tl.constexpr,
):
    """QUERIES queries of one head over all of its rows, with a running maximum and sum."""
    head = tl.program_id(0).to(tl.int64)
    asked = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, HEAD)
    inside = (asked < queries)[:, None] & (channel < HEAD_DIM)[None, :]
    place = (head * queries + asked[:, None]) * HEAD_DIM + channel[None, :]
    q = tl.load(query + place, mask=inside, other=0.0).to(DOT)

    first, count = tl.load(table + 2 * head), tl.load(table + 2 * head + 1)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES, HEAD), tl.float32)
    for begin in range(0, count, ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        there = (entry < count)[:, None] & (channel < HEAD_DIM)[None, :]
        row = first + entry.to(tl.int64)[:, None] * row_stride + channel[None, :]
        k = tl.load(keys + row, mask=there, other=0.0).to(DOT)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scaling
        if HAS_MASK:
            at = (head // kv_heads) * mask_batch + asked[:, None].to(tl.int64) * mask_query + entry[None, :]
            seen = (asked < queries)[:, None] & (entry < count)[None, :]
            scores += tl.load(mask + at, mask=seen, other=0.0)
        scores = tl.where((entry < count)[None, :], scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, axis=1))
        shares = tl.exp(scores - highest[:, None])
        decay = tl.exp(largest - highest)
        v = tl.load(values + row, mask=there, other=0.0).to(DOT)
        weighted = weighted * decay[:, None] + tl.dot(shares.to(DOT), v, input_precision=PRECISION)
        total = total * decay + tl.sum(shares, axis=1)
        largest = highest
    # A head without rows gives zeros and minus infinity.
    divisor = tl.where(total > 0, total, 1.0)
    tl.store(out + place, (weighted / divisor[:, None]).to(out.dtype.element_ty), mask=inside)
    logarithm = tl.where(total > 0, largest + tl.log(divisor), float("-inf"))
    tl.store(lse + head * queries + asked, logarithm, mask=asked < queries)


def padded(head_dim: int) -> int:
    """Channels of a head as a program holds them: a power of two, no fewer than a product of matrices takes."""
    return max(16, triton.next_power_of_2(head_dim))


def entries_at_a_time(head_dim: int) -> int:
    """Entries that a program reads at a time: more would not fit its registers."""
    return max(16, VALUES // padded(head_dim))


def ragged_attention_triton(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    scaling: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`~shared_context.kernels.ragged_attention.ragged_attention` does; tensors are on a GPU."""
    table = torch.stack([starts.flatten() * query.shape[-1], counts.flatten()], dim=1)
    return _launch(query, keys.contiguous(), values.contiguous(), table, query.shape[-1], None, scaling)


def attention_with_lse_triton(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    scaling: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`~shared_context.kernels.ragged_attention.attention_with_lse` does; tensors are on a GPU."""
    if key.stride() != value.stride() or key.stride(-1) != 1:
        key, value = key.contiguous(), value.contiguous()
    batch, kv_heads, entries, _ = key.shape
    first = torch.arange(batch)[:, None] * key.stride(0) + torch.arange(kv_heads) * key.stride(1)
    table = torch.stack([first.flatten(), torch.full((batch * kv_heads,), entries)], dim=1)
    return _launch(query, key, value, table, key.stride(2), mask, scaling)


def _launch(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    row_stride: int,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, kv_heads, queries, head_dim = query.shape
    query = query.contiguous()
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    strides = (0, 0)
    if mask is not None:
        mask = mask[:, 0].float().contiguous()
        strides = (mask.stride(0) if len(mask) > 1 else 0, mask.stride(1))
    with on_device(query):
        ragged_attention_kernel[(batch * kv_heads, triton.cdiv(queries, QUERIES))](
            query,
            keys,
            values,
            table.to(query.device, non_blocking=True),
            query if mask is None else mask,
            out,
            lse,
            head_dim**-0.5 if scaling is None else scaling,
            queries,
            kv_heads,
            row_stride,
            *strides,
            HEAD_DIM=head_dim,
            HEAD=padded(head_dim),
            QUERIES=QUERIES,
            ENTRIES=entries_at_a_time(head_dim),
            HAS_MASK=mask is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            # the interpreter multiplies the bits of bfloat16 as if they were integers
            DOT=ELEMENT[query.dtype] if query.device.type == "cuda" else tl.float32,
            num_warps=4,
        )
    return out, lse
