"""The file that a store is: made whole, named, connected to; what the system refuses, in the library's own errors."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from shared_context.errors import DocumentError, StoreFormatError, StoreUnavailableError
from shared_context.store import format as file_format
from shared_context.store.shard_folders import is_sharded

FILE = "store.sqlite"
UNFINISHED = f".{FILE}."
"""What the name of a file begins with that is being made a store's."""

BUSY_SECONDS = 30.0
"""How long a change waits for another process's."""


def is_vacant(folder: Path) -> bool:
    """Whether a store can be made in a folder, because it is missing or empty, or the making of one was cut off there.

    Raises:
        StoreFormatError: it is no folder, or holds something else than a store.
        StoreUnavailableError: it cannot be read.
    """
    with access(folder):
        if not folder.exists():
            return True
        if not folder.is_dir():
            raise StoreFormatError(f"{folder} is a file; a store is a folder. Give another path.")
        if all(path.name.startswith(UNFINISHED) for path in folder.iterdir()):
            return True
        if is_sharded(folder):
            raise StoreFormatError(
                f"{folder} is a store of shards: open it with shared_context.shards.ShardedContextStore."
            )
        if not (folder / FILE).is_file():
            raise StoreFormatError(f"{folder} holds no {FILE}, so it is not a store. Give an empty or new folder.")
        return False


def fill(connection: sqlite3.Connection, meta: Mapping[str, bytes]) -> None:
    """Make the tables of a new store."""
    connection.execute("BEGIN IMMEDIATE")
    file_format.create(connection)
    file_format.add_namespace(connection, file_format.DEFAULT_NAMESPACE)
    for key, value in meta.items():
        file_format.put_meta(connection, key, value)
    connection.execute("COMMIT")


def make(folder: Path, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Make a store's file whole under another name, so that nobody ever meets a part of it.

    If another process makes one at the same time, the first one's stays.
    """
    with access(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    try:
        with closing(connect(unfinished, creating=True)) as connection:
            fill(connection)
            connection.execute("PRAGMA journal_mode = WAL")
        with access(folder), suppress(FileExistsError, FileNotFoundError):
            give_name(unfinished, folder / FILE)
    except sqlite3.Error:
        if not (folder / FILE).exists():
            raise
        # Another one was first, and has removed what was unfinished.
    finally:
        for path in folder.glob(f"{unfinished.name}*"):
            path.unlink(missing_ok=True)


def give_name(unfinished: Path, file: Path) -> None:
    """Give a file its name, if no other has that."""
    try:
        os.link(unfinished, file)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A file system without links: of two that make a store in the same moment the second one's stays.
        if not file.exists():
            os.rename(unfinished, file)


def remove(path: Path) -> None:
    """Take away what is left of an unfinished file or of a folder with one, where that is possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def connect(file: Path | None, creating: bool = False) -> sqlite3.Connection:
    """A connection to a file, or to a database in memory."""
    name = ":memory:" if file is None else f"{file.absolute().as_uri()}?mode={'rwc' if creating else 'rw'}"
    return sqlite3.connect(
        name, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS, uri=file is not None
    )


@contextmanager
def waiting(connection: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Wait for other processes no longer than this inside."""
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_SECONDS)}")


def connect_reading(folder: Path, still: bool) -> sqlite3.Connection:
    """Open a file that this process may not write.

    Args:
        still: whether nobody writes it. Without a log, and without the right to make one, SQLite reads a file only if
            told so.
    """
    name = f"{(folder.absolute() / FILE).as_uri()}?mode=ro{'&immutable=1' if still else ''}"
    return sqlite3.connect(name, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS, uri=True)


def stillness(folder: Path) -> tuple[int, int, int] | None:
    """What stays the same of a file as long as nobody writes it; None where its log holds something."""
    try:
        if os.stat(folder / f"{FILE}-wal").st_size:
            return None
    except FileNotFoundError:
        pass
    except OSError:
        return None
    with access(folder):
        status = os.stat(folder / FILE)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def is_writable(folder: Path) -> bool:
    """Whether this process may write the store."""
    return os.access(folder, os.W_OK) and os.access(folder / FILE, os.W_OK)


def check_files(folder: Path) -> None:
    """That SQLite will meet no pipe or device, where reading never ends."""
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal"):
        with access(folder), suppress(FileNotFoundError):  # one look: the last to close a store removes its log
            if not stat.S_ISREG(os.stat(folder / name).st_mode):
                raise StoreFormatError(f"{folder / name} is no regular file, so {folder} is not a store.")


def identity(folder: Path) -> tuple[int, int] | None:
    """Which file lies in a folder; None where there is none."""
    try:
        status = os.stat(os.path.join(folder, FILE))  # asked several times in every change
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def access(folder: Path) -> Iterator[None]:
    """Say in the library's own error what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder {folder} cannot be used ({error.strerror}). Check the path and the rights on it."
        ) from error


@contextmanager
def errors(place: str) -> Iterator[None]:
    """Say in the library's own errors what SQLite refuses; what can only be a mistake in this library stays raw."""
    try:
        yield
    except UnicodeDecodeError as error:  # of what SQLite quotes in its message
        raise damaged(place, "it holds text that is not UTF-8") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode"):
            # Not of SQLite but of Python's module, which quotes the whole text.
            raise damaged(place, "it holds text that is not UTF-8") from error
        if "no such module: fts5" in str(error):
            raise StoreUnavailableError(
                "The SQLite of this Python has no FTS5, in which earlier versions kept words. Open it once with a "
                "Python whose sqlite3 has it, as those of python.org, conda and Linux distributions do."
            ) from error
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF  # the low byte of an extended code is the plain one
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise damaged(place, error) from error
        if code == sqlite3.SQLITE_TOOBIG:
            raise DocumentError(
                "A text, metadata or a message is larger than SQLite keeps in one row, a billion bytes unless it was "
                "built otherwise. Nothing of this change was stored; part it."
            ) from error
        if code not in _MENDS:
            raise
        mend = _UNCONFIRMED if extended == sqlite3.SQLITE_IOERR_FSYNC else _MENDS[code]
        raise StoreUnavailableError(f"{place} cannot be used now ({error}). {mend}") from error


_WAIT = f"Another process has been writing to it for {BUSY_SECONDS:.0f} seconds; try again."
_SPACE = "Nothing of this change was stored. Free some space or check the disk, and try again."
# All of it is in the log, where who opens the store next may find it, unless it is written over before.
_UNCONFIRMED = (
    "The disk did not confirm this change, so it is not known whether it is stored; it is whole or not there. Check "
    "the disk, open the store again and look."
)
RIGHTS = "Give this process the right to read and write the folder and its files."
_MENDS = {
    sqlite3.SQLITE_BUSY: _WAIT,
    sqlite3.SQLITE_LOCKED: _WAIT,
    sqlite3.SQLITE_FULL: _SPACE,
    sqlite3.SQLITE_IOERR: _SPACE,
    sqlite3.SQLITE_CANTOPEN: RIGHTS,
    sqlite3.SQLITE_PERM: RIGHTS,
    sqlite3.SQLITE_READONLY: RIGHTS,
}


def damaged(place: str, reason: object) -> StoreFormatError:
    """The error of a file that cannot be read."""
    return StoreFormatError(
        f"{place} is damaged or not a store ({reason}). Restore it from a copy, or let `shared-context check --repair` "
        "keep what is whole, or delete the folder and add the documents again."
    )


def place(folder: Path | None) -> str:
    """What errors call the file."""
    return "The store in memory" if folder is None else str(folder / FILE)
