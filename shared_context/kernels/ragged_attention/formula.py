"""Attention as its formula says, for what no fused kernel does: capped logits, and windows over ragged heads."""

from __future__ import annotations

import torch


def attention_by_formula(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`~shared_context.kernels.attention_with_lse` gives, in float32 and with capped logits.

    Args:
        query, key, value, scaling: as there.
        mask: additive, broadcast to [batch, kv_heads, queries, entries]; minus infinity hides for certain.
        softcap: logits x become ``softcap * tanh(x / softcap)`` before the mask; None leaves them.
    """
    scores = query.float() @ key.float().transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    # The softmax of a query that sees nothing is undefined, its contribution is none.
    shares = torch.where(torch.isfinite(lse)[..., None], (scores - lse[..., None]).exp(), 0.0)
    return (shares @ value.float()).to(query.dtype), lse


def ragged_attention_by_formula(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    positions: torch.Tensor | None = None,
    asked: torch.Tensor | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`~shared_context.kernels.ragged_attention` gives, heads padded to the fullest.

    Args:
        query, keys, values, starts, counts, scaling: as there.
        softcap: as in :func:`attention_by_formula`.
        positions: where each of ``keys`` stands, [rows]; None where all are seen.
        asked: where each query stands, [batch, queries]; needed with ``positions``, and so is ``window``.
        window: a query sees the keys at its own position and at ``window - 1`` positions before.
    """
    place = torch.arange(max(1, int(counts.max())))
    there = place < counts[..., None]
    index = torch.where(there, starts[..., None] + place, 0).to(query.device)
    if len(keys) == 0:
        return torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf, dtype=torch.float32)
    mask = torch.zeros(there.shape, device=query.device).masked_fill_(~there.to(query.device), -torch.inf)[:, :, None]
    if positions is not None:
        assert asked is not None and window is not None
        places, queries = positions[index][:, :, None], asked[:, None, :, None]
        mask = mask.masked_fill((places > queries) | (places <= queries - window), -torch.inf)
    return attention_by_formula(query, keys[index], values[index], mask, scaling, softcap)
