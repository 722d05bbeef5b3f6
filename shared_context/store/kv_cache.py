"""The KV of encoded chunks, bounded in memory and on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shared_context.config import GIB, require
from shared_context.kernels.kv_assembly import ChunkKV, RaggedKV
from shared_context.store.kv_file import CachedKV, decoded, encoded, tensors_of
from shared_context.store.kv_folder import KVFolder, check_key, is_key
from shared_context.store.kv_memory import Counts, KVMemory, MemoryShare, usage

logger = logging.getLogger(__name__)

FETCHED_TOGETHER = 8
"""Chunks whose KV are fetched at a time."""


class FurtherKV(Protocol):
    """Files of this cache that lie further away than its folder, and never change."""

    def __contains__(self, key: object) -> bool:
        """Whether there is a file of a key."""

    def read(self, key: str) -> bytes | None:
        """The file of a key; None where it cannot be had."""


class KVCache(Protocol):
    """Where a store keeps the KV of its chunks. Losing an entry costs time, never an answer.

    Keys are lower-case hex digests of all that the KV depend on, so a key's content never changes.
    """

    def get(self, key: str) -> CachedKV | None:
        """The chunk under ``key``, in the dtype it is kept in, or None. Its tensors are shared: read only."""

    def put(self, key: str, chunk_kv: CachedKV) -> None:
        """Keep ``chunk_kv`` under ``key`` as far as the limits allow."""

    def __contains__(self, key: object) -> bool:
        """Whether ``get`` would look at something; counts as no use."""

    def discard(self, beginnings: Iterable[str]) -> None:
        """Forget all keys that begin with one of these."""

    def clear(self) -> None:
        """Forget everything."""

    def stats(self) -> dict[str, Any]:
        """Sizes and counts, as JSON values."""


class TieredKVCache(KVCache):
    """A least-recently-used cache in host memory, and behind it one in a folder.

    Every chunk is written through: it is found again after it left memory, by the next process, and by other
    processes that share the folder. Files are safetensors, ``folder/ab/abcdef....safetensors``, and appear by rename,
    so a reader never meets half of one. They are not flushed to the disk; a checksum finds what a power cut left
    instead. A file that is not what this cache wrote under that key is a miss: it is removed and logged. A folder
    that cannot be written is logged once and the cache goes on in memory.

    Args:
        memory: most bytes of KV kept in memory, or what it shares with other caches.
        folder: where files go; made at the first write. None keeps no files.
        disk_bytes: most bytes of files. 0 keeps none. Processes that share the folder each see what the others
            wrote at the latest after writing a sixteenth of the limit themselves.
        quantize: put int8 with one scale per channel; ``get`` then returns int8 chunks. Files that were written
            with another setting are served as they are.
        importance_method: how the importance of what is put was computed. Importance in files that was computed by
            another method is left out, and so are files of rows that were chosen by it.
        further: where what neither memory nor the folder has is looked for.

    One lock guards everything, also that of caches it shares memory with: methods may be called from any thread.

    Raises:
        ConfigError: a limit is negative.
        ValueError: a key is not a lower-case hex digest.
    """

    def __init__(
        self,
        memory: int | KVMemory,
        folder: str | os.PathLike[str] | None = None,
        disk_bytes: int = 8 * GIB,
        *,
        quantize: bool = False,
        importance_method: str = "",
        further: FurtherKV | None = None,
    ):
        require(disk_bytes >= 0, "disk_bytes", disk_bytes, "must be 0 or more bytes")
        self._quantize, self._importance_method, self._further = quantize, importance_method, further
        shared = memory if isinstance(memory, KVMemory) else KVMemory(memory)
        self._memory, self._lock = MemoryShare(shared), shared.lock
        self._folder = Path(folder) if folder is not None else None
        self._disk = self._make_disk(disk_bytes)

    def _make_disk(self, disk_bytes: int) -> KVFolder | None:
        if self._folder is None or disk_bytes == 0:
            return None
        return KVFolder(self._folder, disk_bytes, self._importance_method)

    def get(self, key: str) -> CachedKV | None:
        """The chunk under ``key``, from memory or else from disk, or None. Its tensors are shared: read only."""
        check_key(key)
        chunk_kv = self._near(key)
        return self._fetched(key) if chunk_kv is None and self._further is not None else chunk_kv

    def _near(self, key: str) -> CachedKV | None:
        """The chunk under ``key`` from memory or from disk, or None."""
        with self._lock:
            chunk_kv = self._memory.get(key)
            if chunk_kv is not None:
                if self._disk is not None:
                    self._disk.touch(key)  # or the disk would drop first what memory uses most
                return chunk_kv
            if self._disk is not None:
                chunk_kv = self._disk.read(key)
            if chunk_kv is not None:
                self._memory.put(key, chunk_kv)
            return chunk_kv

    def part(self, key: str, name: str) -> RaggedKV | None:
        """The rows that :meth:`keep_part` kept, or None. Its tensors are shared: read only."""
        with self._lock:
            found = self._memory.part(key + name)
            assert found is None or isinstance(found, RaggedKV)  # what is kept under the name of a part
            if found is not None and self._disk is not None:
                self._disk.touch(key)  # it is of use as long as its part is
            return found

    def keep_part(self, key: str, name: str, rows: RaggedKV) -> None:
        """Keep some rows of a chunk in memory alone: they are made of what is under ``key``, and forgotten with it.

        Args:
            key: the chunk's.
            name: of the part, hex digits.
            rows: on the processor, as they are to come back.
        """
        check_key(key + name)
        with self._lock:
            self._memory.put(key + name, rows)

    def _fetched(self, key: str) -> CachedKV | None:
        """The chunk under ``key`` from further away, or None; nobody waits for the lock meanwhile."""
        if self._further is None or key not in self._further or (content := self._further.read(key)) is None:
            return None
        try:
            chunk_kv = decoded(key, content, self._importance_method)
        except ValueError as error:
            logger.warning("the published KV of %s are of no use and will be computed: %s", key, error)
            return None
        if chunk_kv is not None:
            with self._lock:
                self._memory.put(key, chunk_kv)
                if self._disk is not None and self._disk.writable:
                    self._disk.write(key, content)
        return chunk_kv

    def prefetch(self, keys: Iterable[str]) -> None:
        """Fetch what is further away than disk, several at a time."""
        missing = [key for key in keys if self._further is not None and key in self._further and not self._holds(key)]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(len(missing), FETCHED_TOGETHER)) as pool:
                list(pool.map(self._fetched, missing))

    def put(self, key: str, chunk_kv: CachedKV) -> None:
        """Keep ``chunk_kv`` under ``key`` as far as the limits allow; tensors elsewhere are copied to host memory.

        Raises:
            ValueError: ``quantize`` is set and a key or value is infinite or NaN.
        """
        check_key(key)
        if self._quantize and isinstance(chunk_kv, ChunkKV):
            chunk_kv = chunk_kv.quantized()
        chunk_kv = type(chunk_kv)(**{name: _own(tensor) for name, tensor in tensors_of(chunk_kv).items()})
        # Encoded outside the lock, for it takes as long as the write.
        writable = self._disk is not None and self._disk.writable
        content = encoded(key, chunk_kv, self._importance_method) if writable else None
        with self._lock:
            self._memory.put(key, chunk_kv)
            if self._disk is not None and content is not None:
                self._disk.write(key, content)

    def __contains__(self, key: object) -> bool:
        return is_key(key) and (self._holds(key) or (self._further is not None and key in self._further))

    def _holds(self, key: str) -> bool:
        with self._lock:
            return key in self._memory.sizes or (self._disk is not None and os.path.isfile(self._disk.path(key)))

    def discard(self, beginnings: Iterable[str]) -> None:
        """Forget all keys that begin with one of these, in memory and on disk."""
        beginnings = (beginnings,) if isinstance(beginnings, str) else tuple(beginnings)
        for beginning in beginnings:
            check_key(beginning)
        if not beginnings:
            return
        begins = _beginning_with(beginnings)
        with self._lock:
            self._memory.forget(filter(begins, list(self._memory.sizes)))
            if self._disk is not None:
                self._disk.discard({beginning[:2] for beginning in beginnings}, begins)

    def retain(self, alive: Callable[[set[str]], set[str]], length: int) -> None:
        """Forget all keys but those whose first ``length`` digits are alive, in memory and on disk.

        Args:
            alive: given such beginnings, those that are.
        """
        with self._lock:
            on_disk = {key[:length] for key in self._disk.names()} if self._disk is not None else set()
            known = {key[:length] for key in self._memory.sizes} | on_disk
            dead = known - alive(known)
            self._memory.forget(key for key in list(self._memory.sizes) if key[:length] in dead)
            if self._disk is not None:
                self._disk.discard({key[:2] for key in dead}, lambda name: name.lstrip(".")[:length] in dead)

    def clear(self) -> None:
        """Forget everything, in memory and on disk; files of others in the folder stay."""
        with self._lock:
            self._memory.forget(self._memory.sizes)
            if self._disk is not None:
                for _, _, path in self._disk.files():
                    self._disk.remove(path)

    def limit_disk(self, disk_bytes: int) -> None:
        """Keep at most so many bytes of files from now on; the least recently used beyond that go at once."""
        self.trim_disk(disk_bytes)
        with self._lock:
            if self._folder is not None:
                self._disk = self._make_disk(disk_bytes)

    def trim_disk(self, disk_bytes: int) -> None:
        """Remove the least recently used files until the others take no more than so many bytes."""
        require(disk_bytes >= 0, "disk_bytes", disk_bytes, "must be 0 or more bytes")
        with self._lock:
            if self._folder is not None:
                KVFolder(self._folder, disk_bytes, self._importance_method).make_room(0)

    def stats(self) -> dict[str, Any]:
        """``{"memory": {...}, "disk": {...}}``, each with entries, bytes, limit_bytes, hits, misses and evictions.

        A ``get`` that memory cannot serve is a miss of memory and then a hit or a miss of the disk.
        """
        with self._lock:
            return {
                "memory": self._memory.stats(),
                "disk": self._disk.stats() if self._disk is not None else usage(0, 0, 0, Counts()),
            }


def _beginning_with(beginnings: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name begins with one of these, in a time that does not grow with their number."""
    by_length: dict[int, set[str]] = {}
    for beginning in beginnings:
        by_length.setdefault(len(beginning), set()).add(beginning)
    return lambda name: any(name[:length] in same for length, same in by_length.items())


def _own(tensor: Tensor) -> Tensor:
    """``tensor`` on the host, contiguous, in a storage of its own size: a view keeps all of its base alive."""
    tensor = tensor.detach().cpu()
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
