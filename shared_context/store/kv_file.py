"""One file of the KV cache: tensors in safetensors, each with a checksum, and what they were computed by."""

from __future__ import annotations

import json
import zlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shared_context.kernels.kv_assembly import ChunkKV, RaggedKV

_FORMAT = "shared-context-kv-2"

_DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int32, torch.int64

CachedKV = ChunkKV | RaggedKV
"""All rows of a chunk, or the most important of them, other ones in every head."""


def _checksum(tensor: Tensor) -> str:
    """CRC-32 of dtype, shape and bytes of a contiguous tensor."""
    head = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return f"{zlib.crc32(tensor.view(torch.uint8).numpy().data, head):08x}"


def tensors_of(chunk_kv: CachedKV) -> dict[str, Tensor]:
    """Its tensors by name, but for those that it does not have."""
    return {name: tensor for name, tensor in vars(chunk_kv).items() if tensor is not None}


def encoded(key: str, chunk_kv: CachedKV, method: str) -> bytes:
    """The bytes of the file of a chunk.

    Args:
        key: what it is kept under.
        chunk_kv: its KV, contiguous and on the processor.
        method: how their importance was computed.
    """
    tensors = tensors_of(chunk_kv)
    checksums = {f"{name}_crc32": _checksum(tensor) for name, tensor in tensors.items()}
    return save(tensors, metadata={"format": _FORMAT, "key": key, "importance": method, **checksums})


def decoded(key: str, content: bytes, method: str) -> CachedKV | None:
    """The inverse of ``encoded``; None where rows were chosen by another method than ``method``.

    Raises:
        ValueError: ``content`` is not what it made for ``key``.
    """
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise ValueError(f"not a readable safetensors file ({error})") from error
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if metadata.get("format") != _FORMAT or metadata.get("key") != key:
        raise ValueError("not a file of this cache, or of another key")
    kind = RaggedKV if "counts" in tensors else ChunkKV
    required = {"data", "tokens", "counts", "importance"} if kind is RaggedKV else {"data"}
    if not required <= tensors.keys() <= {*required, "scale", "importance"}:
        raise ValueError(f"holds tensors {sorted(tensors)}")
    for name, tensor in tensors.items():
        if not tensor.dim() or tensor.dtype not in _DTYPES:
            raise ValueError(f"its {name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if metadata.get(f"{name}_crc32") != _checksum(tensor):
            raise ValueError(f"the checksum of its {name} is wrong")
        # A sum is infinite or NaN where one of its numbers is.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise ValueError(f"its {name} holds infinities or NaN")
    importance = tensors.get("importance")
    if importance is not None and not (torch.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("its importance is negative, infinite or NaN")
    if metadata.get("importance") != method:
        if kind is RaggedKV:
            return None
        tensors.pop("importance", None)
    return kind(**tensors)
