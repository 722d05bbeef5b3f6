"""The lines of a store's documents as rows of its file: what each is called, its metadata, and how long it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args, get_type_hints

from shared_context.store.checksum import checksum
from shared_context.store.format import Line
from shared_context.store.read_only import read_only
from shared_context.store.sqlite_file import damaged
from shared_context.store.store_file import StoreFile

Kind = Literal["document", "conversation"]


@dataclass(frozen=True)
class Entry:
    """A document's line in the catalogue; its metadata are read only.

    Attributes:
        unsearched_keys: metadata that no query is compared with.
        hidden_keys: metadata that no model is shown.
    """

    kind: Kind
    id: str
    metadata: dict[str, Any]
    unsearched_keys: tuple[str, ...] = ()
    hidden_keys: tuple[str, ...] = ()


_LINE = ", ".join(Line._fields)
_LINE_TYPES = tuple(get_type_hints(Line).values())


class LineRows(StoreFile):
    """Lines of documents, and of what is compressed of conversations; called inside of a snapshot or a transaction."""

    def _line(self, key: int) -> Line:
        row = self._connection.execute(f"SELECT {_LINE} FROM documents WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise damaged(self._place, f"document {key} is missing")
        self._check_types(f"document number {key}", row, _LINE_TYPES)
        return Line(*row)

    def text_bytes(self, key: int) -> int:
        """Bytes of a document's text in UTF-8."""
        return self._line(key).bytes

    def _remove_line(self, namespace: int, key: int) -> None:
        (total,) = self._connection.execute("DELETE FROM documents WHERE key = ? RETURNING checksum", (key,)).fetchone()
        self._connection.execute(
            "UPDATE namespaces SET documents = documents - 1, total = total - ? WHERE key = ?", (total, namespace)
        )

    def catalogue(self, namespace: int) -> dict[int, Entry]:
        """The lines of all documents by their keys, which rise in the order of adding."""
        entries, total = {}, 0
        for key, expected, *line in self._connection.execute(
            f"SELECT key, checksum, {_LINE} FROM documents WHERE namespace = ? ORDER BY key", (namespace,)
        ):
            entries[key] = self._entry(expected, Line(*line))
            total += expected
        if self.counted(namespace) not in ((len(entries), total), None):
            raise damaged(self._place, "some of its documents are missing")
        return entries

    def entries(self, namespace: int, keys: Iterable[int]) -> dict[int, Entry]:
        """The lines of those of these documents that are there."""
        found = f"SELECT key, checksum, {_LINE} FROM documents WHERE key = ? AND namespace = ?"
        rows = (self._connection.execute(found, (key, namespace)).fetchone() for key in keys)
        return {key: self._entry(expected, Line(*line)) for key, expected, *line in filter(None, rows)}

    def lines(self, namespace: int, keys: Collection[int]) -> dict[int, Entry]:
        """The lines of documents that are there.

        Raises:
            StoreFormatError: one is not.
        """
        found = self.entries(namespace, keys)
        for key in keys:
            if key not in found:
                raise damaged(self._place, f"document {key} is missing")
        return found

    def line_sums(self, namespace: int, keys: Iterable[int] | None = None) -> dict[int, int]:
        """The checksums of the lines of those of these documents that are there, None for all, by their keys."""
        found = "SELECT key, checksum FROM documents WHERE namespace = ?"
        if keys is None:
            return dict(self._connection.execute(found, (namespace,)))
        rows = (self._connection.execute(f"{found} AND key = ?", (namespace, key)).fetchone() for key in keys)
        return dict(filter(None, rows))

    def counted(self, namespace: int) -> tuple[int, int] | None:
        """How many documents and conversations a namespace has, and the sum of the checksums of their lines."""
        return self._connection.execute(
            "SELECT documents, total FROM namespaces WHERE key = ?", (namespace,)
        ).fetchone()

    def is_complete(self, namespace: int) -> bool:
        """Whether as many lines are there as should be, with the sum of checksums that they should have."""
        found = "SELECT COUNT(*), COALESCE(SUM(checksum), 0) FROM documents NOT INDEXED WHERE namespace = ?"
        return self._connection.execute(found, (namespace,)).fetchone() == self.counted(namespace)

    def find(self, namespace: int, kind: Kind, id: str) -> int | None:
        """The key of a document or conversation; None where there is none of this id."""
        found = "SELECT key FROM documents WHERE namespace = ? AND kind = ? AND id = ?"
        row = self._connection.execute(found, (namespace, kind, id)).fetchone()
        return None if row is None else row[0]

    def conversation_keys(self, namespace: int) -> list[int]:
        """Keys of the conversations that are in part a document."""
        found = "SELECT key FROM documents WHERE namespace = ? AND kind = 'conversation'"
        return [key for (key,) in self._connection.execute(found, (namespace,))]

    def readable_keys(self, namespace: int) -> list[int]:
        """Keys of the documents of a namespace, as many as a damaged file lets be read, from both of its ends."""
        found: set[int] = set()
        index = (
            "SELECT key FROM documents INDEXED BY sqlite_autoindex_documents_1 WHERE namespace = ? ORDER BY kind, id"
        )
        table = "SELECT key FROM documents NOT INDEXED WHERE namespace = ? ORDER BY key"
        for statement in (index, table, f"{table} DESC"):
            with suppress(sqlite3.DatabaseError):
                for (key,) in self._connection.execute(statement, (namespace,)):
                    found.add(key)
        return sorted(found)

    def _entry(self, expected: int, line: Line) -> Entry:
        with self.decoding(f"document {line.id!r}"):
            if expected != checksum(*line):
                raise ValueError("the checksum of its entry is wrong")
            if tuple(map(type, line)) != _LINE_TYPES:
                self._check_types(f"document {line.id!r}", line, _LINE_TYPES)
            metadata = json.loads(line.metadata)
            if line.kind not in get_args(Kind) or not isinstance(metadata, dict):
                raise ValueError("its entry is none")
            named = (line.unsearched_keys, line.hidden_keys)
            keys = (() if names == "[]" else tuple(json.loads(names)) for names in named)
            return Entry(cast(Kind, line.kind), line.id, read_only(metadata), *keys)
