"""The probe: importance guessed from a chunk's keys and values alone, without a repetition."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared_context.errors import ModelNotFoundError
from shared_context.kernels import ChunkKV, Rotary, rotate_keys
from shared_context.model.adapter import SHIPPED
from shared_context.model.importance import ImportanceScorer

PROBE_FILE = "probe.safetensors"

LEAST = 1e-6
"""Importance is fitted and guessed as a logarithm, of no less than this."""


@dataclass(frozen=True)
class ImportanceProbe:
    """A linear guess of the logarithm of importance, for each layer from all keys and values of a token in it.

    Keys and values are linear in the hidden state that computed them, so that nothing else has to be kept of it.

    Attributes:
        weights: [layers, 2 * kv_heads * head_dim + 1, kv_heads], float32; the last row stands for a constant.
        fingerprint: of the model that it was fitted on.
    """

    weights: torch.Tensor
    fingerprint: str

    @cached_property
    def method(self) -> str:
        """How importance is computed, as an :attr:`importance_method` of the compressor."""
        return f"probe/{hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()[:8]}"

    def importance(self, chunk: ChunkKV, rotary: Rotary, sink: int) -> torch.Tensor:
        """Of every row, float16 [layers, kv_heads, tokens] on the processor, between 0 and 1.

        Args:
            chunk: the encoding.
            rotary: how its layers turn their keys.
            sink: tokens in front of it while it was encoded.
        """
        guessed = features(chunk, rotary, sink) @ self.weights
        return guessed.clamp(max=0).exp().transpose(1, 2).to(torch.float16).contiguous()

    def scorer(self, rotary: Rotary, sink: int) -> ImportanceScorer:
        """The probe as a way to know importance; arguments are those of :meth:`importance`."""
        return ImportanceScorer(
            self.method, lambda _, kv, lead_in: [self.importance(chunk, rotary, sink) for chunk in kv]
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, the weights as float16."""
        weights = self.weights.to(torch.float16).contiguous()
        save_file({"weights": weights}, path, metadata={"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: str | Path) -> ImportanceProbe:
        """Read what :meth:`save` wrote.

        Raises:
            ModelNotFoundError: there is no such file, or it is something else.
        """
        try:
            with safe_open(path, "pt") as file:
                return cls(file.get_tensor("weights").float(), file.metadata()["fingerprint"])
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ModelNotFoundError(
                f"{path} is no probe ({error}); make one with shared-context probe, or use importance='repetition'."
            ) from error


def shipped_probe(fingerprint: str) -> ImportanceProbe | None:
    """The probe that comes with the library for the model of this fingerprint, or None."""
    probes = (ImportanceProbe.load(path) for path in sorted(SHIPPED.glob(f"*/{PROBE_FILE}")))
    return next((probe for probe in probes if probe.fingerprint == fingerprint), None)


def features(chunk: ChunkKV, rotary: Rotary, sink: int) -> torch.Tensor:
    """What a probe sees of each token: its keys as if it stood first, its values, and a constant.

    Returns:
        float32 [layers, tokens, 2 * kv_heads * head_dim + 1].
    """
    keys, values = chunk.dequantized(torch.float32).data.cpu()
    back = -(sink + torch.arange(chunk.tokens))
    parts = [part.transpose(1, 2).flatten(2) for part in (rotate_keys(keys, back, rotary), values)]
    return torch.cat([*parts, torch.ones(chunk.layers, chunk.tokens, 1)], dim=-1)


def fitted(
    scored: Iterable[ChunkKV], rotary: Rotary, sink: int, fingerprint: str, *, ridge: float = 1e-3
) -> ImportanceProbe:
    """The probe that comes nearest to the importance of some encodings: ridge regression, in closed form.

    Args:
        scored: encodings whose importance is known; each is needed once only.
        rotary, sink: as :meth:`ImportanceProbe.importance` takes them.
        fingerprint: of the model.
        ridge: weight of the penalty on large weights, as a share of the features' mean square.
    """
    products: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    for chunk in scored:
        assert chunk.importance is not None
        seen = features(chunk, rotary, sink).double()
        wanted = chunk.importance.double().clamp(min=LEAST).log().transpose(1, 2)
        of_features, of_targets = seen.transpose(1, 2) @ seen, seen.transpose(1, 2) @ wanted
        products = of_features if products is None else products + of_features
        targets = of_targets if targets is None else targets + of_targets
    assert products is not None and targets is not None, "there is no encoding to fit to"
    penalty = ridge * products.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(products.shape[1])
    return ImportanceProbe(torch.linalg.solve(products + penalty, targets).float(), fingerprint)
