"""The KV of chunks in a folder, which other processes may share."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeGuard

from shared_context.store.kv_file import CachedKV, decoded
from shared_context.store.kv_memory import Counts, usage

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{3,128}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
_ABANDONED_S = 600.0
"""A temporary file of this age (seconds) has no writer any more."""
_PAUSE_S = 60.0
"""After a failed write the disk is left alone for so long (seconds)."""


class KVFolder:
    """The files of a cache, used under its lock. The folder is never trusted: others write to it.

    Args:
        folder: made at the first write.
        limit: most bytes of files.
        importance_method: how the importance of what is read must have been computed to be of use.
    """

    def __init__(self, folder: Path, limit: int, importance_method: str):
        self._folder = folder
        self._importance_method = importance_method
        self._limit = limit
        self._counts = Counts()
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
            content = _content(path, self._limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log_trouble(error)
            return None
        try:
            if content is None:
                raise ValueError("it is no regular file, or larger than the cache")
            return decoded(key, content, self._importance_method)
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
                if suffix == _SUFFIX and is_key(stem) and stem.startswith(shard.name):
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)
                elif suffix == _TEMPORARY and time.time() - status.st_mtime > _ABANDONED_S:
                    self.remove(Path(entry.path))

    def names(self) -> list[str]:
        """Of all files, temporary ones too."""
        entries = (entry for shard in _entries(self._folder) for entry in _entries(Path(shard.path)))
        return [name for name in (entry.name.lstrip(".").split(".")[0] for entry in entries) if is_key(name)]

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
        return usage(len(sizes), sum(sizes), self._limit, self._counts)

    def _log_trouble(self, error: OSError) -> None:
        if not self._trouble_logged:
            logger.warning("the KV cache in %s cannot be used fully, going on in memory: %s", self._folder, error)
            self._trouble_logged = True


def is_key(key: object) -> TypeGuard[str]:
    """Whether KV may be kept under it."""
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def check_key(key: str) -> None:
    """Refuse what is no key.

    Raises:
        ValueError: naming it.
    """
    if not is_key(key):
        raise ValueError(f"KV cache key {key!r}: expected 3 to 128 lower-case hex digits")


def _content(path: Path, most: int) -> bytes | None:
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
