"""What the write-ahead log of a SQLite file lost: recovery drops, without a word, all that follows a damaged frame.

The log's format is SQLite's own, https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import struct
import time
from functools import cache
from pathlib import Path

import numpy as np

_HEADER, _FRAME, _INDEX = 32, 24, 48
_MAGIC = {0x377F0682: "<u4", 0x377F0683: ">u4"}
"""How a log's checksums read its words."""
MAX_PAGE_BYTES = 1 << 16
STRANGE_FRAMES = 1000
"""After so many frames that are not of this round of the log there are no more of it."""
SETTLE_SECONDS = 0.05
"""A process that writes a frame just now has written it by then."""


def lost_changes(log: Path) -> int:
    """Changes that were committed to a log and that recovery will drop, because of damage in or before them.

    Where the damage hides how many there were, it is one.

    Args:
        log: the file; a missing or empty one has lost nothing. Beside it lies its index, which tells how far it went
            before a writer was killed.
    """
    lost = _lost_changes(log)
    if lost:
        time.sleep(SETTLE_SECONDS)
        lost = min(lost, _lost_changes(log))
    return lost


def _lost_changes(log: Path) -> int:
    index = _index(log.with_name(f"{log.name.removesuffix('-wal')}-shm"))  # before the log, which only gets longer
    try:
        file = log.open("rb")
    except OSError:  # missing, or not ours to read: then SQLite says so
        return 0
    with file:
        header = file.read(_HEADER)
        if len(header) < _HEADER:
            return 0
        magic, _, page_size, _, *salts, _, _ = struct.unpack(">8I", header)
        words = _MAGIC.get(magic)
        checks = (0, 0)
        whole = words is not None and 512 <= page_size <= MAX_PAGE_BYTES and page_size & (page_size - 1) == 0
        if whole:
            checks = running_checksum(np.frombuffer(header[:24], words), checks)
            whole = checks == struct.unpack(">2I", header[24:])
        if not whole:
            # Nothing of it will be read, and a damaged header does not tell how much there was.
            return int(len(file.read(_FRAME + 512)) == _FRAME + 512)
        lost = strange = number = committed = 0
        while strange < STRANGE_FRAMES and len(frame := file.read(_FRAME + page_size)) == _FRAME + page_size:
            number += 1
            _, pages, *own, first, second = struct.unpack(">6I", frame[:_FRAME])
            if whole:
                checks = running_checksum(np.frombuffer(frame[:8] + frame[_FRAME:], words), checks)
                whole = own == salts and checks == (first, second)
            if own[0] != salts[0] and own[1] != salts[1]:  # of an earlier round of the log
                strange += 1
            elif not whole and pages:  # a change that was undone has no page count
                lost += 1
            elif whole and pages:
                committed = number
        further = index is not None and index[0] == header[16:24] and index[1] > committed
        return max(lost, int(further))


def _index(file: Path) -> tuple[bytes, int] | None:
    """The salts of a log and its last committed frame, as the log's index tells them; None where it is none."""
    try:
        with file.open("rb") as opened:
            first, second = opened.read(_INDEX), opened.read(_INDEX)
    except OSError:
        return None
    if len(first) < _INDEX or first != second:
        return None
    if running_checksum(np.frombuffer(first[:40], np.uint32), (0, 0)) != struct.unpack("=2I", first[40:]):
        return None
    return first[32:40], struct.unpack("=I", first[16:20])[0]


def running_checksum(words: np.ndarray, before: tuple[int, int]) -> tuple[int, int]:
    """The log's checksum, continued.

    For each two words ``x, y`` it is ``a += x + b; b += y + a``, modulo 2**32, from the a and b ``before``.

    Args:
        words: uint32 [2 n].
    """
    powers = _powers(len(words) // 2)
    x, y = words[::2].astype(np.uint32), words[1::2].astype(np.uint32)
    added = np.stack([x, x + y], axis=1)[::-1]
    total = powers[-1] @ np.array(before, np.uint32) + (powers[:-1] * added[:, None, :]).sum((0, 2), dtype=np.uint32)
    return int(total[0]), int(total[1])


@cache
def _powers(count: int) -> np.ndarray:
    """The powers 0 to ``count`` of what one step of the checksum does to a and b, uint32 [count + 1, 2, 2]."""
    powers = np.empty((count + 1, 2, 2), np.uint32)
    powers[0] = np.eye(2)
    for n in range(count):
        powers[n + 1] = powers[n] @ np.array([[1, 1], [1, 2]], np.uint32)
    return powers
