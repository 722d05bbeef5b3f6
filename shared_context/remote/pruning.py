"""Pruning: snapshots that nobody needs any more are removed from an address, and what only they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from shared_context.config import require_count
from shared_context.errors import StoreFormatError, StoreUnavailableError
from shared_context.remote.address import Address, side_by_side
from shared_context.remote.snapshot import Snapshot, manifest_name, numbers, object_name, objects_of

GRACE_SECONDS = 24 * 3600
"""So long an object stays that no snapshot has: somebody may be publishing one. A publisher writes anew what is older
than half of it, so that the clocks of both may differ by the other half."""

CLOCK = "pruned"
"""Name of the object that is written to read the file system's clock."""


@dataclass(frozen=True)
class Pruned:
    """What was removed, and what is left.

    Attributes:
        snapshots: numbers of those that were removed.
        kept: numbers of those that are left.
        objects: how many were removed.
        bytes: of these.
    """

    snapshots: tuple[int, ...]
    kept: tuple[int, ...]
    objects: int
    bytes: int


def prune(address: str, *, keep: int) -> Pruned:
    """Remove all snapshots of an address but the last ``keep``, and the objects that no snapshot has any more.

    Others may publish meanwhile: objects of the last day are left for the next time. Who has an earlier snapshot open
    and not all of it fetched gets an error that says so. What is cut off is finished by the next call.

    Args:
        address: ``s3://bucket/name`` or the like, without a number.
        keep: snapshots that stay, one at least.

    Raises:
        ConfigError: ``keep`` is below one.
        StoreFormatError: a snapshot that stays is damaged, so that it is not known what it needs; nothing was removed.
        StoreUnavailableError: the address cannot be changed now.
    """
    require_count("keep", keep, "snapshots")
    at = Address(address)
    if at.number is not None:
        raise StoreUnavailableError(f"{address} names one snapshot: give {at} and how many of its last ones stay.")
    published = numbers(at)
    old, kept = published[:-keep], published[-keep:]
    needed: set[str] = set()
    for number in kept:
        name = manifest_name(number)
        try:
            snapshot = Snapshot.from_bytes(at.read(name), f"{at}/{name}", number)
            needed |= objects_of(at, snapshot)
        except (FileNotFoundError, StoreFormatError) as error:
            raise StoreFormatError(
                f"Nothing was pruned: snapshot {number} of {at} is damaged ({error}) and would stay. Push the store "
                "again, so that fewer snapshots need to be kept."
            ) from error
    # The clock that wrote the objects, not this machine's.
    at.write(CLOCK, b"")
    before = (at.modified(CLOCK) or 0) - GRACE_SECONDS
    for number in old:
        at.delete(manifest_name(number))

    def remove(hash: str) -> int | None:
        name = object_name(hash)
        written = at.modified(name)
        if written is None or written >= before:
            return None
        size = at.size(name)
        at.delete(name)
        return size

    removed = [size for size in side_by_side(remove, sorted(set(at.names("objects")) - needed)) if size is not None]
    return Pruned(tuple(old), tuple(kept), len(removed), sum(removed))
