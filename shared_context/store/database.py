"""What a store keeps in its SQLite file: how documents come, change and go, what of that others learn, and damage."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from shared_context.errors import StoreFormatError
from shared_context.store import format as file_format
from shared_context.store.checksum import checksum
from shared_context.store.conversation_rows import ConversationRows
from shared_context.store.format import Line, as_json
from shared_context.store.header_rows import Header, HeaderRows
from shared_context.store.line_rows import Entry
from shared_context.store.namespace_rows import NamespaceRows
from shared_context.store.node_data import Part
from shared_context.store.part_rows import DIGEST_BYTES
from shared_context.store.sqlite_file import damaged
from shared_context.store.word_index import DamagedWordsError

logger = logging.getLogger(__name__)

LEAF_FILE = "leaves of namespace "
"""Before a namespace's key: what its file of leaves is known by."""

CHANGES_KEPT = 4096
"""Changes that are kept for other processes to take in; one that missed more looks at everything anew."""


@dataclass(frozen=True)
class Changes:
    """What happened in a namespace since a version.

    Attributes:
        documents: keys that came, changed or went.
        digests: of chunks that went.
    """

    documents: list[int]
    digests: set[bytes]


class Database(NamespaceRows, ConversationRows, HeaderRows):
    """The rows of a store's file; arguments and errors of opening are those of the file."""

    _leaf_size: int | None = None

    # Documents

    def insert(
        self, namespace: int, entry: Entry, parts: Sequence[tuple[bytes, Part]], header: Header | None = None
    ) -> int:
        """Add a document.

        Args:
            parts: its chunks with their digests.
            header: what is kept of its metadata beside them.

        Returns:
            Its key, which no other document ever has.
        """
        with self.decoding("the numbering of documents"):
            content = file_format.next_key(self._connection)
        self._put_parts(namespace, content, 0, parts)
        line = Line(namespace, entry.kind, entry.id, content, len(parts), _text_bytes(parts), *_described(entry))
        key = file_format.put_document(self._connection, line)
        self._put_header(key, content, header)
        return key

    def extend(self, key: int, entry: Entry, first: int, parts: Sequence[tuple[bytes, Part]]) -> tuple[int, set[bytes]]:
        """Put chunks in the place of those of a document from ``first`` on.

        Returns:
            The document's new key, and the digests of the chunks that are gone.
        """
        line = self._line(key)
        with self.decoding("the numbering of documents"):
            file_format.next_key(self._connection)
        (before,) = self._connection.execute(
            "SELECT COALESCE(SUM(LENGTH(CAST(text AS BLOB))), 0) FROM parts WHERE content = ? AND number >= ?",
            (line.content, first),
        ).fetchone()
        digests = self._remove_parts(key, first)
        file_format.note_change(self._connection, line.namespace, key, digests)
        self._remove_line(line.namespace, key)
        self._put_parts(line.namespace, line.content, first, parts)
        nbytes = line.bytes - before + _text_bytes(parts)
        line = line._replace(parts=first + len(parts), bytes=nbytes)
        new = file_format.put_document(self._connection, line)
        self.words.move(line.content, new)
        self._connection.execute("UPDATE headers SET document = ? WHERE document = ?", (new, key))
        return new, digests

    def remove(self, key: int) -> set[bytes]:
        """Delete a document; returns the digests of its chunks."""
        line = self._line(key)
        digests = self._remove_parts(key, 0) | self._remove_header(key)
        file_format.note_change(self._connection, line.namespace, key, digests)
        self._remove_line(line.namespace, key)
        self._log_has_deleted = True
        return digests

    def describe(self, key: int, entry: Entry, header: Header | None) -> set[bytes]:
        """Replace a document's metadata and header; returns the digests of what is gone."""
        metadata, unsearched, hidden = _described(entry)
        line = self._line(key)._replace(metadata=metadata, unsearched_keys=unsearched, hidden_keys=hidden)
        (before,) = self._connection.execute("SELECT checksum FROM documents WHERE key = ?", (key,)).fetchone()
        total = checksum(*line)
        self._connection.execute(
            "UPDATE documents SET metadata = ?, unsearched_keys = ?, hidden_keys = ?, checksum = ? WHERE key = ?",
            (metadata, unsearched, hidden, total, key),
        )
        self._connection.execute(
            "UPDATE namespaces SET total = total + ? WHERE key = ?", (total - before, line.namespace)
        )
        digests = self._remove_header(key)
        self._put_header(key, line.content, header)
        file_format.note_change(self._connection, line.namespace, key, digests)
        self._log_has_deleted = True
        return digests

    def changes(self, since: int) -> Changes | None:
        """What happened since a version, in all namespaces; None where that is no longer known."""
        rows = self._connection.execute(
            "SELECT version, document, digests FROM changes WHERE version >= ? ORDER BY version", (since,)
        ).fetchall()
        if not rows and since == 0:
            return Changes([], set())
        if not rows or rows[0][0] != since:
            return None
        return Changes([key for _, key, _ in rows[1:]], _digests(b"".join(d for _, _, d in rows[1:])))

    def version(self) -> int:
        """Of the newest change; 0 where there was none."""
        return self._connection.execute("SELECT COALESCE(MAX(version), 0) FROM changes").fetchone()[0]

    def forget_changes(self) -> None:
        """Let go of changes that few processes can have missed."""
        self._connection.execute("DELETE FROM changes WHERE version <= ?", (self.version() - CHANGES_KEPT,))

    def compact(self) -> None:
        """Give the space of what was deleted back to the file system, and let nothing be left of it in the file.

        SQLite overwrites what is deleted where it stands, but seldom the copies that it left in unused parts of pages
        when it moved rows: a file that is made anew has none. Other processes that have not seen the last changes take
        everything in anew.
        """
        with self.transaction():
            self._connection.execute("DELETE FROM changes WHERE version < ?", (self.version(),))
            self._connection.execute("UPDATE changes SET digests = x''")
            self._log_has_deleted = True
        super().compact()

    def alive(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those that a chunk or the header of some document has."""
        found = "SELECT 1 FROM parts WHERE digest = ?1 UNION ALL SELECT 1 FROM headers WHERE digest = ?1 LIMIT 1"
        return {digest for digest in digests if self._connection.execute(found, (digest,)).fetchone()}

    def leaf_file(self, namespace: int) -> int | None:
        """What the file of a namespace's leaves is known by that was written last."""
        name = self.find_meta(f"{LEAF_FILE}{namespace}")
        return int(name) if name is not None and name.isdigit() else None

    def set_leaf_file(self, namespace: int, name: int | None) -> None:
        """Note what a new file is known by; None where there is none any more."""
        self.set_meta(f"{LEAF_FILE}{namespace}", None if name is None else str(name).encode())

    # Looking for damage

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever other processes write meanwhile."""
        with self._without_damaged_words(), super().snapshot():
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside lands at its end, or nothing does."""
        with self._without_damaged_words(), super().transaction():
            yield

    @contextmanager
    def _without_damaged_words(self) -> Iterator[None]:
        """Make the index of words anew where a row that was read inside is damaged."""
        try:
            yield
        except DamagedWordsError as error:
            if self._leaf_size is None:
                raise damaged(self._place, error) from error
            self._mend_words(self._leaf_size, thorough=True)
            raise StoreFormatError(
                f"{self._place}: {error}. Nothing was changed; the index has been made anew of the texts: try again."
            ) from error

    def mend_words(self, leaf_size: int) -> None:
        """Look whether all of the index of words is there; a damaged one is made anew of the texts.

        Args:
            leaf_size: tokens of a leaf.

        Raises:
            StoreFormatError: it is damaged, and more is, or the file may not be written.
        """
        self._leaf_size = leaf_size
        self._mend_words(leaf_size)
        with self.snapshot():
            for reason in self.numbering():
                raise damaged(self._place, reason)
            known = self.words.knows_its_keys()
        if not known and not self.read_only:
            with self.transaction():
                self.words.note_keys()

    def _mend_words(self, leaf_size: int, *, thorough: bool = False) -> None:
        with self.snapshot():
            if self.words.is_whole(leaf_size, thorough=thorough):
                return
        if self.read_only:
            raise damaged(self._place, "its index of words")
        with self.transaction():
            if self.words.is_whole(leaf_size, thorough=thorough):  # another process was faster
                return
            # Where SQLite cannot tell which pages are whose, deleting some might hurt what is whole.
            if damage := self.integrity():
                raise damaged(self._place, f"its index of words: {damage[0]}")
            rows = self._connection.execute("SELECT namespace, content, key FROM documents").fetchall()
            chunks = ([(part.text, part.tokens) for part in self._texts(key)] for *_, key in rows)
            self.words.make_anew(((*row, of_row) for row, of_row in zip(rows, chunks, strict=True)), leaf_size)
        logger.warning("%s: the index of words was damaged and has been made anew of the texts.", self._place)

    def numbering(self) -> list[str]:
        """What is wrong with the keys of documents: the index of words, whose rows are counted, knows them too."""
        known = "JOIN worded ON worded.key = content WHERE worded.document <>"
        lines = self._connection.execute(f"SELECT id FROM documents {known} documents.key")
        headers = self._connection.execute(f"SELECT headers.document FROM headers {known} headers.document")
        return [
            *(f"document {id!r}: its number is another one" for (id,) in lines),
            *(f"document number {key}: it has another one's header" for (key,) in headers),
        ]

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the file."""
        try:
            rows = [line for (line,) in self._connection.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [line for line in rows if line != "ok"]


def _described(entry: Entry) -> tuple[str, str, str]:
    """An entry's metadata and keys as JSON."""
    return as_json(entry.metadata), as_json(entry.unsearched_keys), as_json(entry.hidden_keys)


def _text_bytes(parts: Iterable[tuple[bytes, Part]]) -> int:
    return sum(len(part.stored.text.encode()) for _, part in parts)


def _digests(joined: bytes) -> set[bytes]:
    return {joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)}
