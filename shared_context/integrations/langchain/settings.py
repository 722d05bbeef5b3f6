"""What the parts have in common: the model and its generation settings, and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from pydantic import ConfigDict, Field

from shared_context import Completion, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.errors import ConfigError
from shared_context.integrations.loading import chosen, load_model
from shared_context.model.pretrained import DEFAULT_MODEL
from shared_context.shards import open_store
from shared_context.store.embedder import Embedder

PROVIDER = "shared_context"


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


class GenerationSettings(BaseLanguageModel):
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
        model_kwargs: any other field of transformers' GenerationConfig.
    """

    model: SharedLLMModel
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: int = Field(default=256, alias="max_new_tokens", gt=0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, gt=0)
    stop: str | list[str] | None = None
    seed: int | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(populate_by_name=True)

    def __init__(
        self,
        model: SharedLLMModel | str | Path = DEFAULT_MODEL,
        *,
        adapter: str | Path | None = None,
        dtype: str | Any = "auto",
        device: str = "auto",
        **settings: Any,
    ):
        # not in a validator, where pydantic would wrap the errors of loading in its own
        model = load_model(model, adapter=adapter, dtype=dtype, device=device)
        super().__init__(model=model, **settings)

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
            **self.model_kwargs,
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
            **self.model_kwargs,
            **overrides,
            "stop": self._stop_list() if stop is None else stop,
        }


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
