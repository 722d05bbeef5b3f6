"""Gathering a selection's rows into the KV that the decoder reads, their keys moved to new positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV


def assemble(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    inv_freq: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the chosen rows of every chunk, one after the other, with their keys moved, into ``out``.

    The rows are copied once; the keys are then turned in place, layer by layer, so that what the rotation works on
    in float32 stays in the processor's cache. The formula is that of
    :func:`~shared_context.kernels.kv_assembly.assemble_reference`.

    Args:
        chunks: the encodings, in the order in which they are to stand.
        rows: for each chunk the token positions to take, [n_i], rising.
        deltas: for each chunk the positions to move each taken key by, [n_i].
        inv_freq: [rotary_dim / 2].
        out: [2, layers, kv_heads, sum of n_i, head_dim], written in place; may be a view with strides of its own.
    """
    if not chunks:
        return
    at = 0
    for chunk, taken in zip(chunks, rows, strict=True):
        kv = chunk.data[:, :, :, evenly_spaced(taken)]
        if chunk.scale is not None:
            kv = kv * chunk.scale
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
    first, last = int(rows[0]), int(rows[-1])
    step = int(rows[1]) - first if len(rows) > 1 else 1
    evenly = step > 0 and last - first == step * (len(rows) - 1) and bool((rows.diff() == step).all())
    return slice(first, last + 1, step) if evenly else rows
