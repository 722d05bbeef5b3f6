"""Putting the ragged rows of many chunks together, their keys moved: a context that every head reads other rows of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shared_context.kernels.kv_assembly.ragged_kv import RaggedKV
from shared_context.kernels.kv_assembly.reference import rotate_keys
from shared_context.kernels.kv_assembly.rotary import Rotary


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
) -> RaggedContext | None:
    """Gather the rows of each head from all parts of its context, keys turned to their new positions.

    Args:
        batch: for each row of the batch the parts of its context, of one model.
        deltas: for each part the positions to move each of its rows by, [rows].
        rotary: of the layers; frequencies [rotary_dim / 2] alone, paired by halves, where all share them.
        dtype, device: of what is made.
        targets: for each part the positions that its rows come to stand at, [rows]; None where no one asks for them.

    Returns:
        None where no row has any part.
    """
    shape = next((part.counts.shape for parts in batch for part in parts), None)
    if shape is None:
        return None
    widest = max(map(len, batch))
    counts = np.zeros((shape[0], len(batch), shape[1], widest), dtype=np.int64)
    for row, parts in enumerate(batch):
        for number, part in enumerate(parts):
            counts[:, row, :, number] = part.counts.numpy(force=True)
    starts = (np.cumsum(counts.ravel()) - counts.ravel()).reshape(counts.shape)
    head_dim = next(part.data.shape[2] for parts in batch for part in parts)
    keys, values = (torch.empty((int(counts.sum()), head_dim), dtype=dtype, device=device) for _ in range(2))
    positions = None if targets is None else torch.empty(len(keys), dtype=torch.int64, device=device)
    for row, parts in enumerate(batch):
        for number, part in enumerate(parts):
            of_head, first = counts[:, row, :, number].ravel(), starts[:, row, :, number].ravel()
            inside = np.arange(of_head.sum()) - np.repeat(np.cumsum(of_head) - of_head, of_head)
            place = torch.from_numpy(np.repeat(first, of_head) + inside).to(device)
            data = part.dequantized(dtype).data.to(device)
            keys.index_copy_(0, place, _turned(data[0], part, deltas[row][number], rotary))
            values.index_copy_(0, place, data[1])
            if positions is not None and targets is not None:
                positions.index_copy_(0, place, targets[row][number].to(device))
    of_heads, numbers = torch.from_numpy(starts[..., 0].copy()), torch.from_numpy(counts.sum(-1))
    return RaggedContext(keys, values, of_heads, numbers, positions)


def _turned(keys: torch.Tensor, part: RaggedKV, delta: torch.Tensor, rotary: Rotary | torch.Tensor) -> torch.Tensor:
    """The keys of a part, [rows, head_dim], moved: what a token is moved by is the same in all heads of a layer."""
    rotary, tokens = Rotary.of(rotary), part.tokens
    if rotary.uniform and len(delta) and (delta == delta[0]).all():
        # All by the same: no angles have to be gathered, which are as much memory as the keys.
        cos, sin = (angles[0] for angles in rotary.of_layer(0).cos_sin(delta[:1], keys.device))
        return _turn(keys, cos, sin, rotary)
    by_token = torch.zeros(int(tokens.max()) + 1 if len(tokens) else 0, dtype=torch.int64)
    by_token[tokens.long().cpu()] = delta.cpu().long()
    angles = torch.cat(rotary.cos_sin(by_token, torch.device("cpu")), dim=-1).flatten(0, 1)
    index = tokens.cpu().long()
    if not rotary.uniform:
        kind = torch.tensor(rotary.by_layer(len(part.counts))).repeat_interleave(part.counts.sum(dim=1).cpu())
        index = kind * len(by_token) + index
    cos, sin = angles.to(keys.device).index_select(0, index.to(keys.device)).chunk(2, dim=-1)
    return _turn(keys, cos, sin, rotary)


def _turn(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Keys [rows, head_dim] turned by angles of every row, or of all of them; in one copy of float32."""
    turned = keys.float()
    turned = turned.clone() if turned is keys else turned
    first, second = rotary.pairs(turned)
    before = first.clone()
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(before, sin)
    return turned.to(keys.dtype)


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
