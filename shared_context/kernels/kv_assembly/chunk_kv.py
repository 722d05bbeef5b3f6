"""The keys and values of one encoded chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared_context.kernels.kv_assembly.ragged_kv import FLOAT_DTYPES, RaggedKV


@dataclass(frozen=True, eq=False)
class ChunkKV:
    """Keys and values of every token of a chunk, in floating point or as int8.

    Args:
        data: ``[2, layers, kv_heads, tokens, head_dim]``; index 0 holds the keys with their in-chunk rotation,
            index 1 the values. bfloat16, float16, float32 or int8.
        scale: ``[2, layers, kv_heads, 1, head_dim]`` float32, one per channel: ``value = data * scale``. Goes with
            int8 and only with it.
        importance: ``[layers, kv_heads, tokens]`` float16, how much the model needs each row to repeat the chunk;
            None where it is not known.

    Tensors are shared, not copied: treat them as read-only.

    Raises:
        ValueError: shapes or dtypes are others than these.
    """

    data: Tensor
    scale: Tensor | None = None
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.data.shape)
        if len(shape) != 5 or shape[0] != 2 or 0 in shape:
            raise ValueError(f"data has shape {shape}, expected [2, layers, kv_heads, tokens, head_dim], none empty")
        if self.data.dtype not in (*FLOAT_DTYPES, torch.int8):
            raise ValueError(f"data is {self.data.dtype}, expected bfloat16, float16, float32 or int8")
        if (self.data.dtype == torch.int8) != (self.scale is not None):
            raise ValueError(f"int8 data needs a scale and no other may have one; data is {self.data.dtype}")
        if self.scale is not None:
            expected = (*shape[:3], 1, shape[4])
            if tuple(self.scale.shape) != expected or self.scale.dtype != torch.float32:
                raise ValueError(
                    f"scale is {self.scale.dtype} of shape {tuple(self.scale.shape)}, expected float32 of {expected}"
                )
        scores = self.importance
        if scores is not None and (tuple(scores.shape) != shape[1:4] or scores.dtype != torch.float16):
            raise ValueError(f"importance is {scores.dtype} of {tuple(scores.shape)}, expected float16 of {shape[1:4]}")

    @property
    def layers(self) -> int:
        """Number of layers, the lowest first."""
        return self.data.shape[1]

    @property
    def tokens(self) -> int:
        """Number of tokens, that is of KV entries."""
        return self.data.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(part.nbytes for part in (self.data, self.scale, self.importance) if part is not None)

    def ragged(self, kept: Tensor) -> RaggedKV:
        """A copy of some rows, other ones in every head.

        Args:
            kept: bool [layers, kv_heads, tokens], the tokens to keep of each head.
        """
        index = kept.flatten().nonzero()[:, 0]
        return RaggedKV(
            self.data.flatten(1, 3).index_select(1, index.to(self.data.device)),
            (index % self.tokens).to(torch.int32),
            kept.sum(dim=-1),
            self.scale,
            None if self.importance is None else self.importance.flatten()[index],
        )

    def only(self, rows: Tensor) -> ChunkKV:
        """A copy of some rows alone, which does not keep the others alive.

        Args:
            rows: token positions, int64 [n].
        """
        return ChunkKV(self.data.index_select(3, rows.to(self.data.device)), self.scale)

    def quantized(self) -> ChunkKV:
        """The chunk as int8: symmetric, one scale per channel so that its largest magnitude becomes 127.

        The error of a value is at most half its channel's scale. Scales are per channel, not per token, because a
        few channels of the keys are far larger than the others, at every token.

        Raises:
            ValueError: a key or value is infinite or NaN.
        """
        if self.scale is not None:
            return self
        values = self.data.float()
        largest = values.abs().amax(dim=3, keepdim=True)
        if not torch.isfinite(largest).all():
            raise ValueError("keys or values are infinite or NaN and cannot be int8: encode in bfloat16 or float32")
        # The floor keeps 0 / 0 away: a channel of zeros stays zero under any scale.
        scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
        return ChunkKV((values / scale).round_().clamp_(-127, 127).to(torch.int8), scale, self.importance)

    def dequantized(self, dtype: torch.dtype) -> ChunkKV:
        """The chunk in the floating-point ``dtype``, whether it is int8 now or not.

        Raises:
            ValueError: ``dtype`` is not bfloat16, float16 or float32.
        """
        if dtype not in FLOAT_DTYPES:
            raise ValueError(f"dtype={dtype}: expected bfloat16, float16 or float32")
        if self.scale is None:
            return self if self.data.dtype == dtype else ChunkKV(self.data.to(dtype), None, self.importance)
        return ChunkKV((self.data * self.scale).to(dtype), None, self.importance)
