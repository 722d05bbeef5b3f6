"""Adapting: an adapter's weights put to work in the compressor and the decoder; and what is known of importance."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from shared_context.config import ImportanceMethod, Rows
from shared_context.errors import AdapterError, ConfigError
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.compressor import Compressor, with_projections
from shared_context.model.cross_attention import CrossAttentionInjection
from shared_context.model.decoder import InjectingDecoder
from shared_context.model.importance import ImportanceScorer
from shared_context.model.low_rank import InjectionLoRA, by_layer
from shared_context.model.probe import ImportanceProbe, shipped_probe
from shared_context.model.stacked import StackedModel


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


class AdaptingModel(StackedModel):
    """A model that takes adapters, and probes of importance."""

    def load_adapter(self, adapter: Adapter) -> None:
        """Take an adapter's weights.

        Those of prefix injection are merged into copies of the attention's projections, one for the compressor and one
        for the decoder, so that serving costs no step more and no one has to switch between weights. The model's own
        stay as they are: they answer prompts without a context, and node codes are made of them.

        Raises:
            ModelMismatchError: where it was trained on another base model.
            AdapterError: where the weights are quantised, it is for another injection, or a tensor is missing or
                reshaped.
        """
        check_injection(adapter.config, self._decoder, self.name)
        adapter.check_base(self.name, self.fingerprint)
        put_to_work(adapter, self.compressor, self._decoder)
        self._adapter = adapter

    def adapter(self) -> Adapter | None:
        """The trained weights on top of the base model, to be saved with ``save_pretrained``; None where it has none.

        Those of cross-attention injection are the weights as they are now, described as the adapter that was loaded.
        """
        if not isinstance(self.injection, CrossAttentionInjection):
            return self._adapter
        if self._adapter is not None:
            return replace(self._adapter, weights=self.injection.state_dict())
        config = AdapterConfig(self.name, self.fingerprint, self.injection.kind, self.injection.layers)
        return Adapter(config, self.injection.state_dict())

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter was loaded."""
        return self._adapter is not None

    @property
    def reading_model(self) -> PreTrainedModel:
        """The model that answers behind a context: with its adapter's decoding weights, or ``hf_model`` without one."""
        return self._decoder.reading_model

    @property
    def compressing_model(self) -> PreTrainedModel:
        """The model that chunks are encoded by: with its adapter's compressing weights, or ``hf_model`` without one."""
        return with_projections(self.hf_model, self.compressor.projections) if self.has_adapter else self.hf_model

    @property
    def rows(self) -> Rows:
        """Which rows coarse grains keep where nothing else is asked for: as the adapter is served."""
        return "importance" if self._adapter is None else self._adapter.config.rows

    @property
    def has_probe(self) -> bool:
        """Whether there is a probe for the model as it was loaded."""
        return self._usable_probe() is not None

    def _usable_probe(self) -> ImportanceProbe | None:
        """The probe of one's own, or the one that ships, where it is for these weights and all layers are injected."""
        probe = self.probe or (shipped_probe(self.fingerprint) if self._adapter is None else None)
        whole = self.compressor.layers == self.hf_model.config.num_hidden_layers
        return probe if probe is not None and whole and probe.fingerprint == self.fingerprint else None

    def importance_scorer(self, method: ImportanceMethod) -> ImportanceScorer:
        """A way to know how much the model needs each row of a chunk.

        Raises:
            ConfigError: there is no probe for the model as it is.
        """
        if method == "repetition":
            return ImportanceScorer(self.compressor.importance_method, self.compressor.importance)
        probe = self._usable_probe()
        if probe is None:
            raise ConfigError(
                f"importance={method!r}: there is no probe for all layers of {self.name} as it was loaded; fit one "
                "with shared-context probe and set model.probe, or use 'repetition'"
            )
        return probe.scorer(self.injection.rotary, len(self.prompt_format.prefix))
