"""Copies and pickles of what stands over a store or a model: they share it, or say where it is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import BaseModel, PrivateAttr

from shared_context.integrations.whereabouts import remember, store_again, whereabouts

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore


class Sharing(BaseModel):
    """Of what LlamaIndex copies and pickles: a deep copy shares what is private to it, a pickle holds none of that."""

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        shared = (self.__pydantic_private__ or {}).values()
        return super().__deepcopy__({**(memo or {}), **{id(value): value for value in shared}})

    def __getstate__(self) -> dict[str, Any]:
        # Of what is private LlamaIndex would pickle what it can, weights among it, and leave out the rest unsaid.
        bare = self.model_copy()
        bare.__pydantic_private__ = dict.fromkeys(self.__pydantic_private__ or {})
        return {**super(Sharing, bare).__getstate__(), "elsewhere": self._elsewhere()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Not LlamaIndex's, which calls __init__ with the fields alone.
        fields = {name: value for name, value in state.items() if name != "elsewhere"}
        BaseModel.__setstate__(self, fields)
        self._find_again(state["elsewhere"])

    def _elsewhere(self) -> Any:
        """What finds again, in another process too, what is private to it; something that can be pickled."""
        raise NotImplementedError

    def _find_again(self, elsewhere: Any) -> None:
        """Set what is private from what :meth:`_elsewhere` gave."""
        raise NotImplementedError


class OverStore(Sharing):
    """What stands over a store, which it has in ``_store``."""

    _store: Any = PrivateAttr()

    def _elsewhere(self) -> Any:
        remember(self._store)
        return whereabouts(self._store)

    def _find_again(self, elsewhere: Any) -> None:
        """Open the store again, unless it is open.

        Raises:
            ConfigError: it was in the memory of another process, or is closed by now.
            StoreFormatError, ModelNotFoundError, ModelMismatchError: as :func:`store_again`.
        """
        self._store = store_again(elsewhere, anew=False)


class PlainOverStore:
    """The same for what is no pydantic model: retrievers, synthesizers, docstores, indexes."""

    _store: SharedLLMContextStore

    def __copy__(self) -> Self:
        again = object.__new__(type(self))
        again.__dict__.update(self.__dict__)
        return again

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        again = memo[id(self)] = copy.copy(self)
        memo[id(self._store)] = self._store
        again.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return again

    def __getstate__(self) -> dict[str, Any]:
        remember(self._store)
        return {**self.__dict__, "_store": whereabouts(self._store)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_store": store_again(state["_store"], anew=False)})
