"""KV assembly on a GPU: every chosen row is read once and written once."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
import torch
import triton
import triton.language as tl

from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV
from shared_context.kernels.kv_assembly.rotary import Rotary
from shared_context.kernels.launch import on_device

VALUES = 2048
"""Channels times entries of one program, which moves the same entries of one chunk in every head of a layer."""

ELEMENT = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.int8: tl.int8,
}


@triton.jit
def _read(pointer, scale, channel, mask, ALIGNED: tl.constexpr, QUANTIZED: tl.constexpr):
    """Some channels of some rows as float32 [entries, channels]; all begin at multiples of ALIGNED bytes."""
    values = tl.load(tl.multiple_of(pointer + channel[None, :], (1, ALIGNED)), mask=mask, other=0).to(tl.float32)
    if QUANTIZED:
        values *= tl.load(tl.multiple_of(scale + channel[None, :], (1, ALIGNED)), mask=mask, other=0.0)
    return values


@triton.jit
def assembly_kernel(
    blocks,  # int64 [blocks, 8], see block_table
    rows,  # int32 [entries], token positions within their chunks
    cos,  # float32 [kinds, entries, HALF_DIM]
    sin,  # float32 [kinds, entries, HALF_DIM]
    kinds,  # int32 [layers], which of these are a layer's
    out,  # [2, layers, kv_heads, entries, HEAD_DIM], its last axis contiguous
    layers,
    kv_heads,
    entries,
    out_part,
    out_layer,
    out_head,
    out_entry,
    ELEMENT: tl.constexpr,
    HALF_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ENTRIES: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HEAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    QUANTIZED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Keys and values of up to ENTRIES entries of one chunk in one layer, one head after the other."""
    block = blocks + tl.program_id(0).to(tl.int64) * 8
    layer = tl.program_id(1).to(tl.int64)
    first, count = tl.load(block + 2), tl.load(block + 3)
    part_stride, layer_stride = tl.load(block + 4), tl.load(block + 5)
    head_stride, row_stride = tl.load(block + 6), tl.load(block + 7)

    entry = tl.arange(0, ENTRIES)
    inside = (entry < count)[:, None]
    row = tl.load(rows + first + entry, mask=entry < count, other=0).to(tl.int64)
    keys = tl.load(block).to(tl.pointer_type(ELEMENT)) + layer * layer_stride + row[:, None] * row_stride
    scale = tl.load(block + 1).to(tl.pointer_type(tl.float32)) + layer * kv_heads * HEAD_DIM
    to = out + layer * out_layer + (first + entry)[:, None] * out_entry

    half = tl.arange(0, HALF)
    turned = inside & (half < HALF_DIM)[None, :]
    of_kind = tl.load(kinds + layer).to(tl.int64) * entries
    angle = (of_kind + first + entry)[:, None] * HALF_DIM + half[None, :]
    c = tl.load(cos + angle, mask=turned, other=0.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    # the channels that are paired
    one, other = half, half + HALF_DIM
    if INTERLEAVED:
        one, other = 2 * half, 2 * half + 1
    channel = tl.arange(0, HEAD)
    whole = inside & (channel < HEAD_DIM)[None, :]
    for _ in range(kv_heads):
        a = _read(keys, scale, one, turned, ALIGNED, QUANTIZED)
        b = _read(keys, scale, other, turned, ALIGNED, QUANTIZED)
        values = _read(keys + part_stride, scale + layers * kv_heads * HEAD_DIM, channel, whole, ALIGNED, QUANTIZED)
        tl.store(to + one[None, :], (a * c - b * s).to(out.dtype.element_ty), mask=turned)
        tl.store(to + other[None, :], (b * c + a * s).to(out.dtype.element_ty), mask=turned)
        tl.store(to + out_part + channel[None, :], values.to(out.dtype.element_ty), mask=whole)
        if 2 * HALF_DIM < HEAD_DIM:
            rest = 2 * HALF_DIM + tl.arange(0, REST)
            unturned = inside & (rest < HEAD_DIM)[None, :]
            kept = _read(keys, scale, rest, unturned, ALIGNED, QUANTIZED)
            tl.store(to + rest[None, :], kept.to(out.dtype.element_ty), mask=unturned)
        keys += head_stride
        scale += HEAD_DIM
        to += out_head


def assemble_triton(
    chunks: Sequence[ChunkKV],
    rows: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    rotary: Rotary | torch.Tensor,
    out: torch.Tensor,
) -> None:
    """What :func:`~shared_context.kernels.assemble` does, in one launch for each dtype; ``out`` is on a GPU.

    Chunks elsewhere are moved there first, only the rows that were chosen. Rows must lie within their chunks.
    """
    rotary = Rotary.of(rotary)
    device, half, head_dim = out.device, rotary.half, out.shape[-1]
    held = [_brought(chunk, taken, device) for chunk, taken in zip(chunks, rows, strict=True) if len(taken)]
    if not held:
        return
    chosen = torch.cat([taken.to(device, torch.int32, non_blocking=True) for _, taken in held])
    target = out if out.stride(-1) == 1 else torch.empty_like(out, memory_format=torch.contiguous_format)
    cos, sin = rotary.cos_sin(torch.cat([d.to(device, non_blocking=True) for d in deltas]), device)
    kinds = torch.tensor(rotary.by_layer(out.shape[1]), dtype=torch.int32, device=device)
    entries = entries_of_a_program(head_dim)
    tables = block_tables([chunk for chunk, _ in held], [len(taken) for _, taken in held], entries)
    for element, table in tables.items():
        # the bytes at which rows and scales begin, and the second half of each
        places = [*(table[:, 4:] * element.itemsize).ravel().tolist(), *table[:, :2].ravel().tolist()]
        places += [half * element.itemsize, head_dim * 4]
        aligned = gcd(element.itemsize, 4) if rotary.interleaved else gcd(16, *places)
        with on_device(out):
            assembly_kernel[(len(table), out.shape[1])](
                torch.from_numpy(table).to(device, non_blocking=True),
                chosen,
                cos,
                sin,
                kinds,
                target,
                out.shape[1],
                out.shape[2],
                cos.shape[1],
                *target.stride()[:4],
                ELEMENT=ELEMENT[element],
                HALF_DIM=half,
                HEAD_DIM=head_dim,
                ENTRIES=entries,
                HALF=triton.next_power_of_2(half),
                REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
                HEAD=triton.next_power_of_2(head_dim),
                ALIGNED=aligned,
                QUANTIZED=element == torch.int8,
                INTERLEAVED=rotary.interleaved,
                num_warps=4,
            )
    if target is not out:
        out.copy_(target)


def entries_of_a_program(head_dim: int) -> int:
    """KV entries that one program moves: more would not fit its registers."""
    return max(1, VALUES // triton.next_power_of_2(head_dim))


def block_tables(chunks: Sequence[ChunkKV], counts: Sequence[int], entries: int) -> dict[torch.dtype, np.ndarray]:
    """By the chunks' dtype, which entries each program of the kernel's first axis moves, and from where.

    Args:
        chunks: the encodings.
        counts: how many rows are taken of each.
        entries: the most that one program moves.

    Returns:
        int64 [blocks, 8]: addresses of the chunk's data and of its scale, the first entry of the block, how many
        there are, and the strides of part, layer, head and row in elements.
    """
    blocks: dict[torch.dtype, list[tuple[int, ...]]] = {}
    at = 0
    for chunk, count in zip(chunks, counts, strict=True):
        scale = 0 if chunk.scale is None else chunk.scale.data_ptr()
        for first in range(0, count, entries):
            place = at + first, min(entries, count - first)
            row = (chunk.data.data_ptr(), scale, *place, *chunk.data.stride()[:4])
            blocks.setdefault(chunk.data.dtype, []).append(row)
        at += count
    return {element: np.array(rows, dtype=np.int64) for element, rows in blocks.items()}


def _brought(chunk: ChunkKV, rows: torch.Tensor, device: torch.device) -> tuple[ChunkKV, torch.Tensor]:
    """A chunk on the device, its channels side by side, and the rows to take of it."""
    data, scale = chunk.data, chunk.scale
    if data.device != device:
        data = data[:, :, :, rows.to(data.device)].to(device, non_blocking=True)
        rows = torch.arange(len(rows))
    if data.stride(-1) != 1:
        data = data.contiguous()
    if scale is not None:
        scale = scale.to(device, non_blocking=True).contiguous()
    return ChunkKV(data, scale), rows
