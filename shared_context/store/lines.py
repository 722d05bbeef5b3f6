"""The lines of a namespace's documents and conversations, each read when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from shared_context.store.database import Database
from shared_context.store.line_rows import Entry, Kind

READ_ONE_BY_ONE = 256
"""Lines that are read one after the other; of more all are read at once."""


class Lines:
    """Which documents and conversations there are, and what the catalogue says of each.

    Args:
        database: where the lines are.
        namespace: the namespace's key.
    """

    def __init__(self, database: Database, namespace: int):
        self._database, self._namespace = database, namespace
        self._documents: dict[int, None] = {}
        self._conversations: dict[int, None] = {}
        self._entries: dict[int, Entry] = {}
        # None where not all lines have been read: then the database is asked.
        self._keys: dict[tuple[Kind, str], int] | None = {}

    def __len__(self) -> int:
        """Documents and conversations."""
        return len(self._documents) + len(self._conversations)

    def __contains__(self, key: int) -> bool:
        return key in self._documents or key in self._conversations

    def __iter__(self) -> Iterator[int]:
        """Keys of all."""
        yield from (*self._documents, *self._conversations)

    def documents(self) -> list[int]:
        """Keys of the documents, rising."""
        return list(self._documents)

    def adopt(self, documents: Iterable[int], conversations: Mapping[int, Entry]) -> None:
        """Take in documents whose lines were not read, in the place of all that is known.

        Args:
            documents: their keys, rising.
            conversations: lines that were read.
        """
        self._documents, self._conversations = dict.fromkeys(documents), dict.fromkeys(conversations)
        self._entries, self._keys = dict(conversations), None

    def put(self, key: int, entry: Entry) -> None:
        """Take in a line that came or is another now; a key that comes is higher than all before it."""
        (self._documents if entry.kind == "document" else self._conversations)[key] = None
        self._entries[key] = entry
        if self._keys is not None:
            self._keys[entry.kind, entry.id] = key

    def drop(self, key: int) -> bool:
        """Forget a line; returns whether it was a document's."""
        entry = self._entries.pop(key, None)
        if self._keys is not None and entry is not None and self._keys.get((entry.kind, entry.id)) == key:
            del self._keys[entry.kind, entry.id]
        of_document = key in self._documents
        (self._documents if of_document else self._conversations).pop(key, None)
        return of_document

    def find(self, kind: Kind, id: str) -> int | None:
        """The key of a document or conversation; None where there is none of this id."""
        if self._keys is not None:
            return self._keys.get((kind, id))
        return self._database.find(self._namespace, kind, id)

    def entry(self, key: int) -> Entry:
        """A line."""
        return self.entries([key])[0]

    def entries(self, keys: Sequence[int]) -> list[Entry]:
        """Lines, in the order of their keys."""
        missing = [key for key in keys if key not in self._entries]
        if len(missing) > READ_ONE_BY_ONE:
            everything = self._database.catalogue(self._namespace)
            self._entries |= {key: everything[key] for key in missing if key in everything}
            missing = [key for key in missing if key not in everything]
        if missing:
            self._entries |= self._database.lines(self._namespace, missing)
        return [self._entries[key] for key in keys]
