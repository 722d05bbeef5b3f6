"""The slow, obviously right versions: what every faster one is tested against."""

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
        inv_freq: [rotary_dim / 2], radians per position; rotary_dim may be smaller than head_dim. Neither has to lie
            where the keys do.

    Returns:
        Keys of the same shape and dtype.
    """
    half = inv_freq.numel()
    # float64, because an error of the angle grows with the delta and every layer would inherit it.
    # Apple's GPUs have none.
    at = torch.device("cpu") if keys.device.type == "mps" else keys.device
    angle = delta.to(at).to(torch.float64)[:, None] * inv_freq.to(at).to(torch.float64)
    cos, sin = (part.float().to(keys.device) for part in (angle.cos(), angle.sin()))
    first, second, rest = keys.split([half, half, keys.shape[-1] - 2 * half], dim=-1)
    first, second = first.float(), second.float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(keys.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def assemble_reference(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    inv_freq: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """What :func:`~shared_context.kernels.kv_assembly.assemble` does, one chunk at a time; arguments are the same."""
    at = 0
    for chunk, taken, delta in zip(chunks, rows, deltas, strict=True):
        kv = chunk.dequantized(out.dtype).data[:, :, :, taken].to(out.device)
        place = out[:, :, :, at : at + len(taken)]
        place[0] = rotate_keys(kv[0], delta.to(out.device), inv_freq)
        place[1] = kv[1]
        at += len(taken)
