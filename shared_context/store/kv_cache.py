"""The KV of encoded chunks, bounded in memory and on disk."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shared_context.config import GIB, require
from shared_context.kernels.kv_assembly import ChunkKV, RaggedKV
from shared_context.store.forks import ForkSafeLock

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{3,128}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
_FORMAT = "shared-context-kv-2"
_ABANDONED_S = 600.0
"""A temporary file of this age (seconds) has no writer any more."""
_PAUSE_S = 60.0
"""After a failed write the disk is left alone for so long (seconds)."""
FETCHED_TOGETHER = 8
"""Chunks whose KV are fetched at a time."""


CachedKV = ChunkKV | RaggedKV
"""All rows of a chunk, or the most important of them, other ones in every head."""


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


@dataclass
class _Counts:
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
        self._held: OrderedDict[tuple[_Memory, str], CachedKV] = OrderedDict()  # least recently used first
        self._bytes = 0

    def get(self, owner: _Memory, key: str) -> CachedKV | None:
        """A chunk, which is the most recently used one now."""
        chunk_kv = self._held.get((owner, key))
        if chunk_kv is not None:
            self._held.move_to_end((owner, key))
        return chunk_kv

    def put(self, owner: _Memory, key: str, chunk_kv: CachedKV) -> None:
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

    def forget(self, owner: _Memory, key: str) -> None:
        """Let go of a chunk, if it is held."""
        chunk_kv = self._held.pop((owner, key), None)
        if chunk_kv is not None:
            self._bytes -= chunk_kv.nbytes
            del owner.sizes[key]


class _Memory:
    """What one cache holds of a :class:`KVMemory`.

    Attributes:
        sizes: bytes of each chunk held, by its key.
    """

    def __init__(self, shared: KVMemory):
        self._shared, self.counts = shared, _Counts()
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
        return _stats(len(self.sizes), sum(self.sizes.values()), self._shared.limit, self.counts)


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
        self._memory, self._lock = _Memory(shared), shared.lock
        self._folder = Path(folder) if folder is not None else None
        self._disk = self._make_disk(disk_bytes)

    def _make_disk(self, disk_bytes: int) -> _Disk | None:
        if self._folder is None or disk_bytes == 0:
            return None
        return _Disk(self._folder, disk_bytes, self._importance_method)

    def get(self, key: str) -> CachedKV | None:
        """The chunk under ``key``, from memory or else from disk, or None. Its tensors are shared: read only."""
        _check(key)
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
        _check(key + name)
        with self._lock:
            self._memory.put(key + name, rows)

    def _fetched(self, key: str) -> CachedKV | None:
        """The chunk under ``key`` from further away, or None; nobody waits for the lock meanwhile."""
        if self._further is None or key not in self._further or (content := self._further.read(key)) is None:
            return None
        try:
            chunk_kv = _decode(key, content, self._importance_method)
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
        _check(key)
        if self._quantize and isinstance(chunk_kv, ChunkKV):
            chunk_kv = chunk_kv.quantized()
        chunk_kv = type(chunk_kv)(**{name: _own(tensor) for name, tensor in _tensors(chunk_kv).items()})
        # Encoded outside the lock, for it takes as long as the write.
        writable = self._disk is not None and self._disk.writable
        content = _encode(key, chunk_kv, self._importance_method) if writable else None
        with self._lock:
            self._memory.put(key, chunk_kv)
            if self._disk is not None and content is not None:
                self._disk.write(key, content)

    def __contains__(self, key: object) -> bool:
        return _is_key(key) and (self._holds(key) or (self._further is not None and key in self._further))

    def _holds(self, key: str) -> bool:
        with self._lock:
            return key in self._memory.sizes or (self._disk is not None and os.path.isfile(self._disk.path(key)))

    def discard(self, beginnings: Iterable[str]) -> None:
        """Forget all keys that begin with one of these, in memory and on disk."""
        beginnings = (beginnings,) if isinstance(beginnings, str) else tuple(beginnings)
        for beginning in beginnings:
            _check(beginning)
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
                _Disk(self._folder, disk_bytes, self._importance_method).make_room(0)

    def stats(self) -> dict[str, Any]:
        """``{"memory": {...}, "disk": {...}}``, each with entries, bytes, limit_bytes, hits, misses and evictions.

        A ``get`` that memory cannot serve is a miss of memory and then a hit or a miss of the disk.
        """
        with self._lock:
            return {
                "memory": self._memory.stats(),
                "disk": self._disk.stats() if self._disk is not None else _stats(0, 0, 0, _Counts()),
            }


class _Disk:
    """The files of a :class:`TieredKVCache`, used under its lock. The folder is never trusted: others write to it."""

    def __init__(self, folder: Path, limit: int, importance_method: str):
        self._folder = folder
        self._importance_method = importance_method
        self._limit = limit
        self._counts = _Counts()
        self._known = sum(size for _, size, _ in self.files())  # bytes when last listed, plus own writes since
        self._unlisted = 0  # bytes of own writes since
        self._paused_until = 0.0  # time.monotonic()
        self._trouble_logged = False

    @property
    def writable(self) -> bool:
        """False for a while after a failed write."""
        return time.monotonic() >= self._paused_until

    def path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}{_SUFFIX}"

    def read(self, key: str) -> CachedKV | None:
        chunk_kv = self._read(key)
        if chunk_kv is None:
            self._counts.misses += 1
        else:
            self._counts.hits += 1
            self.touch(key)
        return chunk_kv

    def _read(self, key: str) -> CachedKV | None:
        path = self.path(key)
        try:
            content = _read_file(path, self._limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log_trouble(error)
            return None
        try:
            if content is None:
                raise ValueError("it is no regular file, or larger than the cache")
            return _decode(key, content, self._importance_method)
        except ValueError as error:
            logger.warning("removing %s from the KV cache, it will be computed again: %s", path, error)
            self.remove(path)
            return None

    def write(self, key: str, content: bytes) -> None:
        if not self.make_room(len(content)):
            return
        path = self.path(key)
        temporary = path.with_name(f".{key}.{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            _set_mtime_now(temporary)
            os.replace(temporary, path)
        except OSError as error:
            self._log_trouble(error)
            self._paused_until = time.monotonic() + _PAUSE_S
        else:
            self._trouble_logged = False
            self._known += len(content)
            self._unlisted += len(content)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def make_room(self, incoming: int) -> bool:
        """Remove the least recently used files until ``incoming`` bytes fit the limit; False if they cannot."""
        if incoming > self._limit:
            return False
        if self._known + incoming <= self._limit and self._unlisted + incoming <= self._limit // 16:
            return True
        files = sorted(self.files())
        self._known = sum(size for _, size, _ in files)
        self._unlisted = 0
        for _, size, path in files:
            if self._known + incoming <= self._limit:
                break
            if self.remove(path):
                self._known -= size
                self._counts.evictions += 1
        return self._known + incoming <= self._limit

    def files(self) -> Iterator[tuple[int, int, Path]]:
        """Time of last use (ns), size (bytes) and path of each chunk's file. Removes abandoned temporary files."""
        for shard in _entries(self._folder):
            for entry in _entries(Path(shard.path)) if _SHARD.fullmatch(shard.name) else ():
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:  # another process was faster
                    continue
                stem, suffix = os.path.splitext(entry.name)
                if suffix == _SUFFIX and _is_key(stem) and stem.startswith(shard.name):
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)
                elif suffix == _TEMPORARY and time.time() - status.st_mtime > _ABANDONED_S:
                    self.remove(Path(entry.path))

    def names(self) -> list[str]:
        """Of all files, temporary ones too."""
        entries = (entry for shard in _entries(self._folder) for entry in _entries(Path(shard.path)))
        return [name for name in (entry.name.lstrip(".").split(".")[0] for entry in entries) if _is_key(name)]

    def discard(self, shards: set[str], dead: Callable[[str], bool]) -> None:
        """Remove files of these folders, temporary ones too, whose names are dead."""
        for shard in shards:
            for entry in _entries(self._folder / shard):
                if dead(entry.name.lstrip(".")):
                    self.remove(Path(entry.path))

    def touch(self, key: str) -> None:
        with contextlib.suppress(OSError):  # removed by another process, or not ours to change
            _set_mtime_now(self.path(key))

    def remove(self, path: Path) -> bool:
        """Whether the file is gone, by us or by another process."""
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return True
        except OSError as error:
            self._log_trouble(error)
            return False
        return True

    def stats(self) -> dict[str, int]:
        sizes = [size for _, size, _ in self.files()]
        return _stats(len(sizes), sum(sizes), self._limit, self._counts)

    def _log_trouble(self, error: OSError) -> None:
        if not self._trouble_logged:
            logger.warning("the KV cache in %s cannot be used fully, going on in memory: %s", self._folder, error)
            self._trouble_logged = True


