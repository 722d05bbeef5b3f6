"""Weights for single steps: quantised copies that an answer is decoded with on a processor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from shared_context.config import one_of, require

StepWeights = Literal["int8", "int4"]
"""Weights in 8 bits with a scale for each output; or in 4 bits with a scale and a least value for every 32 inputs, but
for those that give the logits, which stay in 8 bits: in fewer they would change more answers than all others do."""

GROUP = 32
"""Inputs that share a scale in 4 bits."""


class StepLinear(nn.Module):
    """A linear layer that is read in fewer bits where each row of a batch brings one token.

    A step of an answer multiplies each weight with one vector, so that it takes as long as reading the weights does.
    Longer text is limited by arithmetic and is read with the weight as it was loaded: keys and values of chunks, and
    so what stores hold, stay the same.

    Args:
        linear: the layer as it was loaded, in floating point and on a processor.
        bits: of the copy.
    """

    def __init__(self, linear: nn.Linear, bits: StepWeights):
        super().__init__()
        self._linear = linear
        weight = linear.weight.detach().float()
        self._multiply: Callable[..., torch.Tensor]
        if bits == "int8":
            scale = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
            packed = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()
            self._multiply = torch._weight_int8pack_mm
        else:
            groups = weight.unflatten(1, (-1, GROUP))
            least, most = groups.amin(dim=2), groups.amax(dim=2)
            scale = (most - least).clamp(min=1e-8) / 15
            numbers = ((groups - least[..., None]) / scale[..., None]).round().clamp(0, 15)
            middle = torch.stack([scale, least + 8 * scale], dim=2).transpose(0, 1).contiguous()
            stored = torch._convert_weight_to_int4pack_for_cpu(numbers.flatten(1).int(), 1)
            packed = stored, middle.bfloat16()
            self._multiply = _four_bit_product
        self._packed = packed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-2] != 1:
            return self._linear(x)
        out = self._multiply(x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous(), *self._packed).to(x.dtype)
        out = out.view(*x.shape[:-1], -1)
        return out if self._linear.bias is None else out + self._linear.bias


def _four_bit_product(x: torch.Tensor, stored: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return torch._weight_int4pack_mm_for_cpu(x, stored, GROUP, scales)


class Stepping:
    """Makes models that decode with quantised weights, each weight quantised once however many of them share it.

    Args:
        bits: of the copies.
        device: where the models are.

    Raises:
        ConfigError: they are not on a processor.
    """

    def __init__(self, bits: StepWeights, device: torch.device):
        one_of("step_weights", bits, StepWeights)
        mend = f"it is for processors, and the model is on {device}; leave it out"
        require(device.type == "cpu", "step_weights", bits, mend)
        self._bits = bits
        self._made: dict[int, StepLinear] = {}

    def __call__(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model that shares everything with another, its hooks too, but steps through copies of its linear layers."""
        head = model.get_output_embeddings()
        return _replaced(model, lambda linear: self._step(linear, "int8" if linear is head else self._bits))

    def _step(self, linear: nn.Linear, bits: StepWeights) -> nn.Module:
        outputs, inputs = linear.weight.shape
        if outputs % 16 or inputs % GROUP:  # the kernels know no others
            return linear
        known = self._made.get(id(linear.weight))
        if known is None:
            known = self._made[id(linear.weight)] = StepLinear(linear, bits)
        return known


def _replaced(module: nn.Module, replace: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A module that shares everything with another but its linear layers."""
    if type(module) is nn.Linear:
        return replace(module)
    children = {name: child and _replaced(child, replace) for name, child in module._modules.items()}
    if children == module._modules:
        return module
    own = copy.copy(module)
    own._modules = children
    return own
