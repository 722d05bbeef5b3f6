"""What the parts have in common: the model and its generation settings, and the store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from pydantic import ConfigDict, Field
from transformers import GenerationConfig

from shared_context import Completion, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.errors import ConfigError
from shared_context.integrations.langchain.pickles import PickledByReference
from shared_context.integrations.loading import chosen, load_model
from shared_context.model.pretrained import DEFAULT_MODEL
from shared_context.shards import open_store
from shared_context.store.embedder import Embedder

PROVIDER = "shared_context"

_OVER_A_NETWORK = {"api_key", "base_url", "max_retries", "timeout"}
"""Standard settings of LangChain's chat models that mean nothing for one that runs here, and are passed over."""


def of_type(name: str, value: object, wanted: Any, described: str) -> None:
    """Raise ConfigError unless ``value`` is a ``wanted``, which ``described`` says in words."""
    if not isinstance(value, wanted):
        raise ConfigError(f"{name} is a {type(value).__name__}: must be {described}")


def new_or_given(
    store: SharedLLMContextStore | None,
    model: SharedLLMModel | str | Path,
    path: str | Path | None,
    config: StoreConfig | None,
    embedder: Embedder | Literal["auto"] | None,
    **loading: Any,
) -> SharedLLMContextStore:
    """``store``, or where it is None a new one, of a model that is loaded with ``loading``.

    Raises:
        ConfigError: a store comes with settings for a new one.
    """
    of_type("store", store, SharedLLMContextStore | None, "a SharedLLMContextStore; path= is for a folder")
    if store is None:
        return open_store(load_model(model, **loading), path, config=config, embedder=embedder)
    if not (path is None and config is None and embedder == "auto" and not chosen(loading)):
        raise ConfigError(
            f"store= is given; path, config, embedder, {', '.join(loading)} are settings of a new one: leave them out"
        )
    return store


class GenerationSettings(PickledByReference, BaseLanguageModel):
    """The model and how it generates. Every setting can be overridden in a call, or with ``bind``.

    Args:
        model: a SharedLLMModel, or the name or folder of one, which is loaded now.
        adapter, dtype, device: as in ``SharedLLMModel.from_pretrained``, where ``model`` is a name.
        temperature: 0 is greedy.
        max_tokens: most tokens of an answer; ``max_new_tokens`` is the same.
        top_p: sample from the smallest set of tokens that holds this probability.
        top_k: sample from this many tokens.
        stop: generation ends before the first of these strings.
        seed: makes sampling repeatable.
        model_kwargs: further arguments of ``from_pretrained`` where ``model`` is a name (system_prompt, revision, ...).
        generate_kwargs: further generation settings of transformers, by their names there.

    Raises:
        ConfigError: a setting is none of these.
    """

    model: SharedLLMModel
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: int = Field(default=256, alias="max_new_tokens", gt=0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, gt=0)
    stop: str | list[str] | None = None
    seed: int | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(populate_by_name=True)

    def __init__(
        self,
        model: SharedLLMModel | str | Path = DEFAULT_MODEL,
        *,
        adapter: str | Path | None = None,
        dtype: str | Any = "auto",
        device: str = "auto",
        model_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ):
        known = {name for field, about in type(self).model_fields.items() for name in (field, about.alias) if name}
        if unknown := sorted(settings.keys() - known - _OVER_A_NETWORK):
            raise ConfigError(
                f"{type(self).__name__} has no setting {', '.join(unknown)}: what else the model is loaded with goes "
                "into model_kwargs, further settings of generation into generate_kwargs"
            )
        of_type("model_kwargs", model_kwargs, dict | None, "a dict of arguments by their names")
        of_type("generate_kwargs", generate_kwargs, dict | None, "a dict of settings by their names")
        loading, misplaced = _divided(model_kwargs or {})
        # not in a validator, where pydantic would wrap the errors of loading in its own
        options = {"adapter": adapter, "dtype": dtype, "device": device, **loading}
        settings["model"] = load_model(model, **options)
        settings |= {"model_kwargs": loading, "generate_kwargs": {**misplaced, **(generate_kwargs or {})}}
        super().__init__(**settings)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on; also the key of LangChain's caches."""
        return {
            "model_name": self.model.name,
            "model_identity": self.model.identity,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "top_k": self.top_k,
            # Under "stop" LangChain writes what the call passes, in place of what stands there.
            "own_stop": self.stop,
            "seed": self.seed,
            **self.generate_kwargs,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        model = kwargs.get("model", self.model)
        kwargs["model"] = model.name if isinstance(model, SharedLLMModel) else str(model)
        if "max_new_tokens" in kwargs:
            kwargs["max_tokens"] = kwargs["max_new_tokens"]
        params = super()._get_ls_params(stop=stop or self._stop_list(), **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own token ids of ``text``, without special tokens."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.model.tokenizer.encode(text, add_special_tokens=False)

    def _stop_list(self) -> list[str] | None:
        return [self.stop] if isinstance(self.stop, str) else self.stop or None

    def _call_arguments(self, stop: list[str] | None, overrides: dict[str, Any]) -> tuple[SharedLLMModel, dict]:
        """The model of one call, and the keyword arguments for its ``complete`` or ``stream``."""
        overrides = {key: value for key, value in overrides.items() if key != "stream"}  # LangChain's own switch
        model = load_model(overrides.pop("model", self.model))
        if "max_tokens" in overrides:
            overrides["max_new_tokens"] = overrides.pop("max_tokens")
        return model, {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            **self.generate_kwargs,
            **overrides,
            "stop": self._stop_list() if stop is None else stop,
        }


def _divided(model_kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for loading a model, and settings for generation that stand among them as they did in 0.1."""
    known = vars(GenerationConfig())
    misplaced = {name: value for name, value in model_kwargs.items() if name in known}
    if misplaced:
        warnings.warn(
            f"model_kwargs={misplaced!r}: settings of generation go into generate_kwargs; from version 0.3 "
            "model_kwargs has only what a model is loaded with",
            DeprecationWarning,
            stacklevel=3,
        )
    return {name: value for name, value in model_kwargs.items() if name not in misplaced}, misplaced


def usage_of(completion: Completion) -> UsageMetadata:
    """Token counts of one completion. Injected KV entries are input that was read from a cache."""
    usage = UsageMetadata(
        input_tokens=completion.prompt_tokens + completion.context_entries,
        output_tokens=completion.completion_tokens,
        total_tokens=completion.prompt_tokens + completion.context_entries + completion.completion_tokens,
    )
    if completion.context_entries:
        usage["input_token_details"] = InputTokenDetails(cache_read=completion.context_entries)
    return usage


def details_of(model: SharedLLMModel, completion: Completion) -> dict[str, Any]:
    """What a response says of itself: seconds to the first token, KV entries injected, why it ended."""
    return {
        "model_name": model.name,
        "model_provider": PROVIDER,
        "finish_reason": completion.finish_reason,
        "time_to_first_token": completion.time_to_first_token,
        "context_entries": completion.context_entries,
    }
