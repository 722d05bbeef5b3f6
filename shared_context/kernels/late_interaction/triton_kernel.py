"""Late interaction on a GPU: every leaf's codes are read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shared_context.kernels.late_interaction.naive import weighted
from shared_context.kernels.launch import on_device

MAX_WORDS = 64
"""Query tokens of one program; a longer query is scored in parts, whose scores are added."""

MAX_TOKENS = 128
"""Tokens of a leaf that are compared at a time."""

LEAVES = 8
"""Leaves of one program, so that its query is unpacked once for all of them and their loads overlap."""


@triton.jit
def _look(
    high,
    low,
    best,
    undefined,
    codes,
    scales,
    here,
    tokens,
    code_size,
    codes_token,
    codes_code,
    scales_token,
    CODE: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    DOT: tl.constexpr,
):
    """The best similarity so far of each word, after the leaf's tokens ``here``, and which words met a NaN."""
    code = tl.arange(0, CODE)
    within = here < tokens
    tile = tl.load(
        codes + here[None, :] * codes_token + code[:, None] * codes_code,
        mask=within[None, :] & (code < code_size)[:, None],
        other=0,
    ).to(DOT)
    similarity = tl.dot(high, tile)
    similarity = tl.dot(low, tile, similarity)
    if HAS_SCALES:
        scale = tl.load(scales + here * scales_token, mask=within, other=0.0)
        similarity *= scale.to(tl.float32)[None, :]
    undefined |= tl.max((similarity != similarity).to(tl.int32), axis=1)  # a maximum drops NaN
    similarity = tl.where(within[None, :], similarity, float("-inf"))
    return tl.maximum(best, tl.max(similarity, axis=1)), undefined


@triton.jit
def leaf_scores_kernel(
    query,  # float32 [queries, words, code_size], contiguous
    weights,  # float32 [queries, words], contiguous
    codes,  # int8 or bfloat16 [all_leaves, leaf_size, code_size]
    scales,  # [all_leaves, leaf_size]; not read without HAS_SCALES
    leaves,  # int64 [count], contiguous; not read without HAS_LEAVES
    out,  # float32 [queries, count], or with PER_WORD [queries, words, count], contiguous
    queries,
    words,
    count,
    leaf_size,
    code_size,
    codes_leaf,
    codes_token,
    codes_code,
    scales_leaf,
    scales_token,
    WORDS: tl.constexpr,
    TOKENS: tl.constexpr,
    CODE: tl.constexpr,
    LEAVES: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_LEAVES: tl.constexpr,
    PER_WORD: tl.constexpr,
    DOT: tl.constexpr,
):
    """Scores of LEAVES leaves for one query; ONE_BLOCK where a leaf has no more than TOKENS tokens.

    With PER_WORD, which has no weights, each word's best similarity instead of their sum.

    Queries run fastest over the grid: programs that are in flight together read the same codes, all but the first
    from the cache. The query is split into two bfloat16 that add up to 16 bits of it, so that the tensor cores
    multiply what is exact in bfloat16 (int8 codes are) and the error stays below 2**-16 of the norms' product.
    """
    program = tl.program_id(0)
    row = program % queries
    first = program // queries * LEAVES
    word, token, code = tl.arange(0, WORDS), tl.arange(0, TOKENS), tl.arange(0, CODE)
    at = query + (row * words + word[:, None]) * code_size + code[None, :]
    exact = tl.load(at, mask=(word < words)[:, None] & (code < code_size)[None, :], other=0.0)
    if not PER_WORD:
        weight = tl.load(weights + row * words + word, mask=word < words, other=0.0)
    high = exact.to(tl.bfloat16)
    low = (exact - high.to(tl.float32)).to(tl.bfloat16).to(DOT)
    high = high.to(DOT)
    for i in range(LEAVES):
        place = first + i
        inside = place < count
        leaf = place.to(tl.int64)
        if HAS_LEAVES:
            leaf = tl.load(leaves + place, mask=inside, other=0)
        tokens = tl.where(inside, leaf_size, 0)
        of_leaf = codes + leaf * codes_leaf
        scale_of_leaf = scales + leaf * scales_leaf
        best = tl.full([WORDS], float("-inf"), tl.float32)
        undefined = tl.full([WORDS], 0, tl.int32)
        if ONE_BLOCK:  # then the loop over leaves is the innermost, whose loads Triton overlaps
            best, undefined = _look(
                high, low, best, undefined, of_leaf, scale_of_leaf, token, tokens, code_size,
                codes_token, codes_code, scales_token, CODE, HAS_SCALES, DOT,
            )  # fmt: skip
        else:
            for start in range(0, leaf_size, TOKENS):
                best, undefined = _look(
                    high, low, best, undefined, of_leaf, scale_of_leaf, start + token, tokens, code_size,
                    codes_token, codes_code, scales_token, CODE, HAS_SCALES, DOT,
                )  # fmt: skip
        best = tl.where(undefined > 0, float("nan"), best)
        if PER_WORD:
            at_word = (row.to(tl.int64) * words + word) * count
            tl.store(out + at_word + place, best, mask=word < tl.where(inside, words, 0))
        else:
            tl.store(out + row.to(tl.int64) * count + place, tl.sum(best * weight, axis=0), mask=inside)