def _stats(entries: int, nbytes: int, limit: int, counts: _Counts) -> dict[str, int]:
    return {"entries": entries, "bytes": nbytes, "limit_bytes": limit, **vars(counts)}


def _is_key(key: object) -> TypeGuard[str]:
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def _check(key: str) -> None:
    if not _is_key(key):
        raise ValueError(f"KV cache key {key!r}: expected 3 to 128 lower-case hex digits")


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


def _read_file(path: Path, most: int) -> bytes | None:
    """A file's bytes; None where it is a pipe or a device, where reading never ends, or has more than ``most``."""
    # No pipe makes us wait for its writer. A link, which is never ours, is refused.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return None
        try:
            # Read, not mapped: a mapping would pin the bytes of a file that another process removed to make room.
            return file.read()
        except MemoryError:  # nothing but holes, for example
            return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # absent, not a folder, or not ours to read: there is nothing to find
        return []


def _set_mtime_now(path: Path) -> None:
    now = time.time_ns()  # the file system's own clock only ticks every few milliseconds
    os.utime(path, ns=(now, now))


def _checksum(tensor: Tensor) -> str:
    """CRC-32 of dtype, shape and bytes of a contiguous tensor."""
    head = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return f"{zlib.crc32(tensor.view(torch.uint8).numpy().data, head):08x}"


