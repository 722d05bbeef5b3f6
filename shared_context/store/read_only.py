"""JSON values that many share and none can change."""

from __future__ import annotations

import copy
from typing import Any, NoReturn


def _refuse(*_: object, **__: object) -> NoReturn:
    raise TypeError(
        "Metadata are shared by all nodes of a document and cannot be changed; change a copy: copy.deepcopy(metadata)."
    )


class ReadOnlyDict(dict[str, Any]):
    """A dict that refuses every change; ``copy.deepcopy`` and pickle make an ordinary one of it."""

    __slots__ = ()
    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: copy.deepcopy(value, memo) for key, value in self.items()}

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    copy = __copy__

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class ReadOnlyList(list[Any]):
    """A list that refuses every change; ``copy.deepcopy`` and pickle make an ordinary one of it."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [copy.deepcopy(value, memo) for value in self]

    def __copy__(self) -> list[Any]:
        return list(self)

    copy = __copy__

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return list, (list(self),)


def read_only(value: Any) -> Any:
    """JSON values whose dicts and lists, all the way down, cannot be changed; equal to what was given."""
    if isinstance(value, dict):
        return ReadOnlyDict((key, read_only(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return ReadOnlyList(map(read_only, value))
    return value
