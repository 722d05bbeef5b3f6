"""The parts of a model that is stacked on itself, and what they are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared_context.config import InjectionKind, one_of, require, require_count
from shared_context.model.adapter import Adapter
from shared_context.model.attention import ATTENTION
from shared_context.model.compressor import Compressor
from shared_context.model.constraints import ConstraintCompiler
from shared_context.model.cross_attention import CrossAttentionInjection
from shared_context.model.decoder import InjectingDecoder
from shared_context.model.decoding import end_tokens
from shared_context.model.identity import arithmetic
from shared_context.model.identity import fingerprint as fingerprint_of
from shared_context.model.importance import REQUEST
from shared_context.model.injection import PrefixInjection
from shared_context.model.probe import ImportanceProbe
from shared_context.model.prompt import SYSTEM_PROMPT, PromptFormat
from shared_context.model.requests import RequestReader
from shared_context.model.step_weights import Stepping, StepWeights
from shared_context.model.support import (
    check_config,
    check_in_one_place,
    check_rotation,
    check_special_ids,
    check_vocabulary,
    usable_window,
)
from shared_context.model.tokenization import TokenizedText, check_text, tokenize


class StackedModel:
    """One language model as compressor and injecting decoder: what answering, scoring and adapting share.

    Arguments and attributes are those of :class:`~shared_context.SharedLLMModel`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        injection: InjectionKind = "prefix",
        injection_layers: int | None = None,
        context_window: int | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
        step_weights: StepWeights | None = None,
    ):
        one_of("injection", injection, InjectionKind)
        answers = isinstance(model, nn.Module) and hasattr(model, "generation_config")
        require(answers, "model", type(model).__name__, "must be a causal language model of transformers")
        fast = getattr(tokenizer, "is_fast", False)
        require(fast, "tokenizer", type(tokenizer).__name__, "must be the model's fast tokenizer")
        check_config(model.config, name, minimum_window=1)
        check_in_one_place(model, name)
        if model.config._attn_implementation != ATTENTION:  # another one would pass over what is injected
            model.set_attn_implementation(ATTENTION)
        layers = model.config.num_hidden_layers
        injection_layers = layers if injection_layers is None else injection_layers
        require_count("injection_layers", injection_layers, "layers")
        require(
            1 <= injection_layers <= layers, "injection_layers", injection_layers, f"must lie between 1 and {layers}"
        )
        widest = usable_window(model.config)
        context_window = widest if context_window is None else context_window
        require_count("context_window", context_window, "tokens")
        injection_layers, context_window = int(injection_layers), int(context_window)
        require(1 <= context_window <= widest, "context_window", context_window, f"{name} serves 1 to {widest} tokens")
        self.hf_model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint_of(model, tokenizer) if fingerprint is None else fingerprint
        self.context_window = context_window
        self.system_prompt = SYSTEM_PROMPT if system_prompt is None else system_prompt
        check_text("system_prompt", self.system_prompt)
        self.prompt_format = PromptFormat(tokenizer, self.system_prompt, chat_template_kwargs)
        size = model.get_input_embeddings().num_embeddings
        prefix = self.prompt_format.prefix
        request = self.prompt_format.render([{"role": "user", "content": REQUEST}], with_context=True).suffix
        check_vocabulary(tokenizer, size, name, (*prefix, *request))
        check_special_ids(model.generation_config, size, name, "generation_config.json")
        self.ends = end_tokens(model, tokenizer, self.prompt_format)
        measured = check_rotation(model, name)
        self.injection: PrefixInjection | CrossAttentionInjection = (
            PrefixInjection(
                injection_layers,
                measured.rotary,
                windowed=measured.narrower_than(context_window),
                fused=measured.fused,
            )
            if injection == "prefix"
            else CrossAttentionInjection(model, injection_layers, measured.rotary)
        )
        stepping = None if step_weights is None else Stepping(step_weights, model.device)
        unserved = injection != "prefix" or getattr(model, "is_quantized", False)
        mend = "it is for prefix injection and for weights in floating point; leave it out"
        require(stepping is None or not unserved, "step_weights", step_weights, mend)
        self._decoder = InjectingDecoder(model, tokenizer, self.injection, len(prefix), context_window, stepping)
        # Hooks of cross-attention are on layers that the compressor has too.
        alone = None if injection == "prefix" else self._decoder.lock
        self.compressor = Compressor(model, injection_layers, prefix, request, context_window, alone)
        self._requests = RequestReader(name, self.prompt_format, self.tokenize, context_window, self.injection.in_cache)
        self._constraints = ConstraintCompiler(tokenizer, model.config.vocab_size)
        self._adapter: Adapter | None = None
        self.probe: ImportanceProbe | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf_model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and KV."""
        return self.hf_model.dtype

    @property
    def identity(self) -> str:
        """What keys and values are marked with: the weights, what else they are computed by, the layers, the dtype.

        Those of another engine are marked with its name: but for rounding they are this process's own, and not mixed.
        """
        prefix = hashlib.sha256(f"{self.prompt_format.prefix}{arithmetic(self.hf_model)}".encode()).hexdigest()[:8]
        adapter = f"/{self._adapter.digest}" if self._adapter is not None else ""
        dtype = str(self.dtype).removeprefix("torch.")
        engine = f"/{self.compressor.engine.name}" if self.compressor.engine is not None else ""
        return f"{self.fingerprint}/{prefix}/{self.compressor.layers}/{dtype}{adapter}{engine}"

    def count_tokens(self, text: str) -> int:
        """Tokens of a text on its own."""
        return len(self.tokenize(text))

    def tokenize(self, text: str) -> TokenizedText:
        """A document's tokens with the characters they stand for."""
        return tokenize(self.tokenizer, text)
