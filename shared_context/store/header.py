"""A document's header: its metadata as text, which queries are compared with and models can be shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

HEADER_CHARACTERS = 512
"""What does not fit is left out: a header stands for what a document is, and is no second text beside it."""


def header(metadata: Mapping[str, Any], excluded_keys: Collection[str] = ()) -> str:
    """Metadata as text, one ``key: value`` a line, in their order.

    Strings, numbers, True, False and lists of these are told; None, empty values and whatever is nested deeper (boxes,
    page layouts) have no words and are left out. So is a line that does not fit HEADER_CHARACTERS any more.

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
        # Stops before a long list has been read to its end.
        if len(value) > HEADER_CHARACTERS:
            return ""
        return ", ".join(filter(None, (_told(item) for item in value if not isinstance(item, list))))
    if value is None or isinstance(value, Mapping):
        return ""
    return " ".join(str(value).split())
