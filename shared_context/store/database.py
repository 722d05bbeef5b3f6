"""What a store keeps on disk: one SQLite file, where a batch of documents lands whole or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared_context.errors import StoreFormatError
from shared_context.model.tokenization import TokenizedText

Kind = Literal["document", "conversation"]

FILE = "store.sqlite"
APPLICATION_ID = 0x5C0471E8
"""Marks the file as ours, in the header field that SQLite keeps for it."""
VERSION = 1

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    ids BLOB NOT NULL,
    bounds BLOB NOT NULL,
    codes BLOB NOT NULL,
    scales BLOB NOT NULL,
    states BLOB NOT NULL,
    embeddings BLOB NOT NULL,
    UNIQUE (kind, id)
);
CREATE TABLE messages (
    conversation TEXT NOT NULL,
    number INTEGER NOT NULL,
    message TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    compressed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (conversation, number)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class NodeData:
    """What scoring needs of a document; see :class:`shared_context.store.node_index.NodeIndex`.

    Attributes:
        codes: int8 [tokens, code_size].
        scales: float16 [tokens].
        states: float16 [leaves, hidden], the one-layer state of each leaf's last token.
        embeddings: float32 [leaves, dimension]; no columns where there is no embedder.
    """

    codes: np.ndarray
    scales: np.ndarray
    states: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class StoredText:
    """A document's text with its tokens; it never changes under its key."""

    text: str
    tokens: TokenizedText


@dataclass(frozen=True)
class Entry:
    """A document's line in the catalogue."""

    kind: Kind
    id: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """A message of a conversation; ``compressed`` once it is part of the conversation's document."""

    number: int
    message: dict[str, Any]
    tokens: int
    compressed: bool


