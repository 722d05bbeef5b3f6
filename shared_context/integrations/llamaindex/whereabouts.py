"""Where a store is, as JSON values, and the store again from these: for memories that are saved and restored."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, StoreClosedError, StoreFormatError
from shared_context.integrations.loading import load_model, loaded_model

_names: WeakKeyDictionary[SharedLLMContextStore, str] = WeakKeyDictionary()


def remember(store: SharedLLMContextStore) -> None:
    """Let :func:`store_again` find this store while somebody holds it."""
    if store not in _names:
        _names[store] = str(store.path.resolve()) if store.path is not None else str(uuid.uuid4())
    load_model(store.model)


def whereabouts(store: SharedLLMContextStore) -> dict[str, Any]:
    """What finds a store that :func:`remember` was told of, or makes its like."""
    return {
        "name": _names[store],
        "path": None if store.path is None else _names[store],
        "namespace": store.namespace_name,
        "model": store.model.name,
        "fingerprint": store.model.fingerprint,
        "embedder": None if store.embedder is None else store.embedder.name,
    }


def store_again(where: dict[str, Any] | None, *, anew: bool = True) -> SharedLLMContextStore:
    """The store of :func:`whereabouts`: the one that is open, one that is opened again, or a new one in memory.

    Args:
        where: what :func:`whereabouts` gave.
        anew: a new one is made for one that was in memory and is gone.

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
    if path is not None and not Path(path).is_dir():
        raise StoreFormatError(
            f"the store {path!r}, which holds the saved memory's conversation, is gone: put it back, or give "
            "from_dict(..., store=) another one"
        )
    model = loaded_model(where["fingerprint"]) or load_model(where["model"])
    store = SharedLLMContextStore(model, path, embedder=None if where["embedder"] is None else "auto")
    return store.namespace(where["namespace"]) if where.get("namespace") else store


def _is_open(store: SharedLLMContextStore) -> bool:
    try:
        store.conversations()
    except StoreClosedError:
        return False
    return True
