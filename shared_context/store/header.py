"""A document's header: its metadata as text, which queries are compared with and models can be shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sized
from typing import Any

HEADER_CHARACTERS = 512
"""What does not fit is left out: a header stands for what a document is, and is no second text beside it."""


def header(metadata: Mapping[str, Any], excluded_keys: Collection[str] = ()) -> str:
    """Metadata as text, one ``key: value`` a line, in their order.

    Strings, numbers, True, False, lists of these and mappings in which there is text are told; None, empty values and
    what else is nested (boxes, page layouts) have no words and are left out. So is a line that does not fit
    HEADER_CHARACTERS any more.

    Args:
        metadata: JSON values.
        excluded_keys: keys to leave out.
    """
    lines, room = [], HEADER_CHARACTERS
    for key, value in metadata.items():
        told = "" if key in excluded_keys else _told(value)
        line = f"{key}: {told}"
        if told and len(line) < room:
            lines.append(line)
            room -= len(line) + 1
    return "\n".join(lines)


def _told(value: Any) -> str:
    """A value in one line of words; empty where it has none."""
    if isinstance(value, list):
        return _joined(value, (_told(item) for item in value if not isinstance(item, list)))
    if isinstance(value, Mapping):
        told = (
            (key, _told(item)) for key, item in value.items() if not isinstance(item, list | Mapping) or _says(item)
        )
        return _joined(value, (f"{key} {words}" for key, words in told if words)) if _says(value) else ""
    return "" if value is None else " ".join(str(value).split())


def _joined(values: Sized, told: Iterable[str]) -> str:
    # Stops before a long list has been read to its end.
    return "" if len(values) > HEADER_CHARACTERS else ", ".join(filter(None, told))


def _says(value: Any) -> bool:
    """Whether there is text in a value, and not numbers alone, as in a box on a page."""
    if isinstance(value, list | Mapping):
        inner = value.values() if isinstance(value, Mapping) else (item for item in value if not isinstance(item, list))
        return len(value) <= HEADER_CHARACTERS and any(map(_says, inner))
    return isinstance(value, str) and bool(value.strip())