def leaf_scores_triton(
    query: torch.Tensor,
    weights: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    leaves: torch.Tensor | None,
    adjacent: torch.Tensor | None,
) -> torch.Tensor:
    """Scores float32 [queries, leaves]; query [queries, words, code_size], weights [queries, words], nothing empty.

    The arguments are otherwise those of :func:`~shared_context.kernels.late_interaction_scores`. Neighbours are in
    other programs, so with ``adjacent`` the kernel writes what each word found, and the sum comes behind it.
    """
    many, words = weights.shape
    parts = triton.cdiv(words, MAX_WORDS)
    if parts > 1:
        query = _in_parts(query, parts)
    if adjacent is not None:
        best = _launch(query, None, codes, scales, leaves)
        return weighted(best.view(many, -1, best.shape[-1])[:, :words], weights, adjacent)
    scores = _launch(query, _in_parts(weights, parts) if parts > 1 else weights, codes, scales, leaves)
    return scores.view(many, parts, -1).sum(dim=1) if parts > 1 else scores


def _in_parts(words: torch.Tensor, parts: int) -> torch.Tensor:
    """[queries, words, ...] with zeros at the end, cut into [queries * parts, MAX_WORDS, ...]."""
    padded = words.new_zeros((len(words), parts * MAX_WORDS, *words.shape[2:]))
    padded[:, : words.shape[1]] = words
    return padded.view(-1, MAX_WORDS, *words.shape[2:])


def _launch(
    query: torch.Tensor,
    weights: torch.Tensor | None,
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    leaves: torch.Tensor | None,
) -> torch.Tensor:
    """Scores [queries, leaves], or without weights the best similarities [queries, words, leaves]."""
    queries, words, code_size = query.shape
    count, leaf_size = len(codes) if leaves is None else len(leaves), codes.shape[1]
    shape = (queries, words, count) if weights is None else (queries, count)
    out = torch.empty(shape, dtype=torch.float32, device=codes.device)
    with on_device(codes):
        leaf_scores_kernel[(triton.cdiv(count, LEAVES) * queries,)](
            query.contiguous(),
            query if weights is None else weights.contiguous(),
            codes,
            codes if scales is None else scales,
            codes if leaves is None else leaves.contiguous(),
            out,
            queries,
            words,
            count,
            leaf_size,
            code_size,
            *codes.stride(),
            *((0, 0) if scales is None else scales.stride()),
            WORDS=max(16, triton.next_power_of_2(words)),
            TOKENS=max(16, min(MAX_TOKENS, triton.next_power_of_2(leaf_size))),
            CODE=max(16, triton.next_power_of_2(code_size)),
            LEAVES=LEAVES,
            ONE_BLOCK=leaf_size <= MAX_TOKENS,
            HAS_SCALES=scales is not None,
            HAS_LEAVES=leaves is not None,
            PER_WORD=weights is None,
            # the interpreter multiplies the bits of bfloat16 as if they were integers
            DOT=tl.bfloat16 if codes.device.type == "cuda" else tl.float32,
            num_warps=4,
            num_stages=3,
        )
    return out


@triton.jit
def node_scores_kernel(
    leaf_scores,  # float32 [chunks, 2**HEIGHT], contiguous
    out,  # float32 [chunks, 2**(HEIGHT + 1) - 1], contiguous
    chunks,
    HEIGHT: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """All levels of CHUNKS trees, each from the one below, in registers."""
    chunk = (tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)).to(tl.int64)[:, None]
    nodes: tl.constexpr = 2 ** (HEIGHT + 1) - 1
    leaf = tl.arange(0, 2**HEIGHT)[None, :]
    level = tl.load(leaf_scores + chunk * 2**HEIGHT + leaf, mask=chunk < chunks, other=0.0)
    tl.store(out + chunk * nodes + (2**HEIGHT - 1) + leaf, level, mask=chunk < chunks)
    for below in tl.static_range(HEIGHT):
        left, right = tl.split(tl.reshape(level, (CHUNKS, 2 ** (HEIGHT - below - 1), 2)))
        level = tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)
        node = tl.arange(0, 2 ** (HEIGHT - below - 1))[None, :]
        tl.store(out + chunk * nodes + (2 ** (HEIGHT - below - 1) - 1) + node, level, mask=chunk < chunks)


def node_scores_triton(leaf_scores: torch.Tensor) -> torch.Tensor:
    """What :func:`~shared_context.kernels.node_scores` does in one launch; nothing empty."""
    chunks, leaves = leaf_scores.shape
    out = torch.empty((chunks, 2 * leaves - 1), dtype=torch.float32, device=leaf_scores.device)
    block = max(1, 512 // leaves)
    with on_device(leaf_scores):
        node_scores_kernel[(triton.cdiv(chunks, block),)](
            leaf_scores.float().contiguous(),
            out,
            chunks,
            HEIGHT=leaves.bit_length() - 1,
            CHUNKS=triton.next_power_of_2(block),
        )
    return out
