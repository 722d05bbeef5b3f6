"""Locks that a fork of the process leaves in order."""

from __future__ import annotations

import os
import threading
import weakref


class ForkSafeLock:
    """A reentrant lock that no other thread holds while the process forks, so that the child can go on using it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process = os.getpid()
        _LOCKS.append(weakref.ref(self, _LOCKS.remove))

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def forked(self) -> bool:
        """Whether the process was forked since this was last asked; asked with the lock held."""
        before, self._process = self._process, os.getpid()
        return before != self._process


_LOCKS: list[weakref.ref[ForkSafeLock]] = []
_HELD: list[ForkSafeLock] = []


def _take_all() -> None:
    for reference in list(_LOCKS):
        lock = reference()
        if lock is not None:
            lock.__enter__()
            _HELD.append(lock)


def _release_all() -> None:
    while _HELD:
        _HELD.pop().__exit__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_release_all, after_in_child=_release_all)
