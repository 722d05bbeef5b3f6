"""The model: one language model as its own compressor and injecting decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shared_context.config import InjectionKind, require
from shared_context.model.adapter import Adapter
from shared_context.model.adapting import AdaptingModel
from shared_context.model.answering import AnsweringModel
from shared_context.model.likelihood import LikelihoodModel
from shared_context.model.loading import load
from shared_context.model.pretrained import DEFAULT_MODEL, HubOptions
from shared_context.model.step_weights import StepWeights


class SharedLLMModel(AnsweringModel, LikelihoodModel, AdaptingModel):
    """One short-context language model, stacked on itself (SharedLLM, arXiv 2603.04759).

    As the compressor it turns chunks of documents into keys and values; as the injecting decoder it answers with
    those injected. Make one with :meth:`from_pretrained`.

    Args:
        model: a causal language model that :func:`check_config` and :func:`check_rotation` let pass, whole on one
            device and without hooks of accelerate's. It gets this library's attention.
        tokenizer: its fast tokenizer.
        name: how messages call it.
        injection: "prefix" (works without training) or "cross_attention" (needs an adapter to be of use).
        injection_layers: M, the bottom layers that see the context; None is all of them.
        context_window: tokens; None is as many as the model serves.
        system_prompt: system message of prompts that bring none; None is the library's.
        chat_template_kwargs: arguments of the chat template, such as ``{"enable_thinking": False}`` for Qwen3.
        fingerprint: of the checkpoint, where a cast to float16 has changed the weights; None is that of the weights.
        step_weights: "int8" or "int4" decodes with quantised copies of the weights, which is faster on a processor;
            None decodes with the weights as they are. Chunks and prompts are read with these in any case.

    Attributes:
        hf_model, tokenizer, name, context_window: as above.
        fingerprint: of the weights in the checkpoint, whatever dtype they were loaded in, and of the vocabulary.
        prompt_format: how prompts are rendered.
        ends: ids of the tokens that end an answer.
        injection: how the decoder is shown the context.
        compressor: encodes chunks.
        probe: guesses importance, for stores that ask for it; None is the one that ships for the model, if any.
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        adapter: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        injection: InjectionKind | None = None,
        injection_layers: int | None = None,
        context_window: int | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        step_weights: StepWeights | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        **model_options: Any,
    ) -> SharedLLMModel:
        """Load a model.

        Args:
            name_or_path: "smollm2-135m-instruct" (the embedded default), a Hugging Face name, a folder, or a GGUF file,
                whose weights are unpacked; one of a repository or a folder is named by ``gguf_file`` beside it.
            adapter: a trained adapter, which brings its injection and layers: "factoid", which ships with the library
                (short answers to questions of fact, for the embedded default only), a folder, or a repository on the
                Hub. None leaves the model as it is, which serves every kind of request.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: a torch dtype or its name; "auto" is the checkpoint's own, or float32 on a processor that has no
                bfloat16 arithmetic.
            injection: "prefix" where None.
            injection_layers: M, the bottom layers that see the context; None is all of them.
            context_window: tokens; None is as many as the model serves.
            system_prompt: system message of prompts that bring none; None is the library's.
            chat_template_kwargs: arguments of the chat template, such as ``{"enable_thinking": False}`` for Qwen3.
            step_weights: "int8" or "int4" decodes with quantised copies of the weights, which is faster on a processor;
                None decodes with the weights as they are. Chunks and prompts are read with these in any case.
            revision: branch, tag or commit of the model's repository on the Hub; None is its main branch.
            token: for a repository that is not public; None is the one of ``hf auth login``.
            cache_dir: folder of the Hugging Face cache; None is its usual one.
            **model_options: passed to ``AutoModelForCausalLM.from_pretrained``. ``quantization_config`` loads weights
                in 8 or 4 bits by torchao or bitsandbytes; stores and adapters of other weights are not for these.

        Raises:
            ModelNotFoundError: where there are no weights of that name, or they are incomplete or damaged.
            UnsupportedModelError: where the model cannot be stacked on itself, with the reason.
            ModelMismatchError, AdapterError: where the adapter belongs to another model or is damaged.
            ConfigError: where a setting is out of range, or cannot be honoured.
        """
        trained = Adapter.from_pretrained(adapter) if adapter is not None else None
        if trained is not None:
            given = {"injection": injection, "injection_layers": injection_layers}
            for setting, value in given.items():
                own = getattr(trained.config, setting)
                require(value in (None, own), setting, value, f"the adapter in {adapter} was trained with {own!r}")
            injection, injection_layers = trained.config.injection, trained.config.injection_layers
        hub: HubOptions = {"revision": revision, "token": token, "cache_dir": cache_dir}
        model, tokenizer, checkpoint = load(name_or_path, device=device, dtype=dtype, hub=hub, options=model_options)
        shared = cls(
            model,
            tokenizer,
            name=str(name_or_path),
            injection=injection or "prefix",
            injection_layers=injection_layers,
            context_window=context_window,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            fingerprint=checkpoint,
            step_weights=step_weights,
        )
        if trained is not None:
            shared.load_adapter(trained)
        return shared

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedLLMModel:
        return self  # what frameworks copy shares its weights

    def __repr__(self) -> str:
        return f"SharedLLMModel({self.name!r}, {self.injection.kind} over {self.compressor.layers} layers)"
