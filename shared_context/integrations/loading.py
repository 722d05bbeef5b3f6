"""Models by name, loaded once for all that ask for the same one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from shared_context import SharedLLMModel
from shared_context.errors import ConfigError

_DEFAULTS = (("adapter", None), ("dtype", "auto"), ("device", "auto"))

_loading, _noting = Lock(), Lock()
_in_use: WeakKeyDictionary[SharedLLMModel, None] = WeakKeyDictionary()  # the one given last is the last
_options: WeakKeyDictionary[SharedLLMModel, dict[str, Any]] = WeakKeyDictionary()


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``SharedLLMModel.from_pretrained`` that are not at their defaults."""
    return {name: value for name, value in options.items() if (name, value) not in _DEFAULTS}


@lru_cache(maxsize=2)
def _load_by_name(name: str, **options: Any) -> SharedLLMModel:
    return SharedLLMModel.from_pretrained(name, **options)


def load_model(model: SharedLLMModel | str | Path, **options: Any) -> SharedLLMModel:
    """The model itself, or the one of this name.

    The two models last asked for by name and options stay loaded, so that every object that names one shares its
    weights.

    Args:
        model: a loaded model, or the name or folder of one.
        **options: of ``SharedLLMModel.from_pretrained``; one that has its default is as good as left out.

    Raises:
        ConfigError: it is neither, or options come with a model that is loaded already.
    """
    options = chosen(options)
    if isinstance(model, SharedLLMModel):
        if options:
            raise ConfigError(
                f"{', '.join(options)}: how a model is loaded that is given by name, and {model.name!r} is loaded "
                "already; leave it out, or give the name"
            )
        with _noting:
            _in_use.pop(model, None)
            _in_use[model] = None
        return model
    if not isinstance(model, str | Path):
        raise ConfigError(f"model={model!r}: must be a SharedLLMModel, or the name or folder of a model")
    try:
        hash(tuple(options.values()))
    except TypeError:  # a dict among them, say: it cannot be recognised when it is asked for again
        loaded = SharedLLMModel.from_pretrained(model, **options)
    else:
        with _loading:  # two threads that name a model at once load it once
            loaded = _load_by_name(str(model), **dict(sorted(options.items())))
    _options[loaded] = options
    return load_model(loaded)


def loaded_with(model: SharedLLMModel) -> dict[str, Any]:
    """The options that :func:`load_model` loaded a model with; none where the model was given to it."""
    return _options.get(model, {})


def loaded_model(mark: str) -> SharedLLMModel | None:
    """A model of this fingerprint or identity that :func:`load_model` has given to somebody who still holds it.

    Of several it is the one given last.
    """
    with _noting:
        given = list(_in_use)
    return next((model for model in reversed(given) if mark in (model.fingerprint, model.identity)), None)
