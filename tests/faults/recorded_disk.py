"""A disk as it may be after a cut, from a record of what a process did to its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

SECTOR = 512

Operation = tuple[str, str, int, bytes, str]


def operations(log: Path) -> list[Operation]:
    data, at, found = log.read_bytes(), 0, []
    while at < len(data):
        end = data.index(b"\n", at)
        kind, path, offset, length, other = data[at:end].decode().split("\t")
        at = end + 1
        content = data[at : at + int(length)]
        at += int(length)
        found.append((kind, path, int(offset), content, other))
    return found


class Disk:
    """Files as a disk has them: what an fsync covers, and what waits.

    Args:
        syncs: whether an fsync does anything.
    """

    def __init__(self, syncs: bool = True) -> None:
        self._syncs = syncs
        self.files: dict[str, bytearray] = {}
        self.waiting: dict[str, list[Operation]] = {}

    def do(self, operation: Operation) -> None:
        kind, path, _, _, other = operation
        if kind in "wt":
            self.waiting.setdefault(path, []).append(operation)
            self.files.setdefault(path, bytearray())
        elif kind == "s" and self._syncs:
            for one in self.waiting.pop(path, ()):
                write(self.files[path], one)
        elif kind == "u":
            self.files.pop(path, None)
            self.waiting.pop(path, None)
        elif kind in "rl":
            if path in self.files:
                self.files[other] = bytearray(self.files[path])
                self.waiting[other] = list(self.waiting.get(path, ()))
            if kind == "r":
                self.files.pop(path, None)
                self.waiting.pop(path, None)

    def image(self, survives: Callable[[Operation], Operation | None]) -> dict[str, bytes]:
        """All files, when of what waits only so much reaches the disk."""
        found = {}
        for path, content in self.files.items():
            content = bytearray(content)
            for operation in self.waiting.get(path, ()):
                if (kept := survives(operation)) is not None:
                    write(content, kept)
            found[path] = bytes(content)
        return found


def write(content: bytearray, operation: Operation) -> None:
    kind, _, offset, data, _ = operation
    if kind == "t":
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    else:
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data


def fates(random: Random) -> Iterator[tuple[str, Callable[[Operation], Operation | None]]]:
    """What may become of writes that no fsync covers."""
    yield "kill", lambda operation: operation
    yield "power cut, all lost", lambda operation: None
    yield "power cut, some lost", lambda operation: operation if random.random() < 0.5 else None

    def torn(operation: Operation) -> Operation | None:
        kind, path, offset, data, other = operation
        sectors = max(1, len(data) // SECTOR)
        return kind, path, offset, data[: random.randint(0, sectors) * SECTOR], other

    yield "power cut, torn", torn
