"""Gathering a selection's rows into the KV that the decoder reads, their keys moved to new positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV
from shared_context.kernels.kv_assembly.reference import assemble_reference


def assemble(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    inv_freq: torch.Tensor,
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
        inv_freq: [rotary_dim / 2].
        out: [2, layers, kv_heads, sum of n_i, head_dim], written in place; may be a view with strides of its own.
    """
    if not chunks:
        return
    if torch.compiler.is_compiling():
        assemble_reference(chunks, rows, deltas, inv_freq, out)
    elif out.is_cuda:
        from shared_context.kernels.kv_assembly.triton_kernel import assemble_triton

        assemble_triton(chunks, rows, deltas, inv_freq, out)
    else:
        _copy_and_turn(chunks, rows, deltas, inv_freq, out)


def _copy_and_turn(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    inv_freq: torch.Tensor,
    out: torch.Tensor,
) -> None:
    at = 0
    for chunk, taken in zip(chunks, rows, strict=True):
        kv = chunk.data[:, :, :, evenly_spaced(taken)]
        if chunk.scale is not None:
            kv = kv.float().mul_(chunk.scale)  # two passes, each vectorised, which int8 times float32 is not
        out[:, :, :, at : at + len(taken)] = kv
        at += len(taken)
    # float64, because an error of the angle grows with the delta and every layer would inherit it
    angle = torch.cat(list(deltas)).to(torch.float64)[:, None] * inv_freq.to("cpu", torch.float64)
    cos, sin = (f.to(out.device, torch.float32) for f in (angle.cos(), angle.sin()))
    half = inv_freq.numel()
    for keys in out[0]:
        first, second = keys[..., :half], keys[..., half : 2 * half]
        a, b = first.float(), second.float()
        turned = (a * cos).addcmul_(b, sin, value=-1), (b * cos).addcmul_(a, sin)
        first.copy_(turned[0])
        second.copy_(turned[1])


def evenly_spaced(rows: torch.Tensor) -> slice | torch.Tensor:
    """Rows as a slice where they are evenly spaced, which spares the gather; as they are otherwise."""
    if not len(rows):
        return slice(0)
    first, last = int(rows[0]), int(rows[-1])
    step = int(rows[1]) - first if len(rows) > 1 else 1
    evenly = step > 0 and last - first == step * (len(rows) - 1) and bool((rows.diff() == step).all())
    return slice(first, last + 1, step) if evenly else rows
