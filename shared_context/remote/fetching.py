"""Snapshots on this machine: fetched into a folder, or into a bounded cache that stores are opened from."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shared_context.config import GIB
from shared_context.errors import ConfigError, StoreFormatError, StoreUnavailableError
from shared_context.model.pretrained import cache_folder
from shared_context.remote.address import Address, side_by_side
from shared_context.remote.snapshot import (
    PIECE_BYTES,
    PublishedStore,
    Snapshot,
    find,
    hash_of,
    read_object,
)
from shared_context.store.shard_folders import folders_of, note_shards
from shared_context.store.sqlite_file import FILE

logger = logging.getLogger(__name__)

ORIGIN = "published.json"
"""In a store's folder: the addresses that it was published at or fetched from, each with the number of the snapshot."""

SNAPSHOT_BYTES = 32 * GIB
"""Of snapshots in the cache, but for those that are open; ``SHARED_CONTEXT_SNAPSHOT_BYTES`` sets another limit."""


def store_folders(folder: Path, count: int) -> list[Path]:
    """Where the stores of a snapshot lie in a folder: one in the folder itself, shards each in a folder of its own."""
    return [folder] if count == 1 else folders_of(folder, count)


@dataclass(frozen=True)
class Origin:
    """Which snapshot of an address a store comes from.

    Attributes:
        number: of the snapshot; None where it comes from none.
        attempted: hash of the manifest that was written last, or was about to be when the writer was cut off.
    """

    number: int | None = None
    attempted: str | None = None


def origin(folder: Path, address: Address) -> Origin:
    """Which snapshot of an address a store was fetched from or published as."""
    try:
        return Origin(**json.loads((folder / ORIGIN).read_text(encoding="utf-8"))[address.url])
    except (OSError, ValueError, TypeError, LookupError):  # without it, publishing goes on top of nothing unasked
        return Origin()


