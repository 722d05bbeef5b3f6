"""Adapting: an adapter's weights put to work in the compressor and the decoder."""

from __future__ import annotations

from shared_context.errors import AdapterError
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.compressor import Compressor, with_projections
from shared_context.model.cross_attention import CrossAttentionInjection
from shared_context.model.decoder import InjectingDecoder
from shared_context.model.low_rank import InjectionLoRA, by_layer


def check_injection(config: AdapterConfig, decoder: InjectingDecoder, name: str) -> None:
    """Refuse an adapter for another injection than the model's, and any for weights that it cannot be merged into.

    Raises:
        AdapterError: naming both.
    """
    if getattr(decoder.hf_model, "is_quantized", False):
        raise AdapterError(
            f"{name} has quantised weights, and an adapter is merged into weights in floating point; load the model "
            "without quantization_config. On a processor step_weights decodes in fewer bits, with an adapter too."
        )
    injection = decoder.injection
    own = injection.kind, injection.layers
    its = config.injection, config.injection_layers
    if own != its:
        raise AdapterError(
            f"The adapter is for {its[0]} injection over {its[1]} layers, and {name} has {own[0]} injection "
            f"over {own[1]}; pass the adapter to from_pretrained, which takes both from it."
        )


def put_to_work(adapter: Adapter, compressor: Compressor, decoder: InjectingDecoder) -> None:
    """Have both compute with an adapter's weights; the model's own stay as they are.

    Raises:
        AdapterError: where a tensor is missing or reshaped.
    """
    config, model, injection = adapter.config, decoder.hf_model, decoder.injection
    if (config.rank or 0) > model.config.hidden_size:  # memory is taken by it, so a file's word does not do
        raise AdapterError(
            f"The adapter's rank is {config.rank}, and the model is no wider than {model.config.hidden_size}; save or "
            "fetch the adapter again."
        )
    if isinstance(injection, CrossAttentionInjection):
        injection.adapt_upper(model, config.rank, config.alpha)
        adapter.load_into(injection)
    else:
        assert config.rank is not None and config.alpha is not None  # what an adapter of prefix injection has
        lora = InjectionLoRA(model, config.injection_layers, config.rank, config.alpha)
        adapter.load_into(lora)
        reading = by_layer(lora.decode.merged(model))
        compressor.adapt(model, by_layer(lora.compress.merged(model)), reading)
        decoder.adapt(with_projections(model, reading))
