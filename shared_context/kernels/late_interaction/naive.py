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
    adjacent: torch.Tensor | None = None,
) -> torch.Tensor:
    """What :func:`~shared_context.kernels.late_interaction_scores` does, every similarity held at once.

    Computed in the dtype of ``query``; arguments and result are the same otherwise.
    """
    if leaves is not None:
        codes, scales = codes[leaves], None if scales is None else scales[leaves]
    tokens = codes.to(query.dtype)
    if scales is not None:
        tokens = tokens * scales.to(query.dtype)[..., None]
    best = torch.einsum("...qd,lsd->...qls", query, tokens).amax(dim=-1)
    return weighted(best, weights.to(query.dtype), adjacent)


def weighted(best: torch.Tensor, weights: torch.Tensor, adjacent: torch.Tensor | None) -> torch.Tensor:
    """Scores [..., leaves] from the best similarities [..., words, leaves]."""
    if adjacent is not None:
        best = best + widened(best, adjacent)
    return torch.einsum("...wl,...w->...l", best, weights)


def widened(best: torch.Tensor, adjacent: torch.Tensor) -> torch.Tensor:
    """The largest of each leaf's value and its neighbours'.

    Args:
        best: [..., leaves].
        adjacent: whether leaf ``i + 1`` is a neighbour of leaf ``i``, bool [leaves - 1].
    """
    none = best.new_full((*best.shape[:-1], 1), -torch.inf)
    before = torch.cat([none, torch.where(adjacent, best[..., :-1], -torch.inf)], dim=-1)
    behind = torch.cat([torch.where(adjacent, best[..., 1:], -torch.inf), none], dim=-1)
    return torch.maximum(best, torch.maximum(before, behind))


def node_scores_naive(leaf_scores: torch.Tensor) -> torch.Tensor:
    """What :func:`~shared_context.kernels.node_scores` does, one level at a time; arguments are the same."""
    levels = [leaf_scores]
    while levels[0].shape[-1] > 1:
        levels.insert(0, levels[0].unflatten(-1, (-1, 2)).amax(dim=-1))
    return torch.cat(levels, dim=-1)