class Database:
    """The store's SQLite file.

    Args:
        folder: the store's folder, made if it is missing; None keeps the database in memory.

    Raises:
        StoreFormatError: where the folder is something else, half written, damaged or of a newer format.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.is_new = folder is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise StoreFormatError(f"{folder} is a file; a store is a folder. Give another path.")
            if not self.is_new and not (folder / FILE).exists():
                raise StoreFormatError(f"{folder} holds no {FILE}, so it is not a store. Give an empty or new folder.")
            folder.mkdir(parents=True, exist_ok=True)
        name = str(folder / FILE) if folder is not None else ":memory:"
        self._connection = sqlite3.connect(name, check_same_thread=False, isolation_level=None, timeout=30)
        try:
            if self.is_new:
                self._create()
            else:
                self._check(folder)
        except BaseException:
            self._connection.close()
            raise

    def _create(self) -> None:
        if self.folder is not None:
            self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; "
            f"{SCHEMA} COMMIT;"
        )

    def _check(self, folder: Path) -> None:
        with self.errors():
            application = self._connection.execute("PRAGMA application_id").fetchone()[0]
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            tables = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                raise StoreFormatError(
                    f"{folder} is a store whose making was cut off; it holds no documents. Delete the folder."
                )
            if application != APPLICATION_ID:
                raise StoreFormatError(f"{folder / FILE} was made by another program. Give another path.")
            if version > VERSION:
                raise StoreFormatError(
                    f"{folder} has store format {version}, and this version of shared-context reads up to {VERSION}. "
                    "Upgrade shared-context."
                )
            if self.get_meta("codec") is None:
                raise StoreFormatError(
                    f"{folder} is a store whose making was cut off; it holds no documents. Delete the folder."
                )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what SQLite says of a damaged file into StoreFormatError."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            place = self.folder / FILE if self.folder is not None else "the store"
            raise StoreFormatError(
                f"{place} is damaged or not a store ({error}). Restore it from a copy, or delete the folder and add "
                "the documents again."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside lands at its end, or nothing does."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def data_version(self) -> int:
        """A number that changes when another process has written."""
        return self._connection.execute("PRAGMA data_version").fetchone()[0]

    def get_meta(self, key: str) -> bytes | None:
        """A value of the store as a whole."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: bytes) -> None:
        """Set a value of the store as a whole."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def insert(
        self, kind: Kind, id: str, text: str, metadata: dict[str, Any], tokens: TokenizedText, nodes: NodeData
    ) -> int:
        """Add a document's row; returns its key, which no other row ever has."""
        cursor = self._connection.execute(
            "INSERT INTO documents (kind, id, text, metadata, ids, bounds, codes, scales, states, embeddings) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                kind,
                id,
                text,
                json.dumps(metadata, ensure_ascii=False),
                tokens.ids.astype(np.int32).tobytes(),
                tokens.bounds.astype(np.uint32).tobytes(),
                nodes.codes.tobytes(),
                nodes.scales.tobytes(),
                nodes.states.tobytes(),
                nodes.embeddings.tobytes(),
            ),
        )
        return cursor.lastrowid

    def remove(self, keys: Iterable[int]) -> None:
        """Delete rows."""
        self._connection.executemany("DELETE FROM documents WHERE key = ?", [(key,) for key in keys])

    def set_metadata(self, key: int, metadata: dict[str, Any]) -> None:
        """Replace a document's metadata."""
        self._connection.execute(
            "UPDATE documents SET metadata = ? WHERE key = ?", (json.dumps(metadata, ensure_ascii=False), key)
        )

    def keys(self) -> set[int]:
        """Keys of all documents."""
        return {row[0] for row in self._connection.execute("SELECT key FROM documents")}

    def entry(self, key: int) -> Entry:
        """A document's line in the catalogue."""
        kind, id, metadata = self._connection.execute(
            "SELECT kind, id, metadata FROM documents WHERE key = ?", (key,)
        ).fetchone()
        return Entry(kind, id, json.loads(metadata))

    def document(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        row = self._connection.execute("SELECT text, ids, bounds FROM documents WHERE key = ?", (key,)).fetchone()
        text, ids, bounds = row
        tokens = TokenizedText(np.frombuffer(ids, np.int32), np.frombuffer(bounds, np.uint32).astype(np.int64))
        return StoredText(text, tokens)

    def token_ids(self, key: int) -> np.ndarray:
        """A document's token ids, int32 [tokens]."""
        row = self._connection.execute("SELECT ids FROM documents WHERE key = ?", (key,)).fetchone()
        return np.frombuffer(row[0], np.int32)

    def nodes(self, key: int, code_size: int, hidden: int, dimension: int) -> NodeData:
        """What scoring needs of a document."""
        row = self._connection.execute(
            "SELECT codes, scales, states, embeddings FROM documents WHERE key = ?", (key,)
        ).fetchone()
        states = np.frombuffer(row[2], np.float16).reshape(-1, hidden)
        return NodeData(
            np.frombuffer(row[0], np.int8).reshape(-1, code_size),
            np.frombuffer(row[1], np.float16),
            states,
            np.frombuffer(row[3], np.float32).reshape(len(states), dimension),
        )

    def nbytes(self) -> int:
        """Bytes of all that is kept of the documents."""
        pages, size = (
            self._connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("page_count", "page_size")
        )
        return pages * size

    def conversations(self) -> list[str]:
        """Ids of the conversations that have messages."""
        return [row[0] for row in self._connection.execute("SELECT DISTINCT conversation FROM messages")]

    def messages(self, conversation: str) -> list[Message]:
        """A conversation's messages, oldest first."""
        rows = self._connection.execute(
            "SELECT number, message, tokens, compressed FROM messages WHERE conversation = ? ORDER BY number",
            (conversation,),
        )
        return [Message(number, json.loads(message), tokens, bool(old)) for number, message, tokens, old in rows]

    def add_message(self, conversation: str, message: dict[str, Any], tokens: int) -> None:
        """Append a message to a conversation."""
        self._connection.execute(
            "INSERT INTO messages (conversation, number, message, tokens) "
            "SELECT ?1, COALESCE(MAX(number), 0) + 1, ?2, ?3 FROM messages WHERE conversation = ?1",
            (conversation, json.dumps(message, ensure_ascii=False), tokens),
        )

    def mark_compressed(self, conversation: str, numbers: Iterable[int]) -> None:
        """Note that these messages are part of the conversation's document now."""
        self._connection.executemany(
            "UPDATE messages SET compressed = 1 WHERE conversation = ? AND number = ?",
            [(conversation, number) for number in numbers],
        )

    def clear_messages(self, conversation: str) -> None:
        """Delete a conversation's messages."""
        self._connection.execute("DELETE FROM messages WHERE conversation = ?", (conversation,))

    def copy_to(self, folder: Path) -> None:
        """Write the whole database into another, new folder."""
        folder.mkdir(parents=True, exist_ok=True)
        target = sqlite3.connect(folder / FILE)
        try:
            self._connection.backup(target)
            target.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            target.execute("PRAGMA journal_mode = WAL")
        finally:
            target.close()

    def close(self) -> None:
        """Close the file; nothing is written by closing."""
        self._connection.close()
