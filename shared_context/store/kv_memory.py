"""The KV of chunks in host memory, which several caches may share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from shared_context.config import require
from shared_context.store.forks import ForkSafeLock
from shared_context.store.kv_file import CachedKV


@dataclass
class Counts:
    """How often something was found, not found, and given up for something else."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class KVMemory:
    """The host memory of one or several caches, of which the least recently used chunk goes first, whosever it is.

    Args:
        limit: most bytes of KV of all of them together. A larger chunk is not kept.

    Attributes:
        lock: guards all caches that share it.
    """

    def __init__(self, limit: int):
        require(limit >= 0, "memory_bytes", limit, "must be 0 or more bytes")
        self.limit = limit
        self.lock = ForkSafeLock()
        self._held: OrderedDict[tuple[MemoryShare, str], CachedKV] = OrderedDict()  # least recently used first
        self._bytes = 0

    def get(self, owner: MemoryShare, key: str) -> CachedKV | None:
        """A chunk, which is the most recently used one now."""
        chunk_kv = self._held.get((owner, key))
        if chunk_kv is not None:
            self._held.move_to_end((owner, key))
        return chunk_kv

    def put(self, owner: MemoryShare, key: str, chunk_kv: CachedKV) -> None:
        """Keep a chunk, if need be in the place of others."""
        self.forget(owner, key)
        if chunk_kv.nbytes > self.limit:
            return
        while self._bytes + chunk_kv.nbytes > self.limit:
            whose, oldest = next(iter(self._held))
            self.forget(whose, oldest)
            whose.counts.evictions += 1
        self._held[owner, key] = chunk_kv
        self._bytes += chunk_kv.nbytes
        owner.sizes[key] = chunk_kv.nbytes

    def forget(self, owner: MemoryShare, key: str) -> None:
        """Let go of a chunk, if it is held."""
        chunk_kv = self._held.pop((owner, key), None)
        if chunk_kv is not None:
            self._bytes -= chunk_kv.nbytes
            del owner.sizes[key]


class MemoryShare:
    """What one cache holds of a :class:`KVMemory`.

    Attributes:
        sizes: bytes of each chunk held, by its key.
    """

    def __init__(self, shared: KVMemory):
        self._shared, self.counts = shared, Counts()
        self.sizes: dict[str, int] = {}

    def get(self, key: str) -> CachedKV | None:
        chunk_kv = self._shared.get(self, key)
        if chunk_kv is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return chunk_kv

    def part(self, key: str) -> CachedKV | None:
        """As ``get``, but no one counts it."""
        return self._shared.get(self, key)

    def put(self, key: str, chunk_kv: CachedKV) -> None:
        self._shared.put(self, key, chunk_kv)

    def forget(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self._shared.forget(self, key)

    def stats(self) -> dict[str, int]:
        return usage(len(self.sizes), sum(self.sizes.values()), self._shared.limit, self.counts)


def usage(entries: int, nbytes: int, limit: int, counts: Counts) -> dict[str, int]:
    """Sizes and counts of a tier, as JSON values."""
    return {"entries": entries, "bytes": nbytes, "limit_bytes": limit, **vars(counts)}
