"""How much the model needs each key and value of a chunk: what a coarse grain keeps is chosen by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from shared_context.kernels import ChunkKV

METHOD = "repetition-1"
"""Names how importance is computed; another name stands for other numbers."""

REQUEST = "Repeat the text above."
"""What the model is asked for behind a chunk. To answer it needs everything the chunk says, whatever is asked later."""

OVERLAP = 8
"""Tokens before a later part of a repetition that are repeated with it, so that the model knows where it is."""

QUERIES = 256
"""Queries whose scores are in memory at a time."""


class ImportanceScorer(NamedTuple):
    """A way to know importance.

    Attributes:
        method: names it; other methods give other numbers.
        score: from the token ids of chunks and their encodings, importance of each, float16 [layers, kv_heads, tokens].
    """

    method: str
    score: Callable[[Sequence[torch.Tensor], Sequence[ChunkKV]], list[torch.Tensor]]


class ImportanceObserver:
    """Watches a repetition: a row is as important as the most interested query finds it.

    For each layer and KV head, the largest share of its attention that any query of the repetition pays to a row,
    where a query's shares of all that stands before the repetition add up to one. The idea is KVzip's (arXiv
    2505.23416), which is also where asking for a repetition comes from. Hand it to a forward pass as ``observer``.

    Args:
        layers: M.
        first: rows in front that are attended to and are not of the chunks.
        rows: of each chunk.
    """

    def __init__(self, layers: int, first: int, rows: int):
        self._first, self._rows = first, rows
        self._largest: list[torch.Tensor | None] = [None] * layers

    @property
    def seen(self) -> int:
        """Rows in front of the repetition: those in front of the chunk and the chunk's own."""
        return self._first + self._rows

    def see(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        lse: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        softcap: float | None = None,
    ) -> None:
        """Take in what one layer asks.

        Args:
            layer: its number.
            query: [batch, kv_heads, queries, head_dim], of the repetition, the query heads that share a KV head one
                behind the other.
            key: [batch, kv_heads, seen, head_dim], those in front of the chunk and then the chunk's.
            lse: logarithm of each softmax's denominator over these keys, float32 [batch, kv_heads, queries].
            mask: additive, [1, 1, queries, seen]; None where every query sees all of them.
            scaling: of the scores; None is ``head_dim ** -0.5``.
            softcap: scores x become ``softcap * tanh(x / softcap)`` before the mask; None leaves them.
        """
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        batch, kv_heads, queries, head_dim = query.shape
        keys = key[:, :, self._first :].flatten(0, 1).float().transpose(1, 2)
        # A query that sees none of the keys pays nothing to any of them.
        less = torch.where(lse < torch.finfo(query.dtype).min / 2, torch.inf, lse).flatten(0, 1)[..., None]
        largest = keys.new_full((batch * kv_heads, 1, self._rows), -torch.inf)
        for begin in range(0, queries, QUERIES):
            part = slice(begin, begin + QUERIES)
            # The largest share's logarithm: one exponential for each row instead of one for each query and row.
            asked = query[:, :, part].flatten(0, 1).float()
            if softcap is None:
                scores = torch.baddbmm(-less[:, part], asked, keys, alpha=scale)
            else:
                scores = (asked @ keys).mul_(scale / softcap).tanh_().mul_(softcap).sub_(less[:, part])
            if mask is not None:
                scores += mask[0, :, part, self._first :]
            largest = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        largest = largest.view(batch, kv_heads, self._rows)
        known = self._largest[layer]
        self._largest[layer] = largest if known is None else torch.maximum(known, largest)

    def importance(self) -> list[torch.Tensor]:
        """Of each chunk's rows, float16 [layers, kv_heads, rows] on the processor, between 0 and 1."""
        return list(torch.stack(self._largest).exp_().to("cpu", torch.float16).unbind(1))


def parts_of_a_repetition(tokens: int, room: int) -> list[tuple[int, int]]:
    """Which tokens of a chunk are repeated at a time: all of them where they fit, else as few parts as will do.

    Args:
        tokens: of the chunk.
        room: tokens that a part may have, more than OVERLAP.

    Returns:
        First token of each part and the one behind its last.
    """
    if tokens <= room:
        return [(0, tokens)]
    step = room - OVERLAP
    return [(max(0, begin - OVERLAP), min(begin + step, tokens)) for begin in range(0, tokens, step)]


def of_equal_length(chunks: Sequence[torch.Tensor]) -> list[list[int]]:
    """Numbers of the chunks that need no padding to run as one batch."""
    groups: dict[int, list[int]] = {}
    for number, chunk in enumerate(chunks):
        groups.setdefault(len(chunk), []).append(number)
    return list(groups.values())
