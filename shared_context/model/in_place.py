"""Reading encodings where they lie: queries are turned instead of keys, and nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from shared_context.kernels import ChunkKV, Rotary, assemble, attention_with_lse

ROWS_PER_RUN, ROWS_PER_QUERY = 96, 5
"""Rows that could be copied and have their keys turned in the time that reading a run in place costs besides: for its
calls in every layer, and for each query, which is turned for every run anew. Estimated from times on two cores."""


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a chunk that are all moved by the same number of positions."""

    chunk: ChunkKV
    first: int
    end: int
    delta: int

    @property
    def length(self) -> int:
        """KV entries per layer."""
        return self.end - self.first


class EncodingsInPlace:
    """A part of a context, read from the encodings of its chunks as they are.

    Rotary attention depends on the distance of query and key only. So a key that is to be moved by delta, ``R(d) k``,
    scores with a query q as k itself does with ``R(-d) q``, and the queries of a question are far fewer than the keys
    of a context. Each run is attended to on its own, and the softmax over all is put together from their denominators.

    The encodings are kept alive as long as this object is, whatever the KV cache evicts meanwhile.

    Args:
        runs: the rows that are read, at least one; their chunks are in floating point and on a processor.
        rotary: of the layers; frequencies [rotary_dim / 2] alone, paired by halves, where all share them.
    """

    def __init__(self, runs: Sequence[Run], rotary: Rotary | torch.Tensor):
        self._runs = runs
        self._rotary = Rotary.of(rotary)
        self.columns = sum(run.length for run in runs)
        self.layers = runs[0].chunk.layers
        # By run and layer, [1, kv_heads, rows, head_dim] each.
        parts = [run.chunk.data[:, :, None, :, run.first : run.end] for run in runs]
        self._keys, self._values = ([kv[part].unbind(0) for kv in parts] for part in (0, 1))
        self._kinds = self._rotary.by_layer(self.layers)
        cos, sin = self._rotary.cos_sin(torch.tensor([run.delta for run in runs]), torch.device("cpu"))
        unturned = torch.ones(*cos.shape[:2], parts[0].shape[-1] - 2 * self._rotary.half)
        join = partial(torch.stack, dim=-1) if self._rotary.interleaved else partial(torch.cat, dim=-1)
        # By kind of layer, [runs, 1, 1, 1, head_dim] each.
        self._cos = torch.cat([join([cos, cos]).flatten(2), unturned], dim=-1)[:, :, None, None, None]
        self._sin = torch.cat([join([sin, -sin]).flatten(2), 0 * unturned], dim=-1)[:, :, None, None, None]
        self._memory: dict[str, torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        others: Sequence[tuple[torch.Tensor, torch.Tensor]],
        scaling: float | None,
    ) -> torch.Tensor:
        """Attention over the runs and over other parts of the context, in one softmax.

        Args:
            layer: number of the layer, one of the bottom M.
            query: [1, kv_heads, rows, head_dim], the query heads that share a KV head one behind the other. Runs are
                seen by every query.
            others: what the other parts gave, as :func:`~shared_context.kernels.joined` takes them.
            scaling: of the scores; None is ``head_dim ** -0.5``.

        Returns:
            [1, kv_heads, rows, head_dim].
        """
        attended = list(others)
        for asked, keys, values in zip(self._turned(query, layer).unbind(0), self._keys, self._values, strict=True):
            attended.append(attention_with_lse(asked, keys[layer], values[layer], scaling=scaling))
        outputs, logarithms = zip(*attended, strict=True)
        shares = torch.stack(logarithms).softmax(dim=0)
        weighted = self._scratch("weighted", (len(outputs), *query.shape), torch.float32)
        torch.stack(outputs, out=self._scratch("outputs", weighted.shape, query.dtype))
        return weighted.copy_(self._memory["outputs"]).mul_(shares[..., None]).sum(dim=0).to(query.dtype)

    def _turned(self, query: torch.Tensor, layer: int) -> torch.Tensor:
        """The queries as each run is to be asked, [runs, 1, kv_heads, rows, head_dim]; turned in float32."""
        kind, asked = self._kinds[layer], query.float()
        first, second = self._rotary.pairs(asked)
        rest = asked[..., 2 * self._rotary.half :]
        if self._rotary.interleaved:
            swapped = torch.cat([torch.stack([second, first], dim=-1).flatten(-2), rest], dim=-1)
        else:
            swapped = torch.cat([second, first, rest], dim=-1)
        exact = self._scratch("exact", (len(self._runs), *query.shape), torch.float32)
        torch.mul(asked, self._cos[kind], out=exact).addcmul_(swapped, self._sin[kind])
        return self._scratch("turned", exact.shape, query.dtype).copy_(exact)

    def _scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory for one layer, which the next one takes over: fresh memory costs a page fault every 4 KB."""
        kept = self._memory.get(name)
        if kept is None or kept.shape != torch.Size(shape):
            kept = self._memory[name] = torch.empty(shape, dtype=dtype)
        return kept

    def assemble(self, out: torch.Tensor) -> None:
        """Write all runs, their keys moved, into ``out``, [2, layers, kv_heads, columns, head_dim]."""
        rows = [torch.arange(run.first, run.end) for run in self._runs]
        deltas = [torch.full((run.length,), run.delta) for run in self._runs]
        assemble([run.chunk for run in self._runs], rows, deltas, self._rotary, out)


def split_runs(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    dtype: torch.dtype,
    queries: int,
) -> tuple[list[Run], tuple[list[ChunkKV], list[torch.Tensor], list[torch.Tensor]]]:
    """Parts rows into the runs that are worth reading in place, and all others.

    Rows of a coarser grain are each moved by another delta, int8 has to be unpacked, and short runs cost more than
    they save.

    Args:
        chunks, rows, deltas: as :func:`~shared_context.kernels.assemble` takes them.
        dtype: of the decoder.
        queries: how many tokens will attend to them.

    Returns:
        The runs; and chunks, rows and deltas of the rest.
    """
    shortest = ROWS_PER_RUN + ROWS_PER_QUERY * queries
    runs: list[Run] = []
    rest: tuple[list[ChunkKV], list[torch.Tensor], list[torch.Tensor]] = ([], [], [])
    for chunk, taken, delta in zip(chunks, rows, deltas, strict=True):
        left = np.ones(len(taken), dtype=bool)
        if chunk.data.dtype == dtype and chunk.data.device.type == "cpu":
            numbers, moves = taken.numpy(), delta.numpy()
            breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(moves) != 0)) + 1
            for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(taken)], strict=True):
                if end - start >= shortest:
                    runs.append(Run(chunk, int(numbers[start]), int(numbers[end - 1]) + 1, int(moves[start])))
                    left[start:end] = False
        if left.any():
            kept = torch.from_numpy(left)
            rest[0].append(chunk)
            rest[1].append(taken[kept])
            rest[2].append(delta[kept])
    return runs, rest