def note_origin(folder: Path, address: Address, found: Origin) -> None:
    """Note which snapshot a store came from, or became, or is about to become."""
    try:
        known = dict(json.loads((folder / ORIGIN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    unfinished = folder / f".{ORIGIN}.{secrets.token_hex(8)}"
    unfinished.write_text(json.dumps({**known, address.url: asdict(found)}), encoding="utf-8")
    os.replace(unfinished, folder / ORIGIN)


def pull(address: str, folder: str | Path, *, kv: bool = False) -> Snapshot:
    """Fetch a snapshot into a new folder, where it is a store like any other.

    Args:
        address: of a published store; ``@NUMBER`` behind it names an earlier snapshot.
        folder: new or empty.
        kv: fetch the keys and values that were published with it, too.

    Raises:
        SnapshotNotFoundError: nothing is published there.
        StoreFormatError: the folder holds something already, or the snapshot is damaged.
        StoreUnavailableError: the address or the folder cannot be used now.
    """
    at, folder = Address(address), Path(folder)
    snapshot = find(at)
    with _writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreFormatError(f"{folder} holds something already; give a new folder.")
        # Whole under another name first: a store that is half fetched is never met.
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
        try:
            for place, store in zip(store_folders(unfinished, len(snapshot.stores)), snapshot.stores, strict=True):
                fetch_store(at, store, place)
                for name, hash in _kv_index(at, store).items() if kv else ():
                    # Those of shards are the store's, in one cache.
                    path = unfinished / "kv" / name[:2] / f"{name}.safetensors"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(read_object(at, hash))
            note_origin(unfinished, at, Origin(snapshot.number))
            if len(snapshot.stores) > 1:
                note_shards(unfinished, len(snapshot.stores))
            if folder.exists():
                folder.rmdir()
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return snapshot


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in the library's own error what the file system refuses."""
    try:
        yield
    except StoreUnavailableError:
        raise
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder {folder} cannot be written ({error.strerror or error}). Check the path, the rights on it and "
            "the free space."
        ) from error


def fetch_store(address: Address, store: PublishedStore, folder: Path, others: Sequence[Path] = ()) -> None:
    """Write a published store's file into a folder, whole or not at all.

    Pieces of a file that lies there already are kept where their content is that of the snapshot.

    Args:
        others: files of other snapshots of it, which may have pieces in common.
    """

    def piece(number: int) -> bytes:
        for other in others:
            content = _piece(other, number)
            if hash_of(content) == store.pieces[number]:
                return content
        return read_object(address, store.pieces[number])

    folder.mkdir(parents=True, exist_ok=True)
    file, unfinished = folder / FILE, folder / f".{FILE}.{secrets.token_hex(8)}"
    wrong = _wrong_pieces(file, store)
    if not wrong and file.exists():
        return
    try:
        if file.exists():
            logger.warning("%s: %d of its pieces are not what was published, and are fetched anew", file, len(wrong))
            shutil.copyfile(file, unfinished)
        with open(unfinished, "r+b" if file.exists() else "wb") as written:
            for number, content in zip(wrong, side_by_side(piece, wrong), strict=True):
                written.seek(number * PIECE_BYTES)
                written.write(content)
            written.truncate(store.bytes)
            written.flush()
            os.fsync(written.fileno())
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _piece(file: Path, number: int) -> bytes:
    """A piece of a file; empty where there is none."""
    try:
        with open(file, "rb") as read:
            read.seek(number * PIECE_BYTES)
            return read.read(PIECE_BYTES)
    except OSError:
        return b""


def _wrong_pieces(file: Path, store: PublishedStore) -> list[int]:
    """Numbers of the pieces of a file that are not those of a published store; all where there is no file."""
    try:
        with open(file, "rb") as read:
            wrong = [n for n, hash in enumerate(store.pieces) if hash_of(read.read(PIECE_BYTES)) != hash]
            return wrong if wrong or not read.read(1) else list(range(len(store.pieces)))
    except FileNotFoundError:
        return list(range(len(store.pieces)))


def _kv_index(address: Address, store: PublishedStore) -> dict[str, str]:
    """Hashes of published keys and values by their names in the cache."""
    if store.kv is None:
        return {}
    listed = json.loads(read_object(address, store.kv))
    return {name: hash for name, (hash, _) in listed.items()}


class PublishedKV:
    """Keys and values that were published with a store, fetched when they are asked for.

    Args:
        address: where they are.
        store: the one that they belong to.
    """

    def __init__(self, address: Address, store: PublishedStore):
        self._address = address
        self._hashes = _kv_index(address, store)

    def __contains__(self, name: object) -> bool:
        return name in self._hashes

    def read(self, name: str) -> bytes | None:
        """The file of a name in the cache; None where it was not published, or cannot be had: it is computed then."""
        if name not in self._hashes:
            return None
        try:
            return read_object(self._address, self._hashes[name])
        except (StoreFormatError, StoreUnavailableError) as error:
            logger.warning("published keys and values are left aside and computed instead: %s", error)
            return None


@dataclass(frozen=True)
class Checkout:
    """A snapshot in the cache, which stays there until it is let go.

    Attributes:
        snapshot: what it is.
        folder: where it lies.
        kv_folder: where its keys and values are kept, with those of other snapshots of its address.
        kv: those that were published, of each store.
    """

    address: Address
    snapshot: Snapshot
    folder: Path
    kv_folder: Path
    kv: tuple[PublishedKV, ...]
    _lock: FileLock

    def release(self) -> None:
        """Let the cache remove it when it needs the room."""
        path = Path(self._lock.lock_file)
        self._lock.release()
        path.unlink(missing_ok=True)


def check_out(
    address: str,
    check: Callable[[Snapshot], object] = lambda snapshot: None,
    shards: Collection[int] | None = None,
) -> Checkout:
    """The snapshot of an address in the cache, fetched as far as it is not there.

    Every piece is compared with its hash, of what was there already, too.

    Args:
        check: called before anything is fetched; may refuse the snapshot.
        shards: numbers of those that are fetched of a store of shards; None fetches all.

    Raises:
        SnapshotNotFoundError: nothing is published there.
        StoreFormatError: the snapshot is damaged.
        StoreUnavailableError: the address cannot be read, or the cache cannot be written.
    """
    at = Address(address)
    snapshot = find(at)
    check(snapshot)
    home = cache_folder() / "snapshots"
    own = home / hash_of(at.url.encode())[:32]
    folder = own / f"{snapshot.number:09}"
    with _writing(home):
        (folder / "open").mkdir(parents=True, exist_ok=True)
        # Locks of the operating system: whoever dies lets go of his.
        lock = FileLock(folder / "open" / f"{os.getpid()}-{secrets.token_hex(8)}.lock")
        with FileLock(home / ".lock"):
            lock.acquire()
        try:
            with FileLock(folder / ".lock"):
                places = store_folders(folder, len(snapshot.stores))
                for number, (place, store) in enumerate(zip(places, snapshot.stores, strict=True)):
                    if shards is not None and number not in shards:
                        continue
                    within = (place / FILE).relative_to(folder)
                    fetch_store(at, store, place, sorted(own.glob(f"*/{within}"), reverse=True))
            os.utime(folder)
            _make_room(home, _limit())
        except BaseException:
            lock.release()
            raise
    kv = tuple(PublishedKV(at, store) for store in snapshot.stores)
    return Checkout(at, snapshot, folder, own / "kv", kv, lock)


def _limit() -> int:
    given = os.environ.get("SHARED_CONTEXT_SNAPSHOT_BYTES")
    if not given:
        return SNAPSHOT_BYTES
    if not given.isdecimal():
        raise ConfigError(f"SHARED_CONTEXT_SNAPSHOT_BYTES={given!r}: must be a number of bytes")
    return int(given)


def _make_room(home: Path, limit: int) -> None:
    """Remove the snapshots used longest ago, but for open ones, until all take no more than a limit."""
    with FileLock(home / ".lock"):
        folders = [folder for folder in home.glob("*/*") if folder.name.isdecimal()]
        sizes = {folder: sum(file.stat().st_size for file in folder.rglob(FILE)) for folder in folders}
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime):
            if sum(sizes.values()) <= limit:
                return
            if not _is_open(folder):
                shutil.rmtree(folder, ignore_errors=True)
                del sizes[folder]


def _is_open(folder: Path) -> bool:
    for path in (folder / "open").glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        path.unlink(missing_ok=True)  # of a process that died
    return False
