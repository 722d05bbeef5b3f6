"""What a store keeps on disk: one SQLite file, where a batch of documents lands whole or not at all."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError

from shared_context.config import TreeConfig
from shared_context.errors import StoreClosedError, StoreFormatError, StoreUnavailableError
from shared_context.model.tokenization import TokenizedText
from shared_context.store import word_index
from shared_context.store.read_only import read_only
from shared_context.store.word_index import LeafWords, WordIndex

Kind = Literal["document", "conversation"]

FILE = "store.sqlite"
APPLICATION_ID = 0x5C0471E8
"""Marks the file as ours, in the header field that SQLite keeps for it."""
VERSION = 3

MAX_ROW_BYTES = 10**9
"""What SQLite holds in one row, a document."""

BUSY_SECONDS = 30.0
"""How long a change waits for another process's."""
CREATION_SECONDS = 1.0
"""How long a file without tables may belong to another process that is about to write them."""

HEADERS = """CREATE TABLE headers (
    document INTEGER PRIMARY KEY,
    unsearched_keys TEXT NOT NULL,
    hidden_keys TEXT NOT NULL,
    codes BLOB NOT NULL,
    scales BLOB NOT NULL,
    embeddings BLOB NOT NULL
)"""

UPGRADES = {2: (HEADERS, "ALTER TABLE documents DROP COLUMN states", *word_index.SCHEMA)}
"""What makes a store of an older format one of the next: statements, by the format they begin with.

The words of the documents follow; see :meth:`Database._upgrade`.
"""

# Small columns come first: SQLite reads a row from its beginning.
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE documents (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        metadata TEXT NOT NULL,
        text TEXT NOT NULL,
        ids BLOB NOT NULL,
        bounds BLOB NOT NULL,
        codes BLOB NOT NULL,
        scales BLOB NOT NULL,
        embeddings BLOB NOT NULL,
        UNIQUE (kind, id)
    )""",
    """CREATE TABLE messages (
        conversation TEXT NOT NULL,
        number INTEGER NOT NULL,
        message TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        compressed INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (conversation, number)
    ) WITHOUT ROWID""",
    HEADERS,
    *word_index.SCHEMA,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


@dataclass(frozen=True)
class NodeData:
    """What scoring needs of a document; see :class:`shared_context.store.node_index.NodeIndex`.

    Attributes:
        codes: int8 [tokens, code_size].
        scales: float16 [tokens].
        embeddings: float32 [spans, dimension], of ``TreeConfig.embedded_leaves`` leaves each; no columns where there
            is no embedder.
        words: of the leaves; None where the data were read back, for words are looked up where they are kept.
    """

    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray
    words: LeafWords | None = None


@dataclass(frozen=True)
class HeaderData:
    """What scoring needs of a document's header; see :class:`shared_context.store.header_index.HeaderIndex`.

    Attributes:
        codes: int8 [tokens, code_size].
        scales: float16 [tokens].
        embeddings: float32 [spans, dimension].
    """

    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray


class NodeShape(NamedTuple):
    """Columns of node data.

    Attributes:
        code_size: dimensions of a token's code.
        dimension: of an embedding; 0 where there is no embedder.
    """

    code_size: int
    dimension: int


@dataclass(frozen=True)
class StoredText:
    """A document's text with its tokens; it never changes under its key."""

    text: str
    tokens: TokenizedText


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


@dataclass(frozen=True)
class Message:
    """A message of a conversation; ``compressed`` once it is part of the conversation's document."""

    number: int
    message: dict[str, Any]
    tokens: int
    compressed: bool


