"""Putting the ragged rows of many chunks together, their keys moved: a context that every head reads other rows of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from shared_context.kernels.kv_assembly.ragged_kv import RaggedKV
from shared_context.kernels.kv_assembly.reference import rotate_keys
from shared_context.kernels.kv_assembly.rotary import Rotary

BLOCK_ROWS = 2048
"""Rows turned at a time on a processor, so that what is computed in float32 stays in a core's cache."""


@dataclass(frozen=True, eq=False)
class RaggedContext:
    """The ragged rows of a batch's contexts as attention reads them.

    Attributes:
        keys, values: [rows, head_dim]; rows lie by layer, then by row of the batch, then by head.
        starts: first row of each head, int64 [layers, batch, kv_heads].
        counts: rows of each head, int64 [layers, batch, kv_heads].
        positions: where each row stands, int64 [rows]; None where no one asked for it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def layers(self) -> int:
        """Number of layers, the lowest first."""
        return self.counts.shape[0]


def assemble_ragged(
    batch: Sequence[Sequence[RaggedKV]],
    deltas: Sequence[Sequence[torch.Tensor]],
    rotary: Rotary | torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    targets: Sequence[Sequence[torch.Tensor]] | None = None,
    allocate: Callable[..., torch.Tensor] = torch.empty,
) -> RaggedContext | None:
    """Gather the rows of each head from all parts of its context, keys turned to their new positions.

    Args:
        batch: for each row of the batch the parts of its context, of one model.
        deltas: for each part the positions to move each of its rows by, [rows].
        rotary: of the layers; frequencies [rotary_dim / 2] alone, paired by halves, where all share them.
        dtype, device: of what is made.
        targets: for each part the positions that its rows come to stand at, [rows]; None where no one asks for them.
        allocate: gives the memory for keys and values, as torch.empty does.

    Returns:
        None where no row has any part.
    """
    shape = next((part.counts.shape for parts in batch for part in parts), None)
    if shape is None:
        return None
    layers, kv_heads = shape
    head_dim = next(part.data.shape[2] for parts in batch for part in parts)
    most = max(part.data.shape[1] for parts in batch for part in parts)
    block = min(most, BLOCK_ROWS) if device.type == "cpu" else most
    turning = _Turning(Rotary.of(rotary), [delta for of_row in deltas for delta in of_row], head_dim, block, device)
    counts = torch.zeros(layers, len(batch), kv_heads, dtype=torch.int64)
    # For each row of the batch and each part, keys, values and places, head by head.
    pieces: list[list[list[tuple[torch.Tensor, ...]]]] = []
    for row, parts in enumerate(batch):
        pieces.append([])
        for number, part in enumerate(parts):
            of_heads = part.counts.cpu()
            counts[:, row] += of_heads
            data = part.dequantized(dtype).data.to(device)
            rows = [turning.turned(data[0], part, deltas[row][number]), data[1]]
            rows += [] if targets is None else [targets[row][number].to(device)]
            pieces[-1].append([of.split(of_heads.flatten().tolist()) for of in rows])
    total = int(counts.sum())
    gathered = list(allocate((2, total, head_dim), dtype=dtype, device=device))
    gathered += [] if targets is None else [torch.empty(total, dtype=torch.int64, device=device)]
    heads = [
        (row, layer * kv_heads + head)
        for layer in range(layers)
        for row in range(len(batch))
        for head in range(kv_heads)
    ]
    for kind, out in enumerate(gathered):
        torch.cat([part[kind][head] for row, head in heads for part in pieces[row]], out=out)
    starts = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
    return RaggedContext(gathered[0], gathered[1], starts, counts, None if targets is None else gathered[2])


class _Turning:
    """Turns keys in float32, a block after the other in the same memory: fresh memory costs a page fault every 4 KB."""

    def __init__(self, rotary: Rotary, deltas: Sequence[torch.Tensor], head_dim: int, block: int, device: torch.device):
        self._rotary, self._block = rotary.of_layer(0) if rotary.uniform else rotary, block
        # Cosines take time, and rows of all layers, heads and parts are moved by much the same.
        moved_by = torch.cat([delta.cpu().long() for delta in deltas])
        self._least = int(moved_by.min()) if len(moved_by) else 0
        there = torch.bincount(moved_by - self._least) > 0
        self._place, self._distinct = there.cumsum(0) - 1, int(there.sum())
        angles = self._rotary.cos_sin(self._least + there.nonzero()[:, 0], torch.device("cpu"))
        # Cosines and sines side by side, [kinds of layers * distinct, 2 * half].
        self._table = torch.cat(angles, dim=-1).flatten(0, 1).to(device)
        self._turned, self._angles, self._before = (
            torch.empty((block, width), device=device) for width in (head_dim, 2 * rotary.half, rotary.half)
        )

    def turned(self, keys: torch.Tensor, part: RaggedKV, delta: torch.Tensor) -> torch.Tensor:
        """The keys of a part, [rows, head_dim], moved by so many positions each, [rows]."""
        if self._rotary.uniform and len(delta) and (delta == delta[0]).all():
            # All by the same: no angles have to be gathered, which are as much memory as the keys.
            table, index = self._table[self._place[delta[0].cpu().long() - self._least]][None], None
        else:
            table, index = self._table, self._place[delta.cpu().long() - self._least]
            if not self._rotary.uniform:
                kind = torch.tensor(self._rotary.by_layer(len(part.counts)))
                index = index + self._distinct * kind.repeat_interleave(part.counts.sum(dim=1).cpu())
            index = index.to(keys.device)
        moved = torch.empty_like(keys)
        for start in range(0, len(keys), self._block):
            of = keys[start : start + self._block]
            turned, before = self._turned[: len(of)].copy_(of), self._before[: len(of)]
            angles = table
            if index is not None:
                rows = index[start : start + self._block]
                angles = torch.index_select(table, 0, rows, out=self._angles[: len(of)])
            cos, sin = angles.chunk(2, dim=-1)
            first, second = self._rotary.pairs(turned)
            before.copy_(first)
            first.mul_(cos).addcmul_(second, sin, value=-1)
            second.mul_(cos).addcmul_(before, sin)
            moved[start : start + self._block] = turned
        return moved


def assemble_ragged_reference(
    parts: Sequence[RaggedKV], deltas: Sequence[torch.Tensor], rotary: Rotary | torch.Tensor, dtype: torch.dtype
) -> list[list[torch.Tensor]]:
    """The slow, obviously right version for one context: keys and values of each layer and head, one after another.

    Returns:
        By layer and head, [2, rows of the head, head_dim].
    """
    layers, kv_heads = parts[0].counts.shape
    found: list[list[torch.Tensor]] = []
    for layer in range(layers):
        found.append([])
        for head in range(kv_heads):
            rows = []
            for part, delta in zip(parts, deltas, strict=True):
                flat = part.counts.flatten()
                number = layer * kv_heads + head
                first, end = int(flat[:number].sum()), int(flat[: number + 1].sum())
                kv = part.dequantized(dtype).data[:, first:end]
                rows.append(
                    torch.stack([rotate_keys(kv[0], delta[first:end], Rotary.of(rotary).of_layer(layer)), kv[1]])
                )
            found[-1].append(torch.cat(rows, dim=1))
    return found
