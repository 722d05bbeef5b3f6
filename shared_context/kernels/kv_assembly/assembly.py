"""Moving keys to new positions, and gathering a selection's rows into the KV that the decoder reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV


def rotate_keys(keys: torch.Tensor, delta: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Move rotary keys by ``delta`` positions: ``k' = R(delta) k``, computed in float32.

    Rotations add up, so a key rotated for position p becomes the key for p + delta. Scaled variants differ only in
    ``inv_freq`` (their constant factor on the keys is a scale, which a rotation keeps).

    Args:
        keys: [..., tokens, head_dim], halves paired as transformers does (i with i + rotary_dim / 2).
        delta: positions to move each token by, [tokens], integers.
        inv_freq: [rotary_dim / 2], radians per position; rotary_dim may be smaller than head_dim.

    Returns:
        Keys of the same shape and dtype.
    """
    half = inv_freq.numel()
    # float64, because an error of the angle grows with the delta and every layer would inherit it
    angle = delta.to(torch.float64)[:, None] * inv_freq.to(torch.float64)
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second, rest = keys.split([half, half, keys.shape[-1] - 2 * half], dim=-1)
    first, second = first.float(), second.float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(keys.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def assemble(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    inv_freq: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the chosen rows of every chunk, one after the other, with their keys moved, into ``out``.

    Args:
        chunks: the encodings, in the order in which they are to stand.
        rows: for each chunk the token positions to take, [n_i], rising.
        deltas: for each chunk the positions to move each taken key by, [n_i].
        inv_freq: [rotary_dim / 2].
        out: [2, layers, kv_heads, sum of n_i, head_dim], written in place; may be a view with strides of its own.
    """
    at = 0
    for chunk, taken, delta in zip(chunks, rows, deltas, strict=True):
        end = at + len(taken)
        kv = chunk.data[:, :, :, contiguous(taken)].to(out.device)
        if chunk.scale is not None:
            kv = kv * chunk.scale.to(out.device)
        out[0, :, :, at:end] = rotate_keys(kv[0].to(out.dtype), delta.to(out.device), inv_freq)
        out[1, :, :, at:end] = kv[1]
        at = end


def contiguous(rows: torch.Tensor) -> slice | torch.Tensor:
    """Rows as a slice where they are evenly spaced, which spares the gather; as they are otherwise."""
    first, last = int(rows[0]), int(rows[-1])
    step = int(rows[1]) - first if len(rows) > 1 else 1
    evenly = step > 0 and last - first == step * (len(rows) - 1) and bool((rows.diff() == step).all())
    return slice(first, last + 1, step) if evenly else rows
