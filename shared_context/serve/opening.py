"""The stores of a server, opened as they are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shared_context.errors import ConfigError, StoreFormatError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.address import is_address, is_store
from shared_context.shards.opening import made_with, open_store
from shared_context.store.store import SharedLLMContextStore


def named(given: Sequence[str]) -> dict[str, str]:
    """Places of stores by the names that requests call them: the folder's without ending, or NAME of NAME=PLACE.

    Raises:
        ConfigError: two have one name.
    """
    places: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals:
            name, place = Path(text).absolute().stem.partition("@")[0], text
        if name in places:
            raise ConfigError(
                f"{places[name]} and {place} would both be called {name!r}: name one of them, NAME=FOLDER."
            )
        places[name] = place
    return places


def open_stores(
    places: Mapping[str, str],
    opened: ExitStack,
    *,
    load: Callable[[str], SharedLLMModel],
    model: str | None = None,
    kv_limit: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, SharedLLMContextStore]:
    """Open stores, each model loaded once.

    Args:
        places: folders or addresses by the stores' names.
        opened: closes them.
        load: loads a model by its name.
        model: name or folder of the model of all; None takes each store's own.
        kv_limit: bytes of keys and values that each keeps on disk from now on.
        options: of some stores by their names, as :func:`~shared_context.shards.opening.open_store` takes them.

    Raises:
        StoreFormatError: at one of the places there is no store.
        SharedContextError: one cannot be opened.
    """
    models: dict[str, SharedLLMModel] = {}
    stores = {}
    for name, place in places.items():
        if not is_store(place):
            raise StoreFormatError(
                f"there is no store in {place}: make one with `shared-context ingest {place} FILE...`, or check the "
                "path"
            )
        wanted = model or made_with(place)["model"]
        if wanted not in models:
            models[wanted] = load(wanted)
        at = place if is_address(place) else Path(place)
        stores[name] = opened.enter_context(open_store(models[wanted], at, **(options or {}).get(name, {})))
        if kv_limit is not None:
            stores[name].limit_kv(kv_limit)
    return stores


def only_model(stores: Mapping[str, SharedLLMContextStore]) -> SharedLLMModel:
    """The model of all stores, for an engine serves one.

    Raises:
        ConfigError: there are several, or it injects in a way that no engine knows.
    """
    models = {id(store.model): store.model for store in stores.values()}
    if len(models) > 1:
        names = " and ".join(sorted(model.name for model in models.values()))
        raise ConfigError(f"The stores are of the models {names}, and an engine serves one: serve them apart.")
    (model,) = models.values()
    if not model.injection.in_cache or model.injection.layers < model.hf_model.config.num_hidden_layers:
        raise ConfigError(
            f"{model.name} injects by {model.injection.kind} into {model.injection.layers} layers, and an engine takes "
            "keys and values of all layers only: leave out --adapter, or --engine."
        )
    return model
