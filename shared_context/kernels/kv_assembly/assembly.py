"""Gathering a selection's rows into the KV that the decoder reads, their keys moved to new positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV
from shared_context.kernels.kv_assembly.reference import assemble_reference
from shared_context.kernels.kv_assembly.rotary import Rotary
from shared_context.kernels.launch import or_pytorch, triton_serves

SHORTEST_RUN = 8
"""Rows of an evenly spaced run, on average, from which on slices are copied faster than rows are gathered."""


def assemble(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    rotary: Rotary | torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the chosen rows of every chunk, one after the other, with their keys moved, into ``out``.

    Values are copied; a key at row r is turned by its delta d, ``k' = R(d) k``, in float32. int8 is unpacked on the
    way. On CUDA and HIP one Triton kernel reads and writes everything once. On a processor the rows are copied and
    the keys then turned in place, layer by layer, so that what the rotation works on in float32 stays in the cache.
    The formula is that of :func:`~shared_context.kernels.kv_assembly.assemble_reference`, which is also what
    ``torch.compile`` sees.

    Args:
        chunks: the encodings, in the order in which they are to stand; on any device, and int8 beside others.
        rows: for each chunk the token positions to take, [n_i], rising, none outside the chunk.
        deltas: for each chunk the positions to move each taken key by, [n_i].
        rotary: of the layers; frequencies [rotary_dim / 2] alone, paired by halves, where all share them.
        out: [2, layers, kv_heads, sum of n_i, head_dim], written in place; may be a view with strides of its own.
    """
    if not chunks:
        return
    if torch.compiler.is_compiling():
        assemble_reference(chunks, rows, deltas, rotary, out)
        return
    if triton_serves(out):
        with or_pytorch():
            from shared_context.kernels.kv_assembly.triton_kernel import assemble_triton

            assemble_triton(chunks, rows, deltas, rotary, out)
            return
    _copy_and_turn(chunks, rows, deltas, rotary, out)


def _copy_and_turn(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    rotary: Rotary | torch.Tensor,
    out: torch.Tensor,
) -> None:
    at = 0
    for chunk, taken in zip(chunks, rows, strict=True):
        for run in evenly_spaced(taken):
            kv = _unpacked(chunk.data[:, :, :, run], chunk.scale)
            out[:, :, :, at : at + kv.shape[3]] = kv
            at += kv.shape[3]
    rotary = Rotary.of(rotary)
    cos, sin = rotary.cos_sin(torch.cat(list(deltas)), out.device)
    for kind, keys in zip(rotary.by_layer(out.shape[1]), out[0], strict=True):
        _turn(rotary, keys, cos[kind], sin[kind])


class AssemblyByLayer:
    """What :func:`assemble` writes, on a processor and one layer at a time, for who reads each layer once and in order.

    Args:
        chunks, rows, deltas, rotary: as there.
    """

    def __init__(
        self,
        chunks: Sequence[ChunkKV],
        rows: Sequence[torch.Tensor],
        deltas: Sequence[torch.Tensor],
        rotary: Rotary | torch.Tensor,
    ):
        self._encodings = [(chunk.data.cpu(), None if chunk.scale is None else chunk.scale.cpu()) for chunk in chunks]
        self._rotary = Rotary.of(rotary)
        self._runs = [evenly_spaced(taken) for taken in rows]
        delta = torch.cat(list(deltas)) if chunks else torch.zeros(0, dtype=torch.int64)
        self._cos, self._sin = self._rotary.cos_sin(delta, delta.device)

    def write(self, layer: int, out: torch.Tensor) -> None:
        """Write a layer's rows into ``out``, [2, kv_heads, sum of n_i, head_dim], which may be a view as there."""
        at = 0
        for (data, scale), runs in zip(self._encodings, self._runs, strict=True):
            for run in runs:
                kv = _unpacked(data[:, layer, :, run], None if scale is None else scale[:, layer])
                out[:, :, at : at + kv.shape[2]] = kv
                at += kv.shape[2]
        kind = self._rotary.by_layer(layer + 1)[layer]
        _turn(self._rotary, out[0], self._cos[kind], self._sin[kind])


def _unpacked(kv: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Keys and values in floating point; in two passes, each vectorised, which int8 times float32 is not."""
    return kv if scale is None else kv.float().mul_(scale)


def _turn(rotary: Rotary, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn a layer's keys in place."""
    first, second = rotary.pairs(keys)
    a, b = first.float(), second.float()
    turned = (a * cos).addcmul_(b, sin, value=-1), (b * cos).addcmul_(a, sin)
    first.copy_(turned[0])
    second.copy_(turned[1])


def evenly_spaced(rows: torch.Tensor) -> list[slice] | list[torch.Tensor]:
    """Rows as slices, one for each run that is evenly spaced: copying a slice takes a third of the time of a gather.

    Rows that hardly ever are evenly spaced come back as they are, the only entry of the list.
    """
    step = np.diff(rows.numpy(force=True))
    # the rows at which a run of equal steps ends
    ends = np.append(np.flatnonzero(np.diff(step)) + 1, len(rows) - 1).tolist()
    if len(ends) * SHORTEST_RUN > len(rows):
        return [rows]
    runs, first, numbers = [], 0, rows.tolist()
    for end in ends:
        # The step to the first row of the next run is a run of its own, with nothing left in it.
        if end > first or end == len(rows) - 1 == first:
            stride = int(step[first]) if end > first else 1
            runs.append(slice(numbers[first], numbers[end] + 1, stride))
            first = end + 1
    return runs
