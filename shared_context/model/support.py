"""Which models can be stacked on themselves, and within what window."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shared_context.errors import UnsupportedModelError
from shared_context.kernels import rotate_keys
from shared_context.model.compressor import bottom_layers

MINIMUM_WINDOW = 1024
"""Tokens. A window below this holds no selection worth making beside a question and an answer."""


def check_config(config: PretrainedConfig, name: str) -> None:
    """Refuse, before any weights are read, a model whose configuration says that it cannot be served.

    Raises:
        UnsupportedModelError: naming the model and the reason.
    """

    def refuse(reason: str) -> None:
        raise UnsupportedModelError(
            f"{name} ({config.model_type}) cannot be served: {reason}. "
            "Choose a decoder-only model with rotary positions, such as Llama, Mistral, Qwen, Phi-3, OLMo-2 or SmolLM."
        )

    if config.is_encoder_decoder:
        refuse("it is an encoder-decoder, and context is injected into the self-attention of a decoder-only model")
    if getattr(config, "alibi", False) or config.model_type in {"bloom", "mpt"}:
        refuse("it uses ALiBi, whose distances cannot be re-written into stored keys")
    if getattr(config, "rope_parameters", None) is None:
        refuse("it has no rotary positions (learned or absolute ones cannot be re-written into stored keys)")
    window = usable_window(config)
    if window < MINIMUM_WINDOW:
        refuse(
            f"its narrowest layer sees {window} tokens (window or sliding window), and a selection with a question "
            f"needs at least {MINIMUM_WINDOW}"
        )


def usable_window(config: PretrainedConfig) -> int:
    """Tokens that prompt, selection and answer may take together.

    The trained window; the narrowest sliding window, where layers have one; and for rotary variants that change
    their frequencies with the sequence (dynamic, longrope) the length up to which they stay what the chunks were
    encoded with.
    """
    limits = [config.max_position_embeddings]
    layer_types = getattr(config, "layer_types", None)
    sliding = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in layer_types if layer_types else getattr(config, "use_sliding_window", True)
    if sliding and slides:
        limits.append(sliding)
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        limits.append(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min(limits)


@torch.inference_mode()
def check_rotation(model: PreTrainedModel, inv_freq: torch.Tensor, name: str) -> None:
    """Measure on the loaded model that moving a key by a delta gives the key computed at the new position.

    One layer over a few tokens tells at once what no list of model types could: learned or absolute positions hidden
    in a configuration, interleaved rotary layouts, positions added to values.

    Raises:
        UnsupportedModelError: where the moved and the computed keys or values differ.
    """
    layer = bottom_layers(model, 1)
    ids = torch.arange(3, 11, device=model.device)[None] % model.config.vocab_size
    shift = 5
    (here, there) = (
        layer.key_values(ids, position_ids=torch.arange(8, device=model.device)[None] + offset) for offset in (0, shift)
    )
    moved = rotate_keys(here[0], torch.full((8,), shift, device=model.device), inv_freq)
    tolerance = 0.05 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    scale = there[0].float().abs().max().clamp(min=1e-6)
    error = ((moved.float() - there[0].float()).abs().max() / scale).item()
    drift = ((here[1].float() - there[1].float()).abs().max() / there[1].float().abs().max().clamp(min=1e-6)).item()
    if max(error, drift) > tolerance:
        raise UnsupportedModelError(
            f"{name} ({model.config.model_type}) cannot be served: keys moved to another position differ from keys "
            f"computed there by {error:.0%}, values by {drift:.0%}, so its positions are not plain rotary ones."
        )
