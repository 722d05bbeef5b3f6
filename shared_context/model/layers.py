"""What the layers of a model differ in: how each turns its keys, and how far back each sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shared_context.errors import UnsupportedModelError
from shared_context.kernels import Rotary, rotate_keys
from shared_context.model.compressor import bottom_layers

PROBED, SHIFT = 8, 5
"""Tokens of the probe, and the positions that it is moved by."""


@dataclass(frozen=True)
class Layers:
    """What the injection has to know of a model's layers, the lowest first.

    Attributes:
        rotary: how each turns its keys.
        windows: tokens that each sees back to, itself included; None sees all.
        fused: whether fused kernels compute their attention: it has neither capped logits nor sinks.
    """

    rotary: Rotary
    windows: tuple[int | None, ...]
    fused: bool = True

    def narrower_than(self, tokens: int) -> bool:
        """Whether some layer sees less than so many tokens."""
        return any(window is not None and window < tokens for window in self.windows)


def windows_of(config: PretrainedConfig) -> tuple[int | None, ...]:
    """For each layer how many tokens it sees back to, itself included; None where it sees all."""
    layers = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        slides = bool(window) and getattr(config, "use_sliding_window", True)
        return (window if slides else None,) * layers
    chunk = getattr(config, "attention_chunk_size", None)
    of_type = {"sliding_attention": window, "chunked_attention": chunk}
    return tuple(of_type.get(kind) or None for kind in types)


@torch.inference_mode()
def measured(model: PreTrainedModel, name: str) -> Layers:
    """Measure on a loaded model how each layer turns its keys: they are computed at two places and compared.

    A few tokens tell at once what no list of model types could: learned or absolute positions hidden in a
    configuration, how channels are paired, positions added to values, layers that have no positions.

    Args:
        model: a causal language model.
        name: how messages call it.

    Raises:
        UnsupportedModelError: where no turn makes the keys of one place those of the other.
    """
    config = model.config

    def refuse(reason: str) -> NoReturn:
        raise UnsupportedModelError(f"{name} ({config.model_type}) cannot be served: {reason}.")

    declared = _declared(model)
    if declared is None:
        refuse("it has no rotary frequencies where transformers' decoder-only models keep them")
    frequencies, kinds = declared
    device = model.device
    ids = torch.arange(3, 3 + PROBED, device=device)[None] % config.vocab_size
    at = torch.arange(PROBED, device=device)[None]
    lower = bottom_layers(model, config.num_hidden_layers)
    try:
        here, there = (lower.key_values(ids, position_ids=at + offset).float() for offset in (0, SHIFT))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        refuse(f"its attention does not keep one key and one value of equal size for each token and head ({error})")
    delta = torch.full((PROBED,), SHIFT)
    half_precision = model.dtype in (torch.bfloat16, torch.float16)
    tolerance = 0.05 if half_precision else 1e-3
    drift = _distance(here[1, 0], there[1, 0])
    # Channels are paired i with i + half; or 2i with 2i + 1; or not at all, where a layer has no positions.
    moved = [rotate_keys(here[0], delta, Rotary(frequencies, tuple(kinds), neighbours)) for neighbours in (False, True)]
    away = torch.stack([(keys - there[0]).flatten(1).norm(dim=1) for keys in (*moved, here[0])])
    turned = away.argmin(dim=0) < 2
    if not turned.any():
        refuse("no layer has positions, so that nothing tells the order of what it reads")
    interleaved = bool(away[1, turned].sum() < away[0, turned].sum())
    at_home, stays = away[int(interleaved)], away[2]
    turned = at_home < stays
    nearest = torch.where(turned.view(-1, 1, 1, 1, 1), moved[int(interleaved)], here[0])
    for number, (found, expected) in enumerate(zip(nearest, there[0], strict=True)):
        # The first layer tells exactly; further up rounding adds up, and what is nearest must be so by far.
        apart = _distance(found, expected)
        near, far = sorted((at_home[number], stays[number]))
        doubtful = not half_precision and near > far / 2
        if doubtful or (number == 0 and max(apart, drift) > tolerance):
            refuse(
                f"keys of its layer {number} moved to another position differ from keys computed there by {apart:.0%}, "
                f"values by {drift:.0%}, so its positions are not plain rotary ones"
            )
    if turned.all():
        rows, own = frequencies, tuple(kinds) if len(frequencies) > 1 else None
    else:  # layers without positions turn by nothing
        rows = torch.cat([frequencies, torch.zeros_like(frequencies[:1])])
        own = tuple(kind if turns else len(frequencies) for kind, turns in zip(kinds, turned.tolist(), strict=True))
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    sinks = any(hasattr(layer.self_attn, "sinks") for layer in model.base_model.layers)
    return Layers(Rotary(rows, own, interleaved), windows_of(config), not (capped or sinks))


def _declared(model: PreTrainedModel) -> tuple[torch.Tensor, list[int]] | None:
    """The frequencies that a model keeps, [kinds, rotary_dim / 2], and which of them are each layer's."""
    rotary, layers = getattr(model.base_model, "rotary_emb", None), model.config.num_hidden_layers
    shared = getattr(rotary, "inv_freq", None)
    if shared is not None:
        return shared[None], [0] * layers
    types = getattr(model.config, "layer_types", None) or []
    of_type = dict(_by_type(rotary, types))
    if not types or set(of_type) != set(types) or len({len(inv_freq) for inv_freq in of_type.values()}) != 1:
        return None
    names = sorted(of_type)
    return torch.stack([of_type[name] for name in names]), [names.index(of) for of in types]


def _by_type(rotary: object, types: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in sorted(set(types)):
        inv_freq = getattr(rotary, f"{name}_inv_freq", None)
        if inv_freq is not None:
            yield name, inv_freq


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest magnitude."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
