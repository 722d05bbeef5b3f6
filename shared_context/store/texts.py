"""The texts of documents that were used of late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from shared_context.store.node_data import StoredText

TEXTS_KEPT, CHARACTERS_KEPT = 32, 1 << 20
"""So many documents stay in memory, or as many as have so many characters together."""


class Texts:
    """Texts with their tokens, of which those used last stay in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, StoredText] = OrderedDict()
        self._characters = 0

    def of(self, key: int, read: Callable[[int], StoredText]) -> StoredText:
        """A document's text.

        Args:
            key: the document's.
            read: gives it by the key where it is not in memory; not held, or who has these texts would hold itself.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        stored = self._kept[key] = read(key)
        self._characters += len(stored.text)
        while len(self._kept) > TEXTS_KEPT and self._characters > CHARACTERS_KEPT:
            self.forget(next(iter(self._kept)))
        return stored

    def forget(self, key: int) -> None:
        """Let go of a document's text."""
        if key in self._kept:
            self._characters -= len(self._kept.pop(key).text)

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self._characters = 0
