"""The slow, obviously right versions: what every faster one is tested against."""

from __future__ import annotations

import torch


def late_interaction_scores_naive(
    query: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    *,
    leaves: torch.Tensor | None = None,
) -> torch.Tensor:
    """What :func:`~shared_context.kernels.late_interaction_scores` does, every similarity held at once.

    Computed in the dtype of ``query``; arguments and result are the same otherwise.
    """
    if leaves is not None:
        codes, scales = codes[leaves], None if scales is None else scales[leaves]
    tokens = codes.to(query.dtype)
    if scales is not None:
        tokens = tokens * scales.to(query.dtype)[..., None]
    similarity = torch.einsum("...qd,lsd->...lsq", query, tokens)
    return torch.einsum("...lq,...q->...l", similarity.amax(dim=-2), weights.to(query.dtype))


def node_scores_naive(leaf_scores: torch.Tensor) -> torch.Tensor:
    """What :func:`~shared_context.kernels.node_scores` does, one level at a time; arguments are the same."""
    levels = [leaf_scores]
    while levels[0].shape[-1] > 1:
        levels.insert(0, levels[0].unflatten(-1, (-1, 2)).amax(dim=-1))
    return torch.cat(levels, dim=-1)
