"""The keys and values of some tokens of a chunk, other tokens in every head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class RaggedKV:
    """Rows of a chunk's keys and values, layer by layer and head by head, each head with as many as it keeps.

    Args:
        data: ``[2, rows, head_dim]``; index 0 holds the keys with their in-chunk rotation, index 1 the values.
            bfloat16, float16, float32 or int8.
        tokens: the token that each row is of, by its row in the whole encoding, int32 ``[rows]``; rising in each head.
        counts: rows of each head, int64 ``[layers, kv_heads]``; together ``rows``.
        scale: ``[2, layers, kv_heads, 1, head_dim]`` float32, one per channel; goes with int8 and only with it.
        importance: of each row, float16 ``[rows]``; None where it is not known.

    Raises:
        ValueError: shapes or dtypes are others than these.
    """

    data: Tensor
    tokens: Tensor
    counts: Tensor
    scale: Tensor | None = None
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.data.shape)
        if len(shape) != 3 or shape[0] != 2 or shape[2] == 0:
            raise ValueError(f"data has shape {shape}, expected [2, rows, head_dim]")
        if self.data.dtype not in (*FLOAT_DTYPES, torch.int8):
            raise ValueError(f"data is {self.data.dtype}, expected bfloat16, float16, float32 or int8")
        if (self.data.dtype == torch.int8) != (self.scale is not None):
            raise ValueError(f"int8 data needs a scale and no other may have one; data is {self.data.dtype}")
        if self.counts.ndim != 2 or self.counts.dtype != torch.int64 or (self.counts < 0).any():
            raise ValueError(f"counts are {self.counts.dtype} {tuple(self.counts.shape)}, expected int64 of two axes")
        rows = int(self.counts.sum())
        if shape[1] != rows or tuple(self.tokens.shape) != (rows,) or self.tokens.dtype != torch.int32:
            raise ValueError(f"{shape[1]} rows of {tuple(self.tokens.shape)} tokens where counts say {rows}")
        expected = (2, *self.counts.shape, 1, shape[2])
        if self.scale is not None and (tuple(self.scale.shape) != expected or self.scale.dtype != torch.float32):
            raise ValueError(f"scale has shape {tuple(self.scale.shape)}, expected float32 of {expected}")
        scores = self.importance
        if scores is not None and (tuple(scores.shape) != (rows,) or scores.dtype != torch.float16):
            raise ValueError(f"importance is {scores.dtype} of {tuple(scores.shape)}, expected float16 of ({rows},)")

    @property
    def layers(self) -> int:
        """Number of layers, the lowest first."""
        return self.counts.shape[0]

    @property
    def entries(self) -> float:
        """KV entries per layer and head, on average."""
        return self.data.shape[1] / self.counts.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        parts = (self.data, self.tokens, self.counts, self.scale, self.importance)
        return sum(part.nbytes for part in parts if part is not None)

    def scores(self, tokens: int) -> Tensor:
        """Importance by head and token, float32 [layers, kv_heads, tokens]; minus one where there is no row.

        Args:
            tokens: how many at least.
        """
        assert self.importance is not None, "no importance was taken of these rows"
        tokens = max(tokens, int(self.tokens.max()) + 1 if len(self.tokens) else 0)
        dense = torch.full((self.counts.numel(), tokens), -1.0)
        dense[self._heads(), self.tokens.long()] = self.importance.float()
        return dense.view(*self.counts.shape, tokens)

    def ragged(self, kept: Tensor) -> RaggedKV:
        """A copy of some rows alone.

        Args:
            kept: bool [layers, kv_heads, tokens], the tokens to keep of each head; those that have no row are not.
        """
        heads = self._heads()
        taken = kept.flatten(0, 1)[heads, self.tokens.long()]
        counts = torch.bincount(heads[taken], minlength=self.counts.numel()).view(self.counts.shape)
        importance = None if self.importance is None else self.importance[taken]
        return RaggedKV(self.data[:, taken], self.tokens[taken], counts, self.scale, importance)

    def dequantized(self, dtype: torch.dtype) -> RaggedKV:
        """The rows in the floating-point ``dtype``, whether they are int8 now or not."""
        if self.scale is None:
            data = self.data.to(dtype)
        else:
            data = (self.data * self.scale.flatten(1, 3)[:, self._heads()]).to(dtype)
        return RaggedKV(data, self.tokens, self.counts, None, self.importance)

    def _heads(self) -> Tensor:
        """The head that each row is of, counted through all layers, int64 [rows]."""
        return torch.repeat_interleave(self.counts.flatten())
