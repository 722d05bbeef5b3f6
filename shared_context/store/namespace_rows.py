"""The namespaces of a store as rows of its file."""

from __future__ import annotations

import json

from shared_context.store import format as file_format
from shared_context.store.node_data import COLUMNS
from shared_context.store.sqlite_file import damaged
from shared_context.store.store_file import StoreFile


class NamespaceRows(StoreFile):
    """Names, keys and salts of namespaces; called inside of a snapshot or a transaction."""

    def namespace(self, name: str) -> tuple[int, bytes] | None:
        """Key and salt of a namespace; None where it is not there."""
        row = self._connection.execute("SELECT key, salt FROM namespaces WHERE name = ?", (name,)).fetchone()
        if row is None:
            if self._was_told(name):
                raise damaged(self._place, f"namespace {name!r} is missing")
            return None
        self._check_types(f"namespace {name!r}", row, (int, bytes))
        key, salt = row
        kept = self.told_meta(f"{file_format.OF_NAMESPACE}{key}")
        with self.decoding(f"namespace {name!r}"):
            told = (name, salt) if kept is None else _told(kept)
        if told != (name, salt):
            raise damaged(self._place, f"namespace {name!r}: its row says something else")
        return key, salt

    def _was_told(self, name: str) -> bool:
        """Whether a namespace of this name is known a second time. SQLite looks: there may be one for each user."""
        begins = file_format.namespace_value(name, b"").removesuffix(b'"]')
        found = "SELECT 1 FROM meta WHERE key >= ?1 AND key < ?2 AND SUBSTR(value, 1, ?3) = ?4 LIMIT 1"
        first, behind = file_format.OF_NAMESPACE, file_format.OF_NAMESPACE + chr(ord("9") + 1)
        return self._connection.execute(found, (first, behind, len(begins), begins)).fetchone() is not None

    def has_namespace(self, namespace: int) -> bool:
        """Whether a namespace is there, by its key, which no other one ever has."""
        return bool(self._connection.execute("SELECT 1 FROM namespaces WHERE key = ?", (namespace,)).fetchone())

    def add_namespace(self, name: str) -> None:
        """Make a namespace."""
        file_format.add_namespace(self._connection, name)

    def check_namespaces(self) -> bool:
        """That the rows of namespaces say what was written.

        Returns:
            Whether all of them are known a second time, which none is that an earlier version has made.

        Raises:
            StoreFormatError: naming the one that is missing or another one.
        """
        told, rows = self.told_namespaces(), self.namespace_rows()
        for key, (name, salt) in told.items():
            if key not in rows:
                raise damaged(self._place, f"namespace {name!r} is missing")
            if rows[key][:2] != [name, salt]:
                raise damaged(self._place, f"namespace {name!r}: its row says something else")
        return rows.keys() == told.keys()

    def note_namespaces(self) -> None:
        """Make all namespaces known a second time."""
        told = self.told_namespaces()
        for key, (name, salt, _) in self.namespace_rows().items():
            if key not in told:
                file_format.note_namespace(self._connection, key, name, salt)

    def told_namespaces(self) -> dict[int, tuple[str, bytes]]:
        """Name and salt of each namespace by its key, as they are known a second time."""
        found = {}
        for key, value in self.meta(file_format.OF_NAMESPACE).items():
            with self.decoding(key):
                found[int(key.removeprefix(file_format.OF_NAMESPACE))] = _told(value)
        return found

    def remove_namespace(self, namespace: int) -> None:
        """Delete a namespace, which holds nothing any more."""
        self._connection.execute("DELETE FROM namespaces WHERE key = ?", (namespace,))
        self.set_meta(f"{file_format.OF_NAMESPACE}{namespace}", None)
        self._log_has_deleted = True

    def namespace_bytes(self, namespace: int) -> int:
        """Bytes of what is kept of the documents of a namespace."""
        of_part = " + ".join(f"LENGTH({column})" for column in ("ids", "bounds", *COLUMNS))
        (total,) = self._connection.execute(
            f"SELECT COALESCE(SUM({of_part}), 0) FROM documents JOIN parts USING (content) WHERE namespace = ?",
            (namespace,),
        ).fetchone()
        (text,) = self._connection.execute(
            "SELECT COALESCE(SUM(bytes + LENGTH(metadata)), 0) FROM documents WHERE namespace = ?", (namespace,)
        ).fetchone()
        return total + text

    def namespace_rows(self) -> dict[int, tuple[str, bytes, int]]:
        """Name, salt and number of documents of every namespace, by its key."""
        rows = self._connection.execute("SELECT key, name, salt, documents FROM namespaces ORDER BY key").fetchall()
        for row in rows:
            self._check_types(f"namespace number {row[0]}", row, (int, str, bytes, int))
        return {key: values for key, *values in rows}

    def restore_namespace(self, key: int, name: str, salt: bytes) -> None:
        """Make a namespace what it was in another file."""
        self._connection.execute(
            "INSERT INTO namespaces (key, name, salt) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET salt = ?3",
            (key, name, salt),
        )
        file_format.note_namespace(self._connection, key, name, salt)


def _told(value: bytes) -> tuple[str, bytes]:
    """Name and salt from what is kept of a namespace a second time."""
    name, salt = json.loads(value)
    return name, bytes.fromhex(salt)
