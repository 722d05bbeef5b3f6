"""Token codes: hidden states after one layer, made small enough to keep for every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from shared_context.errors import UnsupportedModelError
from shared_context.model.shared_llm import SharedLLMModel

VOCABULARY_SAMPLE = 4096
"""Tokens that the codec is fitted on."""


@dataclass(frozen=True)
class Codec:
    """Centre, project, normalise: what makes one-layer states comparable by their inner product.

    It is fitted on the model's vocabulary in a random order, not on documents, so that a code never depends on what
    else a store holds. Without the centre all states look alike.

    Attributes:
        mean: [hidden], float32.
        projection: principal directions, [hidden, size], float32.
    """

    mean: torch.Tensor
    projection: torch.Tensor

    @property
    def size(self) -> int:
        """Dimensions of a code; fewer than were asked for where the model has fewer."""
        return self.projection.shape[1]

    @classmethod
    def fit(cls, model: SharedLLMModel, code_size: int) -> Codec:
        """The codec of a model; the same for every store that is made with it.

        Raises:
            UnsupportedModelError: the model computes infinities or NaN.
        """
        vocabulary = len(model.tokenizer)
        sample = min(VOCABULARY_SAMPLE, vocabulary, model.context_window)
        order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))[:sample]
        states = model.compressor.query_states(order).float().cpu()
        if not torch.isfinite(states).all():
            raise UnsupportedModelError(
                f"{model.name} computes infinities or NaN in {model.dtype}; load it with dtype='bfloat16' or 'float32'."
            )
        mean = states.mean(dim=0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            directions = torch.pca_lowrank(states - mean, q=min(code_size, *states.shape), center=False, niter=4)[2]
        return cls(mean, directions.contiguous())

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Codes of unit length, float32 [tokens, size], of states [tokens, hidden]."""
        codes = (states.float().cpu() - self.mean) @ self.projection
        return torch.nn.functional.normalize(codes, dim=-1)

    def to_bytes(self) -> bytes:
        """As safetensors."""
        return save({"mean": self.mean, "projection": self.projection})

    @classmethod
    def from_bytes(cls, data: bytes) -> Codec:
        """From what :meth:`to_bytes` gave.

        Raises:
            ValueError: it is no codec.
        """
        codec = cls(**load(data))
        shapes = len(codec.mean.shape), len(codec.projection.shape), *codec.mean.shape
        if shapes != (1, 2, codec.projection.shape[0]) or 0 in codec.projection.shape:
            raise ValueError("its codec has tensors of another shape")
        for tensor in (codec.mean, codec.projection):
            if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
                raise ValueError("its codec is not float32, or holds infinities or NaN")
        return codec
