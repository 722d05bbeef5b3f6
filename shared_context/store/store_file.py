"""A store's file as one process has it open: a change lands whole or not at all, what is read is of one moment."""

from __future__ import annotations

import ctypes
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from shared_context.errors import StoreClosedError, StoreFormatError, StoreUnavailableError
from shared_context.store import format as file_format
from shared_context.store.checksum import checksum
from shared_context.store.forks import ForkSafeLock
from shared_context.store.format import APPLICATION_ID, OLDEST, VERSION
from shared_context.store.log import lost_changes
from shared_context.store.sqlite_file import (
    BUSY_SECONDS,
    FILE,
    RIGHTS,
    UNFINISHED,
    check_files,
    connect,
    connect_reading,
    damaged,
    errors,
    fill,
    identity,
    is_vacant,
    is_writable,
    make,
    place,
    remove,
    stillness,
    waiting,
)
from shared_context.store.word_index import WordIndex

logger = logging.getLogger(__name__)

TRUNCATION_SECONDS = 0.2
"""How long emptying the log waits for other processes that read; else the next change tries again."""
SWITCH_PAUSE_SECONDS = 0.01
"""Between two attempts to turn on the write-ahead log."""


class StoreFile:
    """The store's SQLite file, as a connection of this process.

    Everything but :meth:`get_meta` and :meth:`decoding` is called inside of :meth:`snapshot` or :meth:`transaction`,
    where one thread is at a time.

    Every row has a checksum, which is compared when the row is read. What is deleted is overwritten, in the file and
    in its log.

    Args:
        folder: the store's folder; None keeps the database in memory.
        meta: values of the store as a whole that a new store begins with; None opens one that exists. If another
            process makes a store in the folder at the same time, the first one's values hold for both.
        digest: of a chunk's token ids, behind a salt; upgrades a file of an older format.
        read_only: nothing is written, whatever this process may.

    Attributes:
        words: those of the leaves of documents and conversations.
        read_only: whether nothing is written, for the file or its folder may not be.

    Raises:
        StoreFormatError: where the folder is something else, damaged or of a newer format.
        StoreUnavailableError: where it cannot be read or written now.
    """

    def __init__(
        self,
        folder: Path | None,
        meta: Mapping[str, bytes] | None = None,
        *,
        digest: Callable[[bytes, np.ndarray], bytes] | None = None,
        read_only: bool = False,
    ):
        if meta is None and (folder is None or is_vacant(folder)):
            raise StoreFormatError(f"{folder} holds no store: it is missing or empty. Check the path.")
        self._folder = folder.absolute() if folder is not None else None
        self._place = place(folder)
        self._lock = ForkSafeLock()
        self._closed = self._log_has_deleted = False
        self._still: tuple[int, int, int] | None = None
        self._openings = 0
        self.read_only = read_only
        with errors(self._place):
            if meta is not None and self._folder is not None:
                make(self._folder, partial(fill, meta=meta))
            self._connect()
            self.words = WordIndex(self._connection)
            try:
                if meta is not None and self._folder is None:
                    fill(self._connection, meta)
                self._check(folder, digest)
            except BaseException:
                self._connection.close()
                raise

    def _connect(self) -> None:
        """Open the file; where it may not be written, for reading."""
        self._openings += 1
        self._meta_is_whole = False
        if self._folder is None:
            self._connection = connect(None)
        else:
            check_files(self._folder)
            for path in self._folder.glob(f"{UNFINISHED}*"):  # whose makers ended, or find that they were second
                remove(path)
            lost = lost_changes(self._folder / f"{FILE}-wal")
            self.read_only = self.read_only or not is_writable(self._folder)
            self._still = stillness(self._folder) if self.read_only else None
            self._connection = (
                connect_reading(self._folder, self._still is not None)
                if self.read_only
                else connect(self._folder / FILE)
            )
            if lost:
                logger.warning(
                    "%s lost up to %d changes: the log that a writer left behind is damaged, and what follows the "
                    "damage cannot be read. Compare the documents with their sources.", self._place, lost,
                )  # fmt: skip
        self._connection.execute("PRAGMA secure_delete = ON")
        self._connection.execute("PRAGMA temp_store = MEMORY")
        self._identity = identity(self._folder) if self._folder is not None else None

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
            time.sleep(SWITCH_PAUSE_SECONDS)

    def _check(self, folder: Path | None, digest: Callable[[bytes, np.ndarray], bytes] | None) -> None:
        if not self._tables():
            raise damaged(self._place, "it holds nothing")
        application, version = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != APPLICATION_ID:
            raise StoreFormatError(f"{self._place} was made by another program. Give another path.")
        if not OLDEST <= version <= VERSION:
            mend = "Upgrade shared-context." if version > VERSION else "Make the store anew from its documents."
            raise StoreFormatError(
                f"{folder} has store format {version}, and this version of shared-context reads {VERSION}. {mend}"
            )
        if version < VERSION:
            self._upgrade(digest)
        # What is made by the statements of the format alone runs nothing of somebody else's.
        if file_format.tables(self._connection) != file_format.expected_tables():
            raise damaged(self._place, "its tables are not those of a store")
        if self._folder is not None:
            self._check_size(self._folder / FILE)
        if not self.read_only:
            if folder is not None:
                self._switch_to_wal()
            self._empty_log()

    def _upgrade(self, digest: Callable[[bytes, np.ndarray], bytes] | None) -> None:
        if self.read_only or digest is None:
            raise StoreUnavailableError(
                f"{self._place} is of an older format and has to be upgraded, which takes the right to write it. "
                "Open it once with that right."
            )
        with self.transaction(), self.decoding():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version < VERSION:  # else another process was faster
                try:
                    file_format.upgrade(self._connection, version, digest)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
                        raise
                    raise damaged(self._place, f"it is no file of format {version}: {error}") from error
                self._log_has_deleted = True

    def _check_size(self, file: Path) -> None:
        """SQLite itself would read zeros for what is missing of the last page, unless its log has the page."""
        page_size = self._connection.execute("PRAGMA page_size").fetchone()[0]
        if file.stat().st_size % page_size and not self.read_only:
            self._connection.execute("PRAGMA wal_checkpoint(FULL)")
        if file.stat().st_size % page_size:
            raise damaged(self._place, "it ends within a page")

    def _tables(self) -> list[str]:
        return [row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One thread is inside at a time.

        Raises:
            StoreClosedError: the database was closed.
            StoreUnavailableError: its folder was removed or replaced.
        """
        with self._lock:
            if self._closed:
                raise StoreClosedError(f"{self._place} is closed; open it again.")
            self._check_identity()
            # SQLite's connection must not be used across a fork. No thread was using it meanwhile.
            stirred = self._has_stirred() and not self._connection.in_transaction  # else it is told at the end
            if self._folder is not None and (self._lock.forked() or stirred):
                with errors(self._place):
                    self._connection.close()
                    self._connect()
                    self.words.reconnect(self._connection)
            yield

    def _has_stirred(self) -> bool:
        """Whether somebody writes a file that was opened as one that nobody writes."""
        return self._folder is not None and self._still is not None and stillness(self._folder) != self._still

    def _check_identity(self) -> None:
        """That the file is still where it was opened: what is written to another one would be lost."""
        if self._folder is not None and identity(self._folder) != self._identity:
            raise StoreUnavailableError(
                f"{self._place} was removed, moved or replaced while it was open. Nothing of this change was stored "
                "there; open the store again."
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside lands at its end, or nothing does."""
        with self.locked(), errors(self._place):
            if self.read_only:
                raise StoreUnavailableError(f"{self._place} is open for reading only. {RIGHTS}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.words.write()
                self._connection.execute("COMMIT")
            except BaseException:
                self._rollback()
                self.words.undo()
                raise
            self._check_identity()
            if self._log_has_deleted:
                self._empty_log()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever other processes write meanwhile."""
        with self.locked(), errors(self._place):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._rollback()
            if self._has_stirred():
                raise StoreUnavailableError(f"{self._place} was changed while it was read. Try again.")

    def _rollback(self) -> None:
        if self._connection.in_transaction:  # after some errors SQLite has rolled back already
            self._connection.execute("ROLLBACK")

    def _empty_log(self) -> None:
        """Move what the log holds into the file, where deleted pages are overwritten, and cut the log off."""
        if self._folder is None:
            return
        # A full disk: the change is in the log all the same.
        with waiting(self._connection, TRUNCATION_SECONDS), suppress(sqlite3.OperationalError):
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._log_has_deleted = bool(busy) and self._log_has_deleted

    def compact(self) -> None:
        """Give the space of what was deleted back to the file system. Waits for other processes that write."""
        with self.locked(), errors(self._place):
            if self.read_only:
                raise StoreUnavailableError(f"{self._place} is open for reading only. {RIGHTS}")
            self._connection.execute("VACUUM")
            self._log_has_deleted = True
            self._empty_log()

    def nbytes(self) -> int:
        """Bytes of all that is kept of the documents."""
        pages, size = (
            self._connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("page_count", "page_size")
        )
        return pages * size

    def data_version(self) -> int:
        """A number that changes when another process has written."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return self._openings << 32 | version  # each connection counts for itself

    def get_meta(self, key: str) -> bytes:
        """A value of the store as a whole."""
        value = self.find_meta(key)
        if value is None:
            raise damaged(self._place, f"its {key} is missing")
        return value

    def find_meta(self, key: str) -> bytes | None:
        """A value of the store as a whole; None where it has none of this name."""
        with errors(self._place):
            value = self.told_meta(key)
            if value is None and not self._meta_is_whole:
                self.meta("")  # it may be there under another name
                self._meta_is_whole = True  # looked at once an opening: there is one for each conversation
            return value

    def told_meta(self, key: str) -> bytes | None:
        """As :meth:`find_meta`, of what an earlier version did not write: a name that is damaged is not noticed."""
        row = self._connection.execute("SELECT checksum, value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._checked_meta(key, *row)

    def meta(self, beginning: str) -> dict[str, bytes]:
        """Values of the store as a whole whose names begin so, by their names."""
        rows = self._connection.execute(
            "SELECT key, checksum, value FROM meta WHERE SUBSTR(key, 1, ?) = ?", (len(beginning), beginning)
        )
        return {key: self._checked_meta(key, *row) for key, *row in rows}

    def _checked_meta(self, key: str, expected: int, value: bytes) -> bytes:
        if expected != checksum(key, value):
            raise damaged(self._place, f"the checksum of its {key} is wrong")
        return value

    def set_meta(self, key: str, value: bytes | None) -> None:
        """Replace a value of the store as a whole; None removes it."""
        if value is None:
            self._connection.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            file_format.put_meta(self._connection, key, value)

    def meta_keys(self) -> list[str]:
        """Names of all values of the store as a whole."""
        return [key for (key,) in self._connection.execute("SELECT key FROM meta ORDER BY key")]

    @contextmanager
    def decoding(self, of: str | None = None) -> Iterator[None]:
        """What was read is decoded inside; where it cannot be, the file is damaged.

        Args:
            of: what it is, a document for example.
        """
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, SafetensorError) as error:
            reason = error if of is None else f"{of}: {error}"
            raise damaged(self._place, reason) from error

    def _check_types(self, name: str, row: Sequence[Any], types: Sequence[type]) -> None:
        """That values are of the kinds that belong in their columns, whatever SQLite lets be written there."""
        for value, wanted in zip(row, types, strict=True):
            if type(value) is not wanted:
                reason = f"{name}: a {type(value).__name__} stands where a {wanted.__name__} belongs"
                raise damaged(self._place, reason)

    # The whole file

    def copy_to(self, folder: Path) -> None:
        """Write the whole database into another folder, which :func:`is_vacant`."""
        with errors(place(folder)):
            make(folder.absolute(), self._connection.backup)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._folder is not None and identity(self._folder) != self._identity:
                # Closing would remove the log that lies at this path now, which is another file's.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
                return
            self._connection.close()
