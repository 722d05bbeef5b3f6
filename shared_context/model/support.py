"""Which models can be stacked on themselves, and within what window."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from shared_context.errors import UnsupportedModelError
from shared_context.kernels import rotate_keys
from shared_context.model.compressor import bottom_layers

MINIMUM_WINDOW = 1024
"""Tokens. A window below this holds no selection worth making beside a question and an answer."""


def processor_dtype() -> torch.dtype:
    """The type that a processor computes in fastest: bfloat16 where it has instructions for it."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


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
    if getattr(config, "num_key_value_heads", None) is None:
        refuse("its configuration names no key-value heads, so its attention is not of the kind that is read here")
    window = usable_window(config)
    if window < MINIMUM_WINDOW:
        refuse(
            f"its narrowest layer sees {window} tokens (window or sliding window), and a selection with a question "
            f"needs at least {MINIMUM_WINDOW}"
        )
    if getattr(config, "attn_logit_softcapping", None):
        refuse("it caps its attention's logits, which no attention does that reads injected keys and values")


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
def check_rotation(model: PreTrainedModel, name: str) -> None:
    """Measure on the loaded model that moving a key by a delta gives the key computed at the new position.

    A few tokens tell at once what no list of model types could: learned or absolute positions hidden in a
    configuration, interleaved rotary layouts, positions added to values, layers that have no positions.

    Raises:
        UnsupportedModelError: where the moved and the computed keys or values differ.
    """
    inv_freq = getattr(getattr(model.base_model, "rotary_emb", None), "inv_freq", None)
    if inv_freq is None:
        raise UnsupportedModelError(
            f"{name} ({model.config.model_type}) cannot be served: it has no rotary frequencies that all layers share."
        )
    layers = bottom_layers(model, model.config.num_hidden_layers)
    ids = torch.arange(3, 11, device=model.device)[None] % model.config.vocab_size
    shift = 5
    (here, there) = (
        layers.key_values(ids, position_ids=torch.arange(8, device=model.device)[None] + offset).float()
        for offset in (0, shift)
    )
    moved = rotate_keys(here[0], torch.full((8,), shift), inv_freq)
    tolerance = 0.05 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    # The first layer tells exactly; further up rounding adds up, and all that can be told is which key is nearer.
    error, drift = (
        ((a[0] - b[0]).abs().max() / b[0].abs().max().clamp(min=1e-6)).item()
        for a, b in ((moved, there[0]), (here[1], there[1]))
    )
    if max(error, drift) > tolerance:
        raise UnsupportedModelError(
            f"{name} ({model.config.model_type}) cannot be served: keys moved to another position differ from keys "
            f"computed there by {error:.0%}, values by {drift:.0%}, so its positions are not plain rotary ones."
        )
    unmoved = [
        number
        for number, (a, b, before) in enumerate(zip(moved, there[0], here[0], strict=True))
        if (a - b).norm() > (before - b).norm()
    ]
    if unmoved:
        raise UnsupportedModelError(
            f"{name} ({model.config.model_type}) cannot be served: its layers {unmoved} have no rotary positions, so "
            "that keys moved to another position are not what is computed there."
        )