def _tensors(chunk_kv: CachedKV) -> dict[str, Tensor]:
    """Its tensors by name, but for those that it does not have."""
    return {name: tensor for name, tensor in vars(chunk_kv).items() if tensor is not None}


def _encode(key: str, chunk_kv: CachedKV, method: str) -> bytes:
    tensors = _tensors(chunk_kv)
    checksums = {f"{name}_crc32": _checksum(tensor) for name, tensor in tensors.items()}
    return save(tensors, metadata={"format": _FORMAT, "key": key, "importance": method, **checksums})


def _decode(key: str, content: bytes, method: str) -> CachedKV | None:
    """The inverse of ``_encode``; None where rows were chosen by another method than ``method``.

    Raises:
        ValueError: ``content`` is not what it made for ``key``.
    """
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise ValueError(f"not a readable safetensors file ({error})") from error
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if metadata.get("format") != _FORMAT or metadata.get("key") != key:
        raise ValueError("not a file of this cache, or of another key")
    kind = RaggedKV if "counts" in tensors else ChunkKV
    required = {"data", "tokens", "counts", "importance"} if kind is RaggedKV else {"data"}
    if not required <= tensors.keys() <= {*required, "scale", "importance"}:
        raise ValueError(f"holds tensors {sorted(tensors)}")
    for name, tensor in tensors.items():
        if metadata.get(f"{name}_crc32") != _checksum(tensor):
            raise ValueError(f"the checksum of its {name} is wrong")
        # A sum is infinite or NaN where one of its numbers is.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise ValueError(f"its {name} holds infinities or NaN")
    importance = tensors.get("importance")
    if importance is not None and not (torch.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("its importance is negative, infinite or NaN")
    if metadata.get("importance") != method:
        if kind is RaggedKV:
            return None
        tensors.pop("importance", None)
    return kind(**tensors)
