"""Which models can be stacked on themselves, and within what window."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shared_context.errors import UnsupportedModelError
from shared_context.model.layers import Layers, measured, windows_of

ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
"""Types of layers that keep keys and values of single tokens."""

MINIMUM_WINDOW = 1024
"""Tokens. A window below this holds no selection worth making beside a question and an answer."""


def processor_dtype() -> torch.dtype:
    """The type that a processor computes in fastest: bfloat16 where it has instructions for it."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def check_config(config: PretrainedConfig, name: str, minimum_window: int = MINIMUM_WINDOW) -> None:
    """Refuse, before any weights are read, a model whose configuration says that it cannot be served.

    Args:
        config: the model's.
        name: how messages call it.
        minimum_window: tokens that it must be able to read together.

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
    if getattr(config, "return_dict", True) is False:
        refuse("return_dict=False in its config.json has it give its outputs without names; take that out")
    if getattr(config, "alibi", False) or config.model_type in {"bloom", "mpt"}:
        refuse("it uses ALiBi, whose distances cannot be re-written into stored keys")
    if getattr(config, "rope_parameters", None) is None:
        refuse("it has no rotary positions (learned or absolute ones cannot be re-written into stored keys)")
    if getattr(config, "kv_lora_rank", None):
        refuse(
            "it compresses keys and values into a latent (MLA): what it keeps of a token is no key and value for each "
            "head, and the part of it that is turned by positions lies beside the part that is not"
        )
    other = set(getattr(config, "layer_types", None) or ()) - ATTENDING
    if other or getattr(config, "conv_L_cache", None):
        refuse(
            f"some of its layers are no attention ({', '.join(sorted(other)) or 'conv'}): they keep a running state of "
            "all that was read, which cannot be put together from chunks that were read apart"
        )
    if getattr(config, "num_kv_shared_layers", None) or not _alike(config):
        refuse("its layers do not all keep keys and values of their own, of one number of heads and one size")
    if getattr(config, "moe_intermediate_size", None) and getattr(config, "n_routed_experts", 1) is None:
        refuse("its configuration names no number of experts (n_routed_experts)")
    if not windows_of(config):
        refuse(f"it has no layers (num_hidden_layers={config.num_hidden_layers})")
    window = usable_window(config)
    if window < minimum_window:
        refuse(
            f"no layer sees more than {window} tokens (window or sliding window), and a selection with a question "
            f"needs at least {minimum_window}"
        )


def _alike(config: PretrainedConfig) -> bool:
    """Whether a configuration names one number of key-value heads and one size of heads for all layers."""
    try:
        sizes = {getattr(config, name, None) for name in ("head_dim", "global_head_dim")} - {None}
        return isinstance(config.num_key_value_heads, int) and len(sizes) <= 1
    except Exception:  # transformers raises errors of its own for what differs by layer, or is not there
        return False


def usable_window(config: PretrainedConfig) -> int:
    """Tokens that prompt, selection and answer may take together.

    The trained window; the sliding window, where no layer sees further; and for rotary variants that change
    their frequencies with the sequence (dynamic, longrope) the length up to which they stay what the chunks were
    encoded with. Where layers attend within fixed blocks, one such block.
    """
    limits = [config.max_position_embeddings]
    windows = windows_of(config)
    if all(windows):
        limits.append(max(window for window in windows if window))
    types = getattr(config, "layer_types", None) or ()
    limits += [window for window, of in zip(windows, types, strict=False) if of == "chunked_attention"]
    rope = config.rope_parameters
    # by type of layer, where these differ
    for own in rope.values() if all(isinstance(of, dict) for of in rope.values()) else [rope]:
        if own.get("rope_type") == "longrope":
            limits.append(own.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min(limits)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, name: str, used: Iterable[int] = ()) -> None:
    """Refuse a tokenizer that makes tokens which the model has no embedding for.

    Control tokens that are never read may lie behind the last one, as Gemma's for pictures do.

    Args:
        size: tokens that the model has an embedding for.
        name: how messages call the model.
        used: tokens of its prompts.

    Raises:
        UnsupportedModelError: naming both sizes and a token.
    """
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        return
    count = max(vocabulary.values()) + 1
    if count <= size and min(vocabulary.values()) >= 0:
        return
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    control = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} - own - {*used}
    beyond = {id: token for token, id in vocabulary.items() if not 0 <= id < size and id not in control}
    if beyond:
        id = min(beyond)
        raise UnsupportedModelError(
            f"{name} cannot be served: its tokenizer has {count} tokens and its embedding {size} ({beyond[id]!r} has "
            f"the id {id}). Use the tokenizer that it was trained with, or save the model again after "
            f"resize_token_embeddings({count})."
        )


def check_special_ids(config: object, size: int, name: str, file: str) -> None:
    """Refuse a configuration that names a token which there is not.

    Args:
        config: the model's, or that of its generation.
        size: tokens that there are.
        name: how messages call the model.
        file: that the configuration is kept in.

    Raises:
        UnsupportedModelError: naming the setting and its value.
    """
    for setting in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, setting, None)
        ids = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        # Old conversions of Llama say so where nothing is filled up.
        none = setting == "pad_token_id" and value == -1
        if not none and any(id is not None and not (type(id) is int and 0 <= id < size) for id in ids):
            raise UnsupportedModelError(
                f"{name} cannot be served: {setting}={value!r} in its {file} is no token of the {size} that it has. "
                "Put the right id there, or null for none."
            )


def check_in_one_place(model: PreTrainedModel, name: str) -> None:
    """Refuse a loaded model whose layers are on several devices or on none, or fetched there by hooks when they run.

    Raises:
        UnsupportedModelError: naming the model and the reason.
    """
    hooked = next((module for module, of in model.named_modules() if hasattr(of, "_hf_hook")), None)
    places = {str(weight.device) for weight in model.parameters()}
    if hooked is None and len(places) == 1 and "meta" not in places:
        return
    reason = (
        f"accelerate's hooks are on it (on {hooked or 'the whole model'}), as device_map and offloading put them"
        if hooked is not None
        else f"its weights are on {', '.join(sorted(places))}"
    )
    raise UnsupportedModelError(
        f"{name} ({model.config.model_type}) cannot be served: {reason}, and a lower model or an adapter shares its "
        "layers, which have to compute where they are. Load it without device_map and whole, with device= for where."
    )


def check_rotation(model: PreTrainedModel, name: str) -> Layers:
    """What a loaded model's layers differ in; a model whose keys cannot be moved to other positions is refused.

    Raises:
        UnsupportedModelError: naming the model and the reason; see :func:`~shared_context.model.layers.measured`.
    """
    return measured(model, name)
