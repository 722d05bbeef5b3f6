"""Pickles of what stands over a store or a model: they say where it is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from shared_context.integrations.whereabouts import by_reference


class PickledByReference(BaseModel):
    """What is pickled without its store and model: where it is read, these are found again.

    A store or model that is open or loaded in that process is taken; otherwise the store is opened by its path, the
    model loaded by its name.

    Raises:
        ConfigError: the store was in the memory of another process, or is closed by now.
        StoreFormatError: the store's folder is gone.
        ModelNotFoundError, ModelMismatchError: there is no model of that name, or it is another one by now.
    """

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {name: by_reference(value) for name, value in state["__dict__"].items()}}
