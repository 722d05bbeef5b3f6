"""Late interaction: every query token looks for its most similar token in a leaf."""

from __future__ import annotations

import torch

BLOCK_LEAVES = 512
"""Leaves scored at a time, so that what is unpacked from int8 stays in the processor's cache."""


def quantize_codes(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes with one scale per token.

    Args:
        codes: [..., code_size], any float dtype.

    Returns:
        int8 [..., code_size] and float16 scales [...], so that ``codes ~ int8 * scale``.
    """
    scale = (codes.float().abs().amax(dim=-1) / 127).clamp(min=torch.finfo(torch.float16).tiny).half()
    return (codes.float() / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def late_interaction_scores(
    query: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Score of each leaf: ``sum_q weights[q] * max_t <query[q], codes[leaf, t]> * scales[leaf, t]``.

    Args:
        query: codes of the query's tokens, float32 [query_tokens, code_size], rows of unit length.
        weights: weight of each query token, float32 [query_tokens].
        codes: int8 [leaves, leaf_size, code_size]; a leaf with fewer tokens repeats its last one, which leaves the
            maximum as it is.
        scales: float16 [leaves, leaf_size].

    Returns:
        float32 [leaves].
    """
    leaves, leaf_size, code_size = codes.shape
    scores = torch.empty(leaves)
    for start in range(0, leaves, BLOCK_LEAVES):
        block = slice(start, min(start + BLOCK_LEAVES, leaves))
        tokens = codes[block].reshape(-1, code_size).float()
        similarity = (tokens @ query.T) * scales[block].reshape(-1, 1).float()
        scores[block] = similarity.view(-1, leaf_size, len(query)).amax(dim=1) @ weights
    return scores
