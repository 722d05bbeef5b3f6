"""Late interaction: every query token looks for its most similar token in a leaf."""

from __future__ import annotations

import torch

from shared_context.kernels.late_interaction.naive import (
    late_interaction_scores_naive,
    node_scores_naive,
    weighted,
    widened,
)
from shared_context.kernels.launch import or_pytorch, triton_serves

BLOCK_TOKENS = 1 << 13
"""Tokens scored at a time by each thread of a processor.

Unpacked to float32 they about fit a core's cache; fewer would make the threads wait for each other more often, which
costs most where other programs keep the cores busy.
"""


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
    query: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    *,
    leaves: torch.Tensor | None = None,
    adjacent: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score of each leaf: ``sum_q weights[q] * max_t <query[q], codes[leaf, t]> * scales[leaf, t]``.

    With ``adjacent``, the same sum is added in which ``t`` runs over the tokens of the leaf and of its neighbours.

    One pass over the codes, which are not copied; the similarities are never all in memory. Triton on CUDA and HIP
    for int8 and bfloat16 codes, blocks of leaves in PyTorch elsewhere; under ``torch.compile`` the formula itself.

    Args:
        query: codes of the query's tokens, float32 [query_tokens, code_size], or [queries, query_tokens, code_size]
            for many at a time (shorter ones padded with any token of weight 0).
        weights: weight of each query token, float32, the shape of ``query`` without its last axis.
        codes: int8, bfloat16, float16 or float32 [all_leaves, leaf_size, code_size], on the device of ``query``; a
            leaf with fewer tokens repeats its last one, which leaves the maximum as it is.
        scales: float16 or float32 [all_leaves, leaf_size]; None is 1 everywhere.
        leaves: rows of ``codes`` to score, int64 [leaves], in any order; None scores all.
        adjacent: whether the leaf scored at place ``i + 1`` is a neighbour of that at place ``i``, bool [leaves - 1],
            on the device of ``query``; None scores every leaf alone.

    Returns:
        float32 [leaves] or [queries, leaves]. A score is NaN where its formula meets a NaN, whatever other leaves
        hold; infinite codes or queries may give NaN instead of infinity.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check(query, weights, codes, scales, leaves, adjacent)
    if torch.compiler.is_compiling():
        return late_interaction_scores_naive(query, weights, codes, scales, leaves=leaves, adjacent=adjacent)
    count = len(codes) if leaves is None else len(leaves)
    many, code_size = query.unsqueeze(0) if query.ndim == 2 else query, query.shape[-1]
    if 0 in (count, many.shape[0], many.shape[1], code_size):
        scores = torch.zeros((len(many), count), device=codes.device)
    else:
        scores = _scores(many.float(), weights.view(many.shape[:2]).float(), codes, scales, leaves, adjacent)
    return scores[0] if query.ndim == 2 else scores


def _scores(
    query: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    leaves: torch.Tensor | None,
    adjacent: torch.Tensor | None,
) -> torch.Tensor:
    """Scores [queries, leaves], where nothing is empty."""
    if codes.dtype in (torch.int8, torch.bfloat16) and triton_serves(codes):
        with or_pytorch():
            from shared_context.kernels.late_interaction.triton_kernel import leaf_scores_triton

            return leaf_scores_triton(query, weights, codes, scales, leaves, adjacent)
    best = _blockwise(query, codes, scales, leaves)
    return weighted(best if adjacent is None else _with_neighbours(best, adjacent), weights, None)


def node_scores(leaf_scores: torch.Tensor) -> torch.Tensor:
    """Scores of all nodes from those of the leaves: an inner node is as good as its best leaf.

    Args:
        leaf_scores: float32 [chunks, 2**height]; minus infinity where there is no leaf.

    Returns:
        float32 [chunks, 2**(height + 1) - 1], level by level, root first: node ``(w, k)`` is at ``2**w - 1 + k``.
        NaN where a leaf below is NaN.
    """
    if leaf_scores.numel() and triton_serves(leaf_scores):
        with or_pytorch():
            from shared_context.kernels.late_interaction.triton_kernel import node_scores_triton

            return node_scores_triton(leaf_scores)
    return node_scores_naive(leaf_scores)


def _check(
    query: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    leaves: torch.Tensor | None,
    adjacent: torch.Tensor | None,
) -> None:
    scored = leaves if leaves is not None else codes
    fits = (
        query.ndim in (2, 3)
        and weights.shape == query.shape[:-1]
        and codes.ndim == 3
        and codes.shape[1] > 0
        and codes.shape[2] == query.shape[-1]
        and (scales is None or scales.shape == codes.shape[:2])
        and (leaves is None or leaves.ndim == 1)
        and (adjacent is None or adjacent.shape == (max(0, len(scored) - 1),))
    )
    if not fits:
        given = (tuple(x.shape) if x is not None else None for x in (query, weights, codes, scales, leaves, adjacent))
        raise ValueError(
            "query {}, weights {}, codes {}, scales {}, leaves {}, adjacent {}: expected [(queries,) words, size], "
            "[(queries,) words], [all, leaf_size, size], [all, leaf_size], [leaves] and [leaves - 1]".format(*given)
        )


def _with_neighbours(best: torch.Tensor, adjacent: torch.Tensor) -> torch.Tensor:
    """What each leaf has and what it has together with its neighbours, added; a block of leaves after the other.

    Arguments are those of :func:`~shared_context.kernels.late_interaction.naive.widened`.
    """
    count, both = best.shape[-1], torch.empty_like(best)
    for start in range(0, count, BLOCK_TOKENS):
        end = min(start + BLOCK_TOKENS, count)
        first, last = max(start - 1, 0), min(end + 1, count)
        wide = widened(best[..., first:last], adjacent[first : last - 1])
        torch.add(best[..., start:end], wide[..., start - first : end - first], out=both[..., start:end])
    return both


def _blockwise(
    query: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor | None, leaves: torch.Tensor | None
) -> torch.Tensor:
    """The best similarities [queries, words, leaves], a block of leaves after the other, in the same memory.

    Similarities stand as [words, tokens], not transposed: a leaf's tokens then lie side by side, and the maximum over
    them is read once, in order. Buffers are made once, because fresh memory costs a page fault every 4 KB.
    """
    queries, words, code_size = query.shape
    leaf_size = codes.shape[1]
    count = len(codes) if leaves is None else len(leaves)
    block = min(max(1, BLOCK_TOKENS * torch.get_num_threads() // leaf_size), count)
    flat = query.reshape(queries * words, code_size)
    tokens = codes.new_empty((block * leaf_size, code_size), dtype=torch.float32)
    similarity = codes.new_empty(len(flat) * block * leaf_size, dtype=torch.float32)
    best = codes.new_empty((len(flat), count), dtype=torch.float32)
    chosen = codes.new_empty((0 if leaves is None else block, *codes.shape[1:]))
    for start in range(0, count, block):
        end = min(start + block, count)
        size = end - start
        taken = slice(start, end) if leaves is None else leaves[start:end]
        packed = codes[taken] if isinstance(taken, slice) else torch.index_select(codes, 0, taken, out=chosen[:size])
        unpacked = tokens[: size * leaf_size]
        unpacked.view(size, leaf_size, code_size).copy_(packed)
        found = similarity[: len(flat) * size * leaf_size].view(len(flat), size * leaf_size)
        torch.mm(flat, unpacked.T, out=found)
        found = found.view(len(flat), size, leaf_size)
        if scales is not None:
            found.mul_(scales[taken].float())
        torch.amax(found, dim=2, out=best[:, start:end])
    return best.view(queries, words, count)
