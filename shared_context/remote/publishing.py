"""Publishing: a store becomes a snapshot at an address, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shared_context.errors import (
    SnapshotConflictError,
    SnapshotNotFoundError,
    StoreFormatError,
    StoreUnavailableError,
)
from shared_context.remote.address import Address, side_by_side
from shared_context.remote.fetching import Origin, note_origin, origin
from shared_context.remote.pruning import GRACE_SECONDS
from shared_context.remote.snapshot import (
    PIECE_BYTES,
    PublishedStore,
    Snapshot,
    find,
    hash_of,
    manifest_name,
    numbers,
    object_name,
    objects_of,
)
from shared_context.store.database import Database
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.part_rows import DIGEST_BYTES
from shared_context.store.shard_folders import is_sharded, shard_folders
from shared_context.store.sqlite_file import FILE


def push(folder: str | Path, address: str, *, kv: bool = False, replace: bool = False) -> Snapshot:
    """Publish a store as the next snapshot of an address.

    Others may use and change the store meanwhile: what is published is the store as it was at one moment. It becomes
    visible with its manifest, which is written last; whoever reads the address meanwhile reads the snapshot before, and
    whatever cuts this off leaves that as it was. What the last snapshot has already is not written again, and where
    nothing has changed, nothing is published.

    Args:
        folder: of the store.
        address: ``s3://bucket/name`` or the like.
        kv: publish its keys and values, too, so that others need not compute them. They are many times as large as the
            documents.
        replace: publish on top of snapshots that the store does not come from; these stay readable by their numbers.

    Returns:
        The snapshot, or the last one where that is the same.

    Raises:
        SnapshotConflictError: another one has published there since this store was published or fetched.
        StoreFormatError: the folder holds no store.
        StoreUnavailableError: the address or the store cannot be used now.
    """
    folder = Path(folder)
    stores = shard_folders(folder) if is_sharded(folder) else [folder]
    at = Address(address)
    if at.number is not None:
        raise SnapshotConflictError(
            f"{address} names a snapshot, and those never change; publish at {at}, as the next one."
        )
    last = _last(at)
    objects = _Objects(at, last)
    with TemporaryDirectory(prefix="shared-context-") as copies:
        published = [
            _write(objects, store, Path(copies) / str(number), folder / "kv" if kv else None)
            for number, store in enumerate(stores)
        ]
    if numbers(at)[-1:] != ([] if last is None else [last.number]):
        # Another one was published meanwhile, and what the one before keeps may be pruned.
        return push(folder, address, kv=kv, replace=replace)
    snapshot = Snapshot(1 if last is None else last.number + 1, published[0][0], tuple(s for _, s in published))
    base = origin(folder, at)
    if last is not None and base.attempted == hash_of(last.to_bytes()):  # this store's, cut off before it was noted
        base = Origin(last.number)
    if last is not None and (last.about, last.stores) == (snapshot.about, snapshot.stores):
        note_origin(folder, at, Origin(last.number))
        return last
    if last is not None and not replace and base.number != last.number:
        raise _conflict(at, base.number, last.number)
    manifest = snapshot.to_bytes()
    note_origin(folder, at, Origin(base.number, hash_of(manifest)))
    if not at.create(manifest_name(snapshot.number), manifest):
        raise _conflict(at, None if last is None else last.number, snapshot.number)
    note_origin(folder, at, Origin(snapshot.number))
    return snapshot


def _conflict(at: Address, base: int | None, last: int) -> SnapshotConflictError:
    since = "and this store does not come from it" if base is None else f"since snapshot {base}, which this store is of"
    return SnapshotConflictError(
        f"Nothing was published: snapshot {last} is at {at} {since}. Pull it into a new folder and add what is missing "
        f"there, or publish on top of it with --replace; it stays readable as {at}@{last}."
    )


def _last(at: Address) -> Snapshot | None:
    try:
        return find(at)
    except SnapshotNotFoundError:
        return None
    except StoreFormatError:  # a damaged manifest must not keep a whole one from being published behind it
        return Snapshot(numbers(at)[-1], {}, ())


class _Objects:
    """Writes the objects that are not at an address, or could be pruned before a manifest names them.

    Args:
        at: the address.
        last: its last snapshot, whose objects stay while it is the last.
    """

    def __init__(self, at: Address, last: Snapshot | None):
        self._at = at
        self._kept: set[str] = set()
        if last is not None:
            with suppress(StoreFormatError):  # a damaged one keeps nothing
                self._kept = objects_of(at, last)
        self._young_since = time.time() - GRACE_SECONDS / 2

    def write(self, contents: Iterable[bytes]) -> list[str]:
        """Write contents under their hashes, a few at a time; returns these."""
        return list(side_by_side(self._write, contents))

    def _write(self, content: bytes) -> str:
        hash = hash_of(content)
        name = object_name(hash)
        if self._at.size(name) != len(content) or not (hash in self._kept or self._is_young(name)):
            self._at.write(name, content)
        return hash

    def _is_young(self, name: str) -> bool:
        try:
            return (self._at.modified(name) or 0) >= self._young_since
        except StoreUnavailableError:  # where that is not said nothing is pruned either
            return True


def _write(objects: _Objects, store: Path, copy: Path, kv: Path | None) -> tuple[dict[str, Any], PublishedStore]:
    """Write a store's objects; returns what it was made with, and what of a manifest says where they are.

    Args:
        copy: a folder for a copy of its file.
        kv: of the keys and values; None writes none.
    """
    database = Database(store)
    try:
        with database.snapshot():
            database.copy_to(copy)
    finally:
        database.close()
    database = Database(copy, read_only=True)
    try:
        with database.decoding():
            about = json.loads(database.get_meta("about"))
        with database.snapshot():
            found = database.namespace(DEFAULT_NAMESPACE)
            assert found is not None  # every store has it
            namespace, _ = found
            documents = sum(entry.kind == "document" for entry in database.catalogue(namespace).values())
            listed = {} if kv is None else _write_kv(objects, database, kv)
    finally:
        database.close()

    def pieces() -> Iterator[bytes]:
        with open(copy / FILE, "rb") as read:
            while content := read.read(PIECE_BYTES):
                yield content

    index = [json.dumps(listed, sort_keys=True).encode()] if listed else []
    return about, PublishedStore(
        (copy / FILE).stat().st_size,
        tuple(objects.write(pieces())),
        documents,
        next(iter(objects.write(index)), None),
        sum(nbytes for _, nbytes in listed.values()),
    )


def _write_kv(objects: _Objects, database: Database, folder: Path) -> dict[str, tuple[str, int]]:
    """Write the keys and values of a database's chunks; returns hash and bytes of each by its name."""

    def write(path: Path) -> tuple[str, tuple[str, int]] | None:
        try:
            content = path.read_bytes()
        except OSError:  # the cache has made room since
            return None
        (hash,) = objects.write([content])
        return path.stem, (hash, len(content))

    files = sorted(folder.glob("??/*.safetensors"))
    digests = {path: path.stem[: 2 * DIGEST_BYTES] for path in files}
    alive = {digest.hex() for digest in database.alive(map(bytes.fromhex, set(digests.values())))}
    return dict(filter(None, side_by_side(write, (path for path in files if digests[path] in alive))))
