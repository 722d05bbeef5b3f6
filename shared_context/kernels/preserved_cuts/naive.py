"""The slow, obviously right version: what the faster one is tested against."""

from __future__ import annotations

import torch


def preserved_cuts_naive(
    query: torch.Tensor, states: torch.Tensor, first: torch.Tensor, count: torch.Tensor, height: int
) -> torch.Tensor:
    """What :func:`~shared_context.kernels.preserved_cuts` does, all trees one level at a time.

    The similarity of every leaf is computed, whether the search looks at it or not, in the dtype of ``query``.
    """
    similarity = torch.nn.functional.cosine_similarity(states.to(query.dtype), query[None], dim=1)
    node = torch.zeros_like(first)
    cut = []
    for level in range(1, height + 1):
        width = 1 << (height - level)
        left, right = 2 * node, 2 * node + 1
        ends = [((child + 1) * width).minimum(count) - 1 for child in (left, right)]
        exists = right * width < count
        of_left, of_right = (similarity[(first + end).clamp(0, len(states) - 1)] for end in ends)
        takes_right = exists & (of_right > of_left)
        node, sibling = torch.where(takes_right, right, left), torch.where(takes_right, left, right)
        cut.append(torch.where(exists, (1 << level) + sibling, 0))
    cut.append((1 << height) + node)
    return torch.where((count > 0)[:, None], torch.stack(cut, dim=1), 0)
