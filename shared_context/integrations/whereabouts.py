"""Where stores and models are, and these again: for what frameworks save, pickle and restore.

No weights and no documents go along: what is loaded or open already is taken, anything else is opened by its name.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError, ModelMismatchError, StoreClosedError, StoreFormatError
from shared_context.integrations.loading import load_model, loaded_model, loaded_with
from shared_context.remote.address import is_address
from shared_context.shards import open_store

_names: WeakKeyDictionary[SharedLLMContextStore, str] = WeakKeyDictionary()


def remember(store: SharedLLMContextStore) -> None:
    """Let :func:`store_again` find this store while somebody holds it."""
    if store not in _names:
        _names[store] = _place(store) or str(uuid.uuid4())
    load_model(store.model)


def whereabouts(store: SharedLLMContextStore) -> dict[str, Any]:
    """What finds a store that :func:`remember` was told of, or makes its like."""
    return {
        "name": _names[store],
        "path": _place(store),
        "namespace": store.namespace_name,
        "model": store.model.name,
        "fingerprint": store.model.fingerprint,
        "embedder": None if store.embedder is None else store.embedder.name,
    }


def _place(store: SharedLLMContextStore) -> str | None:
    """Its folder or address; None in memory."""
    if store.path is None or is_address(store.place):
        return store.place
    return str(store.path.resolve())


def store_again(
    where: dict[str, Any] | None, *, anew: bool = True, model: SharedLLMModel | None = None
) -> SharedLLMContextStore:
    """The store of :func:`whereabouts`: the one that is open, one that is opened again, or a new one in memory.

    Args:
        where: what :func:`whereabouts` gave.
        anew: a new one is made for one that was in memory and is gone.
        model: opens it; None is one that is loaded already, or the one of its model's name.

    Raises:
        ConfigError: ``where`` is missing, or the store was in memory, is gone, and no new one is wanted.
        StoreFormatError: the store's folder is gone.
        ModelNotFoundError: no model of the store's is loaded, and none has its name.
        ModelMismatchError: the model of that name is another one, or the store has an embedder of its own: open the
            store yourself, and make a memory of it before this one is restored.
    """
    if where is None:
        raise ConfigError("the saved memory does not say where its store is: give from_dict(..., store=) the store")
    for store, name in list(_names.items()):
        if (name, store.namespace_name) == (where["name"], where.get("namespace", "")) and _is_open(store):
            return store
    path = where["path"]
    if path is None and not anew:
        raise ConfigError(
            "the store was in memory, and is closed by now or in another process: give SharedLLMContextStore a path, "
            "so that it can be opened again"
        )
    if path is not None and not is_address(path) and not Path(path).is_dir():
        raise StoreFormatError(
            f"the store {path!r}, over which this was saved, is gone: put it back, or give a memory's "
            "from_dict(..., store=) another one"
        )
    model = model or loaded_model(where["fingerprint"]) or load_model(where["model"])
    store = open_store(model, path, embedder=None if where["embedder"] is None else "auto")
    if where.get("namespace"):
        store = store.namespace(where["namespace"])
    remember(store)
    return store


def _is_open(store: SharedLLMContextStore) -> bool:
    try:
        store.conversations()
    except StoreClosedError:
        return False
    return True


def model_again(where: dict[str, Any]) -> SharedLLMModel:
    """The model of :func:`_of_model`: the one that is loaded, or the one of its name.

    Raises:
        ModelNotFoundError: there is none of this name.
        ModelMismatchError: the model of this name is another one, or another adapter was on it.
    """
    found = loaded_model(where["identity"]) or load_model(where["name"], **where["loading"])
    if found.identity != where["identity"]:
        raise ModelMismatchError(
            f"what was pickled ran {where['name']} ({where['identity']}), and what is loaded by that name is "
            f"{found.identity}: give the name and the adapter, not a model with one, before it is pickled"
        )
    return found


def _of_model(model: SharedLLMModel) -> dict[str, Any]:
    load_model(model)  # it can be found while somebody holds it
    loading = {name: value for name, value in loaded_with(model).items() if name != "token"}
    return {"name": model.name, "identity": model.identity, "loading": loading}


def _opened(where: dict[str, Any], model: dict[str, Any], anew: bool) -> SharedLLMContextStore:
    return store_again(where, anew=anew, model=model_again(model))


class _Reference:
    """Stands in a pickle where a store or a model stood, and is that one again when it is read."""

    def __init__(self, thing: SharedLLMContextStore | SharedLLMModel, anew: bool):
        self.thing, self.anew = thing, anew

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.thing, SharedLLMModel):
            return model_again, (_of_model(self.thing),)
        remember(self.thing)
        return _opened, (whereabouts(self.thing), _of_model(self.thing.model), self.anew)


def by_reference(value: Any, *, anew: bool = False) -> Any:
    """What is pickled in the place of ``value``: where it is, if it is a store or a model, and else itself.

    Args:
        value: anything.
        anew: a new store in memory is made for one that is gone.
    """
    return _Reference(value, anew) if isinstance(value, SharedLLMContextStore | SharedLLMModel) else value
