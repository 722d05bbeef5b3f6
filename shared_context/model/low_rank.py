"""Low-rank adaptation (LoRA) of the attention's projections: live while it is trained, merged when it is served."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from shared_context.errors import AdapterError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
"""What is adapted of a layer's self-attention, where it has them (Phi-3 keeps q, k and v in one)."""

WITHOUT_KEYS = ("q_proj", "o_proj")
"""What no key or value of the same layer depends on."""


class LowRank(nn.Module):
    """One set of low-rank updates: each adapted weight W becomes ``W + scale * up @ down``.

    Args:
        model: the whole causal language model; it is only looked at.
        layers: its layers that are adapted, from the bottom.
        rank: of each update.
        scale: what each update is multiplied by.
        for_keys: leave out what the keys and values of these layers do not depend on, which is the top layer's
            queries and output.
        first: the lowest layer that is adapted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: int,
        rank: int,
        scale: float,
        *,
        for_keys: bool = False,
        first: int = 0,
    ):
        super().__init__()
        self.scale = scale
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for index, layer in enumerate(model.base_model.layers[first:layers], start=first):
            for name in PROJECTIONS:
                projection = getattr(layer.self_attn, name, None)
                if projection is None or (for_keys and index == layers - 1 and name in WITHOUT_KEYS):
                    continue
                key = f"{index}_{name}"
                out, into = projection.weight.shape
                self.down[key] = nn.Parameter(torch.empty(rank, into, device=projection.weight.device))
                self.up[key] = nn.Parameter(torch.zeros(out, rank, device=projection.weight.device))
                nn.init.kaiming_uniform_(self.down[key], a=math.sqrt(5))

    @contextmanager
    def installed(self, model: PreTrainedModel) -> Iterator[None]:
        """Add the updates to every forward pass of ``model`` while entered, so that they can be trained."""
        handles = []
        for key, down in self.down.items():
            up = self.up[key]

            def add(
                _: nn.Module, args: tuple, out: torch.Tensor, down: nn.Parameter = down, up: nn.Parameter = up
            ) -> torch.Tensor:
                inner = nn.functional.linear(args[0], down.to(args[0].dtype))
                return out + nn.functional.linear(inner, (self.scale * up).to(out.dtype))

            handles.append(projection_of(model, key).register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def merged(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The adapted weights of ``model``, by key, in its dtype; the model keeps its own.

        Raises:
            AdapterError: an update is larger than the dtype holds.
        """
        merged = {}
        for key, down in self.down.items():
            weight = projection_of(model, key).weight
            update = self.scale * (self.up[key].float() @ down.float())
            merged[key] = (weight.float() + update.to(weight.device)).to(weight.dtype)
            if not torch.isfinite(merged[key]).all():
                raise AdapterError(
                    f"The adapter's update of {key} is larger than {weight.dtype} holds; save or fetch it again."
                )
        return merged


def projection_of(model: PreTrainedModel, key: str) -> nn.Module:
    """The projection that a key of :class:`LowRank` names."""
    index, _, name = key.partition("_")
    return getattr(model.base_model.layers[int(index)].self_attn, name)


def by_layer(weights: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """Weights, by the keys of :class:`LowRank`, as ``{layer: {projection: weight}}``."""
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for key, weight in weights.items():
        index, _, name = key.partition("_")
        layers.setdefault(int(index), {})[name] = weight
    return layers


class InjectionLoRA(nn.Module):
    """What is trained for prefix injection: one set for the compressor's pass and one for the decoder's.

    Args:
        model: the whole causal language model.
        layers: M, the injection layers; the compressor has no others.
        rank: of each update.
        alpha: updates are scaled by ``alpha / rank``.
    """

    def __init__(self, model: PreTrainedModel, layers: int, rank: int, alpha: float):
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self.compress = LowRank(model, layers, rank, alpha / rank, for_keys=True)
        self.decode = LowRank(model, model.config.num_hidden_layers, rank, alpha / rank)
