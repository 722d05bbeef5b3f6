"""Attention that also gives the logarithm of each softmax's denominator, over even and over ragged heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared_context.kernels.launch import or_pytorch, triton_serves
from shared_context.kernels.ragged_attention.naive import ragged_attention_naive

_flash_attention = torch._scaled_dot_product_flash_attention_for_cpu
"""torch's own attention on a processor, which gives that logarithm, too."""

FLASH_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def ragged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    scaling: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each head over its own rows, and the logarithm of each softmax's denominator.

    On CUDA and HIP one Triton kernel serves all heads; on a processor torch's flash attention serves them one by one,
    which costs some microseconds each; elsewhere, and under ``torch.compile``, the formula itself.

    Args:
        query: [batch, kv_heads, queries, head_dim], the query heads that share a KV head one behind the other. Every
            query sees all rows of its head.
        keys, values: [rows, head_dim].
        starts: first row of each head, int64 [batch, kv_heads], on the processor.
        counts: rows of each head, int64 [batch, kv_heads], on the processor; they lie one behind the other.
        scaling: of the scores; None is ``head_dim ** -0.5``.

    Returns:
        [batch, kv_heads, queries, head_dim] and float32 [batch, kv_heads, queries]: zeros and minus infinity for a
        head without rows.
    """
    if torch.compiler.is_compiling():
        return ragged_attention_naive(query, keys, values, starts, counts, scaling)
    if triton_serves(query):
        with or_pytorch():
            from shared_context.kernels.ragged_attention.triton_kernel import ragged_attention_triton

            return ragged_attention_triton(query, keys, values, starts, counts, scaling)
    if query.device.type != "cpu" or query.dtype not in FLASH_DTYPES:
        return ragged_attention_naive(query, keys, values, starts, counts, scaling)
    out, lse = torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf, dtype=torch.float32)
    for row, (firsts, numbers) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        for head, (first, number) in enumerate(zip(firsts, numbers, strict=True)):
            if number:
                key, value = (part[None, None, first : first + number] for part in (keys, values))
                place = slice(row, row + 1), slice(head, head + 1)
                out[place], lse[place] = _flash_attention(query[place], key, value, scale=scaling)
    return out, lse


def attention_with_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    scaling: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over heads that all have the same entries, and the logarithm of each softmax's denominator.

    Args:
        query: [batch, kv_heads, queries, head_dim].
        key, value: [batch, kv_heads, entries, head_dim].
        mask: additive, [batch or 1, 1, queries, entries]; None lets every query see all entries.
        scaling: of the scores; None is ``head_dim ** -0.5``.

    Returns:
        [batch, kv_heads, queries, head_dim] and float32 [batch, kv_heads, queries].
    """
    if key.shape[2] == 0:
        return torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf, dtype=torch.float32)
    if triton_serves(query):
        with or_pytorch():
            from shared_context.kernels.ragged_attention.triton_kernel import attention_with_lse_triton

            return attention_with_lse_triton(query, key, value, mask, scaling)
    if query.device.type == "cpu" and query.dtype in FLASH_DTYPES:
        return _flash_attention(query, key, value, attn_mask=mask, scale=scaling)
    scores = query.float() @ key.float().transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ value.float()).to(query.dtype), scores.logsumexp(-1)


def joined(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """One softmax over several parts of a context, each attended to on its own.

    Args:
        parts: for each part what it gives, [batch, kv_heads, queries, head_dim], and the logarithm of its softmax's
            denominator, float32 [batch, kv_heads, queries]; in one of them it is finite.

    Returns:
        [batch, kv_heads, queries, head_dim].
    """
    outputs, logarithms = zip(*parts, strict=True)
    shares = torch.stack(logarithms).softmax(dim=0)[..., None]
    weighted = sum(output.float() * share for output, share in zip(outputs, shares, strict=True))
    return weighted.to(outputs[0].dtype)
