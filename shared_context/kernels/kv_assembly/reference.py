"""The slow, obviously right versions: what every faster one is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV
from shared_context.kernels.kv_assembly.rotary import Rotary


def rotate_keys(keys: torch.Tensor, delta: torch.Tensor, rotary: Rotary | torch.Tensor) -> torch.Tensor:
    """Move rotary keys by ``delta`` positions: ``k' = R(delta) k``, computed in float32.

    Rotations add up, so a key rotated for position p becomes the key for p + delta. Scaled variants differ only in
    their frequencies (their constant factor on the keys is a scale, which a rotation keeps).

    Args:
        keys: [..., tokens, head_dim]; where layers differ [layers, ..., tokens, head_dim].
        delta: positions to move each token by, [tokens], integers.
        rotary: of the layers; frequencies [rotary_dim / 2] alone, paired by halves, where all share them. Neither has
            to lie where the keys do.

    Returns:
        Keys of the same shape and dtype.
    """
    rotary = Rotary.of(rotary)
    cos, sin = rotary.cos_sin(delta, keys.device)
    if rotary.uniform:
        kind = rotary.by_layer(1)[0]
        return rotary.turn(keys, cos[kind], sin[kind])
    kinds = rotary.by_layer(len(keys))
    return torch.stack([rotary.turn(of, cos[kind], sin[kind]) for of, kind in zip(keys, kinds, strict=True)])


def assemble_reference(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    rotary: Rotary | torch.Tensor,
    out: torch.Tensor,
) -> None:
    """What :func:`~shared_context.kernels.kv_assembly.assemble` does, one chunk at a time; arguments are the same."""
    at = 0
    for chunk, taken, delta in zip(chunks, rows, deltas, strict=True):
        kv = chunk.dequantized(out.dtype).data[:, :, :, taken].to(out.device)
        place = out[:, :, :, at : at + len(taken)]
        place[0] = rotate_keys(kv[0], delta.to(out.device), rotary)
        place[1] = kv[1]
        at += len(taken)
