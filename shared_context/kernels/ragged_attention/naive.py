"""The slow, obviously right version: every head padded to the fullest one and masked, in float64."""

from __future__ import annotations

import torch


def ragged_attention_naive(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    scaling: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`~shared_context.kernels.ragged_attention.ragged_attention` does; arguments are the same."""
    batch, kv_heads, rows, head_dim = query.shape
    fullest = max(1, int(counts.max()))
    place = torch.arange(fullest)
    there = (place < counts[..., None]).to(query.device)
    index = torch.where(there.cpu(), starts[..., None] + place, 0).to(query.device)
    if len(keys) == 0:
        keys, values = (part.new_zeros(1, head_dim) for part in (keys, values))
    padded_keys, padded_values = (part.double()[index].masked_fill(~there[..., None], 0.0) for part in (keys, values))
    scores = query.double() @ padded_keys.transpose(2, 3) * (head_dim**-0.5 if scaling is None else scaling)
    scores = scores.masked_fill(~there[:, :, None], -torch.inf)
    lse = scores.logsumexp(dim=-1)
    # The softmax of a head without rows is undefined, its contribution is none.
    shares = torch.where(torch.isfinite(lse)[..., None], (scores - lse[..., None]).exp(), 0.0)
    return (shares @ padded_values).to(query.dtype), lse.float()
