"""Rows that are mapped from a file: each is checked before it is first read, and what is damaged is restored."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

Restore: TypeAlias = Callable[[int], Mapping[str, np.ndarray] | None]
"""What the database has of a document, by its key: rows by their kind; None where it has no such document."""


class MappedRows:
    """Rows of documents, checked in blocks of documents. To check all of them is to read the whole file.

    Args:
        rows: of each kind, [rows, ...]. What is written into them stays in this process's memory.
        edges: of each kind, the first row of each document and the one behind the last, int64 [documents + 1].
        together: documents of a block.
        keys: of the documents, 0 where one is gone, int64 [documents].
        sums: of each block the checksum of its rows of each kind, int64 [blocks, kinds].
        sums_now: what the file says that these are now; None where it says nothing that can be believed.
        restore: what damaged rows are taken from.

    Attributes:
        mended: whether rows were restored: the file is damaged.
    """

    def __init__(
        self,
        rows: Mapping[str, np.ndarray],
        edges: Mapping[str, np.ndarray],
        together: int,
        keys: np.ndarray,
        sums: np.ndarray,
        sums_now: Callable[[], np.ndarray | None],
        restore: Restore,
    ):
        self._rows, self._edges, self._together, self._keys = rows, edges, together, keys
        self._sums, self._sums_now, self._restore = sums, sums_now, restore
        self.mended = False
        self._column = {kind: column for column, kind in enumerate(rows)}
        self._unchecked = {kind: np.ones(len(sums), bool) for kind in rows}

    def fits(self, kind: str) -> bool:
        """Whether all rows of a kind are what they were when they were written."""
        blocks = np.arange(len(self._sums))
        self._unchecked[kind][:] = False
        return not len(self._wrong(kind, blocks, self._sums))

    def check(self, *kinds: str, rows: np.ndarray | None = None) -> None:
        """Make sure of rows that are about to be read: those that are damaged are restored from the database.

        Args:
            *kinds: which have the same edges.
            rows: of these kinds, in any order; None means all.

        Raises:
            StoreFormatError: the database is damaged as well.
        """
        for kind in kinds:
            unchecked = self._unchecked[kind]
            if not unchecked.any():
                continue
            blocks = np.flatnonzero(unchecked)
            if rows is not None:
                first = self._edges[kind][:: self._together]
                blocks = np.intersect1d(np.searchsorted(first, rows, side="right") - 1, blocks)
            wrong = self._wrong(kind, blocks, self._sums)
            # What is gone was overwritten, perhaps by another process and since this one has mapped the file.
            if len(wrong) and (now := self._sums_now()) is not None:
                wrong = self._wrong(kind, wrong, now)
            for block in wrong.tolist():
                self._mend(kind, block)
            unchecked[blocks] = False

    def _wrong(self, kind: str, blocks: np.ndarray, sums: np.ndarray) -> np.ndarray:
        edges, column = {kind: self._edges[kind]}, self._column[kind]
        found = block_sums(lambda of, first, end: as_bytes(self._rows[of][first:end]), edges, self._together, blocks)
        return blocks[found[:, 0] != sums[blocks, column]]

    def _mend(self, kind: str, block: int) -> None:
        self.mended = True
        edges = self._edges[kind]
        for document in range(block * self._together, min((block + 1) * self._together, len(self._keys))):
            key, rows = int(self._keys[document]), self._rows[kind][slice(*edges[document : document + 2].tolist())]
            found = self._restore(key) if key else None
            values = None if found is None else found.get(kind)
            # One that is gone, or another now, is not read from here any more once that is known.
            rows[...] = values if values is not None and values.shape == rows.shape else 0


def block_sums(
    rows: Callable[[str, int, int], memoryview | bytes],
    edges: Mapping[str, np.ndarray],
    together: int,
    blocks: Iterable[int],
) -> np.ndarray:
    """The checksums of the rows of blocks of documents, int64 [blocks, kinds].

    Args:
        rows: by their kind, the first one and the one behind the last, as bytes.
        edges: of each kind, the first row of each document and the one behind the last.
        together: documents of a block.
        blocks: their numbers.
    """
    sums = []
    for block in blocks:
        of_block = {kind: edge[block * together :][: together + 1] for kind, edge in edges.items()}
        sums.append([zlib.crc32(rows(kind, int(edge[0]), int(edge[-1]))) for kind, edge in of_block.items()])
    return np.array(sums, np.int64).reshape(-1, len(edges))


def as_bytes(rows: np.ndarray) -> memoryview:
    """What rows are in memory."""
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
