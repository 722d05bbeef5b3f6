"""How much the model needs each key and value of a chunk: what a coarse grain keeps is chosen by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from shared_context.kernels import ChunkKV

METHOD = "repetition-2"
"""Names how importance is computed; another name stands for other numbers."""

REQUEST = "Repeat the text above."
"""What the model is asked for behind a chunk. To answer it needs everything the chunk says, whatever is asked later."""

OVERLAP = 8
"""Tokens before a later part of a repetition that are repeated with it, so that the model knows where it is."""

QUERIES = 96
"""Queries whose scores are in memory at a time: few enough for a processor's cache."""


class ImportanceScorer(NamedTuple):
    """A way to know importance.

    Attributes:
        method: names it; other methods give other numbers.
        score: from the token ids of chunks, their encodings and how many of their first tokens are their lead-in,
            importance of each, float16 [layers, kv_heads, tokens].
    """

    method: str
    score: Callable[[Sequence[torch.Tensor], Sequence[ChunkKV], int], list[torch.Tensor]]


class AllSeenError(Exception):
    """Ends a repetition once its last layer was observed: nobody asks for what it would say."""


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
        self._layers, self._first, self._rows = layers, first, rows
        self._largest: list[torch.Tensor | None] = [None] * layers

    @property
    def seen(self) -> int:
        """Rows in front of the repetition: those in front of the chunk and the chunk's own."""
        return self._first + self._rows

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        softcap: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's attention over what stands in front of the repetition, of which the shares are taken in.

        Args:
            layer: its number.
            query: [batch, kv_heads, queries, head_dim], of the repetition, the query heads that share a KV head one
                behind the other.
            key, value: [batch, kv_heads, seen, head_dim], those in front of the chunk and then the chunk's.
            mask: additive, [1, 1, queries, seen]; None where every query sees all of them.
            scaling: of the scores; None is ``head_dim ** -0.5``.
            softcap: scores x become ``softcap * tanh(x / softcap)`` before the mask; None leaves them.

        Returns:
            [batch, kv_heads, queries, head_dim], and the logarithm of each softmax's denominator, float32 [batch,
            kv_heads, queries].

        Raises:
            AllSeenError: this was the last layer of all.
        """
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        keys, values = key.flatten(0, 1).float().transpose(1, 2).contiguous(), value.flatten(0, 1)
        # Memory for one block, which the next one takes over: fresh memory costs a page fault every 4 KB.
        block = len(keys) * QUERIES * self.seen
        memory = [keys.new_empty(block, dtype=dtype) for dtype in (torch.float32, torch.float32, value.dtype)]
        largest = keys.new_zeros(len(keys), 1, self._rows)
        outputs, logarithms = [], []
        for asked in query.flatten(0, 1).split(QUERIES, dim=1):
            shape = (*asked.shape[:2], self.seen)
            scores, shares, rounded = (part[: math.prod(shape)].view(shape) for part in memory)
            torch.bmm(asked.float() * scale, keys, out=scores)
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            if mask is not None:
                scores += mask[0, :, len(outputs) * QUERIES :][:, : shape[1]]
            torch.softmax(scores, 2, out=shares)
            highest = scores.amax(dim=2)
            logarithms.append(highest - shares.amax(dim=2).log())
            outputs.append(rounded.copy_(shares) @ values)
            if mask is not None:  # a query that sees none of the keys pays nothing to any of them
                shares.masked_fill_((highest < torch.finfo(query.dtype).min / 2)[..., None], 0)
            largest = torch.maximum(largest, shares[..., self._first :].amax(dim=1, keepdim=True))
        largest = largest.view(*key.shape[:2], self._rows)
        known = self._largest[layer]
        self._largest[layer] = largest if known is None else torch.maximum(known, largest)
        if layer == self._layers - 1:
            raise AllSeenError
        return torch.cat(outputs, dim=1).view_as(query), torch.cat(logarithms, dim=1).view(query.shape[:3])

    def importance(self) -> list[torch.Tensor]:
        """Of each chunk's rows, float16 [layers, kv_heads, rows] on the processor, between 0 and 1."""
        return list(torch.stack(self._largest).to("cpu", torch.float16).unbind(1))


def parts_of_a_repetition(tokens: int, room: int) -> list[tuple[int, int]]:
    """Which tokens of a text are repeated at a time: all of them where they fit, else as few parts as will do.

    Args:
        tokens: of the text.
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