class Database:
    """The store's SQLite file.

    Everything but :meth:`get_meta` and :meth:`decoding` is called inside of :meth:`snapshot` or :meth:`transaction`,
    where one thread is at a time.

    Args:
        folder: the store's folder; None keeps the database in memory.
        meta: values of the store as a whole that a new store begins with; None opens one that exists. If another
            process makes a store in the folder at the same time, the first one's values hold for both.

    Attributes:
        words: those of the documents' leaves.

    Raises:
        StoreFormatError: where the folder is something else, half written, damaged or of a newer format.
        StoreUnavailableError: where it cannot be read or written now.
    """

    def __init__(self, folder: Path | None, meta: Mapping[str, bytes] | None = None):
        if meta is None and (folder is None or is_vacant(folder)):
            raise StoreFormatError(f"{folder} holds no store: it is missing or empty. Check the path.")
        self._place = _place(folder)
        self._lock = threading.RLock()
        self._closed = False
        with _errors(self._place):
            self._connection = _connect(folder)
            self.words = WordIndex(self._connection)
            try:
                if meta is not None:
                    self._create(meta)
                self._check(folder)
            except BaseException:
                self._connection.close()
                raise

    def _create(self, meta: Mapping[str, bytes]) -> None:
        self._switch_to_wal()
        # All at once, so that nobody ever meets a store without its meta.
        with self.transaction():
            if not self._tables():
                for statement in SCHEMA:
                    self._connection.execute(statement)
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())

    def _switch_to_wal(self) -> None:
        """Turn on the write-ahead log. SQLite refuses those that do so at the same time instead of making them wait."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(CREATION_SECONDS / 100)

    def _check(self, folder: Path | None) -> None:
        deadline = time.monotonic() + CREATION_SECONDS
        while not self._tables():
            if time.monotonic() > deadline:
                raise StoreFormatError(
                    f"{folder} is a store whose making was cut off; it holds no documents. Delete the folder."
                )
            time.sleep(CREATION_SECONDS / 20)
        application, version, page_size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "page_size")
        )
        if application != APPLICATION_ID:
            raise StoreFormatError(f"{self._place} was made by another program. Give another path.")
        if version in UPGRADES:
            self._upgrade()
            version = VERSION
        if version != VERSION:
            mend = "Upgrade shared-context." if version > VERSION else "Make the store anew from its documents."
            raise StoreFormatError(
                f"{folder} has store format {version}, and this version of shared-context reads {VERSION}. {mend}"
            )
        # SQLite itself would read zeros for what is missing of the last page.
        if folder is not None and (folder / FILE).stat().st_size % page_size:
            raise _damaged(self._place, "it ends within a page")

    def _upgrade(self) -> None:
        """Make a store of an older format one of this; what it holds stays as it is."""
        with self.transaction():
            # Another process may have been faster.
            while (version := self._connection.execute("PRAGMA user_version").fetchone()[0]) in UPGRADES:
                for statement in UPGRADES[version]:
                    self._connection.execute(statement)
                if version == 2:
                    self._take_in_words()
                self._connection.execute(f"PRAGMA user_version = {version + 1}")

    def _take_in_words(self) -> None:
        """Find the words of documents that were stored when none were kept."""
        with self.decoding():
            tree = TreeConfig(**json.loads(self.get_meta("about"))["config"]["tree"])
        for (key,) in self._connection.execute("SELECT key FROM documents").fetchall():
            stored = self.document(key)
            self.words.add(key, LeafWords.of(stored.text, stored.tokens, tree.leaf_size))

    def _tables(self) -> list[str]:
        return [row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One thread is inside at a time.

        Raises:
            StoreClosedError: the database was closed.
        """
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self._place} is closed; open it again.")
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside lands at its end, or nothing does."""
        with self.locked(), _errors(self._place):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever other processes write meanwhile."""
        with self.locked(), _errors(self._place):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._rollback()

    def _rollback(self) -> None:
        if self._connection.in_transaction:  # after some errors SQLite has rolled back already
            self._connection.execute("ROLLBACK")

    def data_version(self) -> int:
        """A number that changes when another process has written."""
        return self._connection.execute("PRAGMA data_version").fetchone()[0]

    def get_meta(self, key: str) -> bytes:
        """A value of the store as a whole."""
        with _errors(self._place):
            row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise _damaged(self._place, f"its {key} is missing")
        return row[0]

    def set_meta(self, key: str, value: bytes) -> None:
        """Replace a value of the store as a whole."""
        self._connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """What was read is decoded inside; where it cannot be, the file is damaged."""
        try:
            yield
        except (ValueError, TypeError, SafetensorError) as error:
            raise _damaged(self._place, error) from error

    def insert(self, entry: Entry, stored: StoredText, nodes: NodeData, header: HeaderData | None = None) -> int:
        """Add a document's row and its header's; returns its key, which no other row ever has."""
        cursor = self._connection.execute(
            "INSERT INTO documents (kind, id, metadata, text, ids, bounds, codes, scales, embeddings) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.kind,
                entry.id,
                json.dumps(entry.metadata, ensure_ascii=False),
                stored.text,
                stored.tokens.ids.astype(np.int32).tobytes(),
                stored.tokens.bounds.astype(np.uint32).tobytes(),
                nodes.codes.tobytes(),
                nodes.scales.tobytes(),
                nodes.embeddings.tobytes(),
            ),
        )
        self._insert_header(cursor.lastrowid, entry, header)
        self.words.add(cursor.lastrowid, nodes.words)
        return cursor.lastrowid

    def _insert_header(self, key: int, entry: Entry, header: HeaderData | None) -> None:
        if header is None and not entry.unsearched_keys and not entry.hidden_keys:
            return
        parts = (b"", b"", b"")
        if header is not None:
            parts = tuple(part.tobytes() for part in (header.codes, header.scales, header.embeddings))
        keys = (json.dumps(names, ensure_ascii=False) for names in (entry.unsearched_keys, entry.hidden_keys))
        self._connection.execute("INSERT INTO headers VALUES (?, ?, ?, ?, ?, ?)", (key, *keys, *parts))

    def remove(self, key: int) -> None:
        """Delete a document's row, its header's and its words."""
        stored = self.document(key)
        self.words.remove(key, stored.text, stored.tokens)
        self._connection.execute("DELETE FROM documents WHERE key = ?", (key,))
        self._connection.execute("DELETE FROM headers WHERE document = ?", (key,))

    def describe(self, key: int, entry: Entry, header: HeaderData | None) -> None:
        """Replace a document's metadata and header."""
        metadata = json.dumps(entry.metadata, ensure_ascii=False)
        self._connection.execute("UPDATE documents SET metadata = ? WHERE key = ?", (metadata, key))
        self._connection.execute("DELETE FROM headers WHERE document = ?", (key,))
        self._insert_header(key, entry, header)

    def catalogue(self) -> dict[int, Entry]:
        """The lines of all documents by their keys, which rise in the order of adding."""
        rows = self._connection.execute(
            "SELECT key, kind, id, metadata, unsearched_keys, hidden_keys FROM documents "
            "LEFT JOIN headers ON document = key ORDER BY key"
        )
        with self.decoding():
            return {
                key: Entry(
                    kind, id, read_only(json.loads(metadata)), *(tuple(json.loads(names or "[]")) for names in keys)
                )
                for key, kind, id, metadata, *keys in rows
            }

    def headers(self, shape: NodeShape, key: int | None = None) -> dict[int, HeaderData]:
        """What scoring needs of the headers of all documents, or of the one with ``key``; of those that have one."""
        rows = self._connection.execute(
            "SELECT document, codes, scales, embeddings FROM headers "
            "WHERE length(codes) AND document = COALESCE(?, document)",
            (key,),
        )
        with self.decoding():
            return {
                document: HeaderData(
                    np.frombuffer(codes, np.int8).reshape(-1, shape.code_size),
                    np.frombuffer(scales, np.float16),
                    _rows(embeddings, shape.dimension),
                )
                for document, codes, scales, embeddings in rows
            }

    def document(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        row = self._connection.execute("SELECT text, ids, bounds FROM documents WHERE key = ?", (key,)).fetchone()
        with self.decoding():
            text, ids, bounds = row
            tokens = TokenizedText(np.frombuffer(ids, np.int32), np.frombuffer(bounds, np.uint32).astype(np.int64))
            return StoredText(text, tokens)

    def token_ids(self, key: int) -> np.ndarray:
        """A document's token ids, int32 [tokens]."""
        row = self._connection.execute("SELECT ids FROM documents WHERE key = ?", (key,)).fetchone()
        with self.decoding():
            return np.frombuffer(row[0], np.int32)

    def nodes(self, key: int, shape: NodeShape) -> NodeData:
        """What scoring needs of a document."""
        row = self._connection.execute(
            "SELECT codes, scales, embeddings FROM documents WHERE key = ?", (key,)
        ).fetchone()
        with self.decoding():
            return NodeData(
                np.frombuffer(row[0], np.int8).reshape(-1, shape.code_size),
                np.frombuffer(row[1], np.float16),
                _rows(row[2], shape.dimension),
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

    def messages(self, conversation: str, *, recent: bool = False) -> list[Message]:
        """A conversation's messages, oldest first; all of them, or those that are not compressed."""
        rows = self._connection.execute(
            "SELECT number, message, tokens, compressed FROM messages WHERE conversation = ? AND compressed <= ? "
            "ORDER BY number",
            (conversation, 0 if recent else 1),
        )
        with self.decoding():
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
        """Write the whole database into another folder, which :func:`is_vacant`."""
        with _errors(_place(folder)), closing(_connect(folder)) as copy:
            self._connection.backup(copy)
            copy.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Close the file; nothing is written by closing."""
        with self._lock:
            self._closed = True
            self._connection.close()


def _rows(embeddings: bytes, dimension: int) -> np.ndarray:
    """Embeddings [spans, dimension]; without a dimension there are none."""
    values = np.frombuffer(embeddings, np.float32)
    return values.reshape(len(values) // max(1, dimension), dimension)


def is_vacant(folder: Path) -> bool:
    """Whether a store can be made in a folder, because it is missing or empty; False where it holds one.

    Raises:
        StoreFormatError: it is no folder, or holds something else than a store.
        StoreUnavailableError: it cannot be read.
    """
    with _access(folder):
        if not folder.exists():
            return True
        if not folder.is_dir():
            raise StoreFormatError(f"{folder} is a file; a store is a folder. Give another path.")
        if not any(folder.iterdir()):
            return True
        if not (folder / FILE).is_file():
            raise StoreFormatError(f"{folder} holds no {FILE}, so it is not a store. Give an empty or new folder.")
        return False


def _connect(folder: Path | None) -> sqlite3.Connection:
    if folder is not None:
        with _access(folder):
            folder.mkdir(parents=True, exist_ok=True)
    name = ":memory:" if folder is None else str(folder / FILE)
    return sqlite3.connect(name, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)


@contextmanager
def _access(folder: Path) -> Iterator[None]:
    """Say in the library's own error what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder {folder} cannot be used ({error.strerror}). Check the path and the rights on it."
        ) from error


@contextmanager
def _errors(place: str) -> Iterator[None]:
    """Say in the library's own errors what SQLite refuses; what can only be a mistake in this library stays raw."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode"):
            # Not of SQLite but of Python's module, which quotes the whole text.
            raise _damaged(place, "it holds text that is not UTF-8") from error
        if "no such module: fts5" in str(error):
            raise StoreUnavailableError(
                "The SQLite of this Python has no FTS5, which words are kept in. Use a Python whose sqlite3 has it, as "
                "those of python.org, conda and Linux distributions do."
            ) from error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended code is the plain one
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(place, error) from error
        if code not in _MENDS:
            raise
        raise StoreUnavailableError(f"{place} cannot be used now ({error}). {_MENDS[code]}") from error


_WAIT = f"Another process has been writing to it for {BUSY_SECONDS:.0f} seconds; try again."
_SPACE = "Nothing of this change was stored. Free some space or check the disk, and try again."
_RIGHTS = "Give this process the right to read and write the folder and its files."
_MENDS = {
    sqlite3.SQLITE_BUSY: _WAIT,
    sqlite3.SQLITE_LOCKED: _WAIT,
    sqlite3.SQLITE_FULL: _SPACE,
    sqlite3.SQLITE_IOERR: _SPACE,
    sqlite3.SQLITE_CANTOPEN: _RIGHTS,
    sqlite3.SQLITE_PERM: _RIGHTS,
    sqlite3.SQLITE_READONLY: _RIGHTS,
}


def _damaged(place: str, reason: object) -> StoreFormatError:
    return StoreFormatError(
        f"{place} is damaged or not a store ({reason}). Restore it from a copy, or delete the folder and add the "
        "documents again."
    )


def _place(folder: Path | None) -> str:
    return "The store in memory" if folder is None else str(folder / FILE)
