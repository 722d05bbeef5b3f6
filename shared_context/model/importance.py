"""How much the model needs each key and value of a chunk: what a coarse grain keeps is chosen by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from shared_context.kernels import ChunkKV

METHOD = "repetition-3"
"""Names how importance is computed; another name stands for other numbers."""

REQUEST = "Repeat the text above."
"""What the model is asked for behind a chunk. To answer it needs everything the chunk says, whatever is asked later."""

OVERLAP = 8
"""Tokens before a later part of a repetition that are repeated with it, so that the model knows where it is."""

QUERIES = 96
"""Tokens of a repetition whose scores are in memory at a time: few enough for a processor's cache."""

ALIGNED = 16
"""Scores of a query are a multiple of this many, which products of matrices are faster with."""


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
    """Watches a repetition: a row is important if some queries take much from it, and if what they take is long.

    For each layer and KV head, the square root of the sum, over all queries of its heads, of the squared share of its
    attention that a query pays to the row, times the length of what the row's value adds to the hidden states behind
    the head's output projection. A query's shares of all that stands before the repetition add up to one. That a
    repetition is asked for, and its attention looked at, is KVzip's idea (arXiv 2505.23416), that the length counts
    CriticalKV's (arXiv 2502.03805). Hand it to a forward pass as ``observer``.

    Args:
        layers: M.
        first: rows in front that are attended to and are not of the chunks.
        rows: of each chunk.
        by_length: let the length count; not of models whose layers bring what is added to a length of their own.

    Attributes:
        passed_over: queries at the beginning of what is repeated next that do not count, for they did before.
    """

    def __init__(self, layers: int, first: int, rows: int, *, by_length: bool = True):
        self._layers, self._first, self._rows, self._by_length = layers, first, rows, by_length
        self._squares: list[torch.Tensor | None] = [None] * layers
        self.passed_over = 0

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
        mask: torch.Tensor | None = None,
        scaling: float | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        output: nn.Module | None = None,
    ) -> torch.Tensor:
        """One layer's attention of the repetition, whose shares of what stands in front are taken in on the way.

        Args:
            layer: its number.
            query: [batch, heads, tokens, head_dim], of the repetition.
            key, value: [batch, kv_heads, seen + tokens, head_dim]: those in front of the chunk, the chunk's and those
                of the repetition, each token of which sees all in front of it.
            mask: additive, [tokens, seen + tokens], of layers in which a token sees less; None elsewhere.
            scaling: of the scores; None is ``head_dim ** -0.5``.
            softcap: scores x become ``softcap * tanh(x / softcap)`` before the mask; None leaves them.
            sinks: a logit for each head [heads], which takes a share of the softmax and gives nothing.
            output: the projection behind attention, of all heads side by side; None where it is not known, and what
                values add is taken to be as long as they are.

        Returns:
            As ``query``.

        Raises:
            AllSeenError: this was the last layer of all.
        """
        batch, heads, tokens, head_dim = query.shape
        kv_heads, seen, last = key.shape[1], self.seen, layer == self._layers - 1
        group, scale = heads // kv_heads, head_dim**-0.5 if scaling is None else scaling
        # What the repetition says in the last layer is nobody's concern. Else one column more, for sinks.
        columns = seen if last else _aligned(seen + tokens + 1)
        # Products in bfloat16 are rounded as in transformers' own attention, and cost half; the rest is float32.
        product = torch.bfloat16 if query.dtype == torch.bfloat16 else torch.float32
        keys = query.new_zeros(batch * kv_heads, head_dim, columns, dtype=product)
        values = value.new_zeros(batch * kv_heads, columns, head_dim)
        there = min(columns, seen + tokens)
        keys[..., :there], values[:, :there] = key.flatten(0, 1)[:, :there].mT, value.flatten(0, 1)[:, :there]
        # By token and then by head, so that some tokens lie together.
        by_token = query.reshape(batch * kv_heads, group, tokens, head_dim).transpose(1, 2)
        asked = (by_token.float() * scale).to(product).contiguous()
        said = torch.empty_like(asked, dtype=query.dtype)
        squares = keys.new_zeros(batch * kv_heads, group, self._rows, dtype=torch.float32)
        # Memory for one block, which the next one takes over: fresh memory costs a page fault every 4 KB.
        together = 1 if keys.device.type == "cpu" else len(keys)
        block = together * group * min(QUERIES, tokens) * columns
        memory = keys.new_empty(block, dtype=torch.float32)
        rounded = memory if value.dtype == memory.dtype else value.new_empty(block)
        for begin in range(0, tokens, QUERIES):
            end = min(begin + QUERIES, tokens)
            width = columns if last else min(columns, _aligned(seen + end + 1))
            hidden = None if last else keys.new_full((end - begin, width - seen - begin), -torch.inf).triu(1)
            for first in range(0, len(keys), together):
                here = slice(first, first + together)
                shape = (together, end - begin, group, width)
                scores = memory[: math.prod(shape)].view(together, -1, width)
                shares = rounded[: math.prod(shape)].view_as(scores)
                products = shares if product == shares.dtype else scores
                torch.bmm(asked[here, begin:end].flatten(1, 2), keys[here, :, :width], out=products)
                if products.dtype != scores.dtype:
                    scores.copy_(products)
                by_head = scores.view(shape)
                if softcap is not None:
                    scores.div_(softcap).tanh_().mul_(softcap)
                if mask is not None:
                    by_head[..., : mask.shape[1]] += mask[begin:end, None, :width]
                if hidden is not None:
                    by_head[..., seen + begin :] += hidden[:, None]
                if sinks is not None and not last:
                    by_head[..., -1] = sinks.float().view(kv_heads, 1, group).repeat(batch, 1, 1)[here]
                torch.softmax(scores, 2, out=scores)
                if not last:
                    if sinks is not None:
                        by_head[..., -1] = 0
                    if shares.dtype != scores.dtype:
                        shares.copy_(scores)
                    torch.bmm(shares, values[here, :width], out=said[here, begin:end].flatten(1, 2))
                # Of a query that sees nothing in front, which only windows make, all shares are none.
                in_front = scores[..., :seen].sum(dim=2, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
                scores[..., self._first : seen].div_(in_front)
                counted = by_head[:, max(0, self.passed_over - begin) :, :, self._first : seen]
                # In place, and no norm: that takes a processor ten times as long along this dimension.
                squares[here] += counted.square_().sum(dim=1)
        squares = squares.view(batch, kv_heads, group, self._rows)
        if self._by_length:
            squares = squares * lengths_added(value[:, :, self._first : seen], heads, output)
        squares = squares.sum(dim=2)
        known = self._squares[layer]
        self._squares[layer] = squares if known is None else known + squares
        if last:
            raise AllSeenError
        return said.transpose(1, 2).reshape(query.shape)

    def importance(self) -> list[torch.Tensor]:
        """Of each chunk's rows, float16 [layers, kv_heads, rows] on the processor, 1 for the most important."""
        scores = torch.stack(cast("list[torch.Tensor]", self._squares)).sqrt_()  # all layers have been seen
        # Against the largest, so that float16 holds it whatever lengths a model deals in.
        most = scores.amax(dim=(0, 2, 3), keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        return list((scores / most).to("cpu", torch.float16).unbind(1))


def lengths_added(values: torch.Tensor, heads: int, output: nn.Module | None) -> torch.Tensor:
    """How long the vectors are that heads would add to the hidden states for each of some values alone.

    Args:
        values: [batch, kv_heads, rows, head_dim].
        heads: of the queries, several to a KV head.
        output: the projection behind attention, of all heads side by side; None leaves values as they are.

    Returns:
        float32 [batch, kv_heads, heads per KV head, rows].
    """
    batch, kv_heads, rows, head_dim = values.shape
    values = values.float()
    if output is None:
        return values.norm(dim=-1)[:, :, None].expand(batch, kv_heads, heads // kv_heads, rows)
    by_head = _weight(output, heads * head_dim).float().unflatten(1, (heads, head_dim)).transpose(0, 1)
    products = (by_head.mT @ by_head).view(kv_heads, heads // kv_heads, head_dim, head_dim)
    squares = ((values[:, :, None] @ products) * values[:, :, None]).sum(dim=-1)
    return squares.clamp_(min=0).sqrt_()


def _weight(projection: nn.Module, columns: int) -> torch.Tensor:
    """The matrix of a projection, [out, columns], as it works: also where it is quantised or something is added."""
    weight = getattr(projection, "weight", None)
    if type(projection) is nn.Linear and type(weight) is nn.Parameter and not projection._forward_hooks:
        return weight
    dtype = weight.dtype if weight is not None and weight.is_floating_point() else torch.float32
    device = weight.device if weight is not None else None
    inputs = torch.eye(columns + 1, columns, dtype=dtype, device=device)
    # The last input is nothing: what comes of it is a bias.
    *_, bias = outputs = projection(inputs)
    return (outputs[:-1] - bias).mT


def _aligned(columns: int) -> int:
    return -(-columns // ALIGNED) * ALIGNED


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
