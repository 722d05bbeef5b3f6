"""Snapshots: what was published at an address, whole or not at all.

    snapshots/000000007.json    the manifest of the seventh, written last and only where there is none
    objects/<sha256>            everything else, under the hash of its content, never changed

Old snapshots are removed by :mod:`shared_context.remote.pruning`, whose time of grace a publisher counts on: an object
that no snapshot has yet is left alone while it is young.

A store's file is published in pieces of one size, so that a snapshot shares with the one before it what did not change.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared_context.config import MIB
from shared_context.errors import SnapshotNotFoundError, StoreFormatError
from shared_context.remote.address import Address

FORMAT = 1
"""Of manifests."""

PIECE_BYTES = 8 * MIB

_MANIFEST = re.compile(r"(\d{9})\.json")
_HASH = re.compile(r"[0-9a-f]{64}")


def hash_of(content: bytes | memoryview) -> str:
    """The name of an object of this content."""
    return hashlib.sha256(content).hexdigest()


def object_name(hash: str) -> str:
    """Where the object of a hash lies."""
    return f"objects/{hash}"


def manifest_name(number: int) -> str:
    """Where the manifest of a snapshot lies."""
    return f"snapshots/{number:09}.json"


@dataclass(frozen=True)
class PublishedStore:
    """A store's file and its keys and values.

    Attributes:
        bytes: of the file.
        pieces: hashes of its pieces, all of PIECE_BYTES but the last.
        documents: how many there are.
        kv: hash of the object that lists keys and values: of each name the hash and the bytes; None where none were
            published.
        kv_bytes: of all of them.
    """

    bytes: int
    pieces: tuple[str, ...]
    documents: int
    kv: str | None = None
    kv_bytes: int = 0

    def check(self) -> None:
        """Raise ValueError unless this can be a store."""
        sound = all(isinstance(value, int) and value >= 0 for value in (self.bytes, self.documents, self.kv_bytes))
        if not sound or len(self.pieces) != -(-self.bytes // PIECE_BYTES):
            raise ValueError(f"{len(self.pieces)} pieces of a file of {self.bytes} bytes")
        if not all(isinstance(h, str) and _HASH.fullmatch(h) for h in (*self.pieces, self.kv or "0" * 64)):
            raise ValueError("a name of an object that is none")


@dataclass(frozen=True)
class Snapshot:
    """What one manifest says.

    Attributes:
        number: counted from 1 at an address.
        about: what the store was made with, as its own file has it; of several stores that of the first.
        stores: one, or the shards of a store.
    """

    number: int
    about: Mapping[str, Any]
    stores: tuple[PublishedStore, ...]

    @property
    def nbytes(self) -> int:
        """Of the files of its stores."""
        return sum(store.bytes for store in self.stores)

    @property
    def documents(self) -> int:
        """How many there are."""
        return sum(store.documents for store in self.stores)

    def to_bytes(self) -> bytes:
        """As JSON, with a checksum."""
        values = {"format": FORMAT, **asdict(self)}
        return json.dumps({**values, "checksum": _checksum(values)}).encode()

    @classmethod
    def from_bytes(cls, content: bytes, place: str, number: int) -> Snapshot:
        """From what :meth:`to_bytes` gave.

        Args:
            place: what errors call it.
            number: that it must have.

        Raises:
            StoreFormatError: it is damaged, another one, or of a newer format.
        """
        try:
            values = json.loads(content)
            if values["format"] != FORMAT:
                raise StoreFormatError(
                    f"{place} is a manifest of format {values['format']}, and this version of shared-context reads "
                    f"{FORMAT}. Upgrade shared-context."
                )
            if values.pop("checksum") != _checksum(values) or values["number"] != number:
                raise ValueError("its checksum or its number is wrong")
            stores = tuple(PublishedStore(**{**store, "pieces": tuple(store["pieces"])}) for store in values["stores"])
            for store in stores:
                store.check()
            if not stores:
                raise ValueError("it has no store")
            return cls(number, values["about"], stores)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, StoreFormatError):
                raise
            raise StoreFormatError(
                f"{place} is damaged ({error}). Open an earlier snapshot, ADDRESS@NUMBER, or push the store again."
            ) from error


def _checksum(values: Mapping[str, Any]) -> str:
    return hash_of(json.dumps(values, sort_keys=True).encode())


def numbers(address: Address) -> list[int]:
    """Numbers of the snapshots at an address, rising."""
    return sorted(int(found[1]) for name in address.names("snapshots") if (found := _MANIFEST.fullmatch(name)))


def find(address: Address) -> Snapshot:
    """The snapshot that an address means: the one of its number, or the last.

    Raises:
        SnapshotNotFoundError: there is none.
        StoreFormatError: its manifest is damaged or of a newer format.
        StoreUnavailableError: the address cannot be read now.
    """
    number = address.number
    if number is None:
        published = numbers(address)
        if not published:
            raise SnapshotNotFoundError(
                f"Nothing is published at {address}: check the address, or publish a store there with "
                f"`shared-context push STORE {address}`."
            )
        number = published[-1]
    name = manifest_name(number)
    try:
        content = address.read(name)
    except FileNotFoundError as error:
        known = ", ".join(map(str, numbers(address)[-10:])) or "none"
        raise SnapshotNotFoundError(
            f"There is no snapshot {number} at {address}; the last ones are: {known}."
        ) from error
    return Snapshot.from_bytes(content, f"{address}/{name}", number)


def read_object(address: Address, hash: str) -> bytes:
    """The content of an object.

    Raises:
        StoreFormatError: it is missing, or its content is another one than was published.
    """
    try:
        content = address.read(object_name(hash))
    except FileNotFoundError as error:
        raise StoreFormatError(f"{address}: the object {hash} is missing. {_MEND}") from error
    if hash_of(content) != hash:
        raise StoreFormatError(
            f"{address}: the object {hash} is damaged or another one: its {len(content):,} bytes have another hash. "
            f"{_MEND}"
        )
    return content


def objects_of(address: Address, snapshot: Snapshot) -> set[str]:
    """Hashes of all objects that a snapshot is made of.

    Raises:
        StoreFormatError: one that lists others is missing or damaged.
        StoreUnavailableError: the address cannot be read now.
    """
    hashes = {piece for store in snapshot.stores for piece in store.pieces}
    for store in snapshot.stores:
        if store.kv is not None:
            hashes |= {store.kv, *(hash for hash, _ in json.loads(read_object(address, store.kv)).values())}
    return hashes


_MEND = "Delete what is left of it and push the store again, or open an earlier snapshot, ADDRESS@NUMBER."
