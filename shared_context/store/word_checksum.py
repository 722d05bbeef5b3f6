"""The checksum over all that the index of words is made of, carried on with every change of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from shared_context.store.checksum import checksum

CHECKSUM_TABLE = "CREATE TABLE word_checksum (total INTEGER)"
"""One row: the sum of the checksums of all rows that the index is made of; NULL where an earlier version of this
library was cut off."""

FTS5_TABLES = {"words_data": "id, block", "words_idx": "segid, term, pgno", "words_config": "k, v"}
"""Where FTS5 keeps an index, with the columns."""
WORDED = "key, document, language, leaf_size"

SEGMENT_BITS = 37
"""A block's number behind these lowest bits is that of its segment."""
LAST_SEGMENT = 1 << 16
"""Above all numbers of segments."""
FEW_BLOCKS = 16
"""A segment of no more is read whole after every change."""
KEPT_SHARE = 0.75
"""Blocks that are as long as before, of a segment that was only added to or cut off. Else it is another one that has
got the number, of which FTS5 has few."""
MANY_CHARACTERS = 1 << 16
"""Of the words that came or went: after more of them FTS5 may have given a number several times."""

STRUCTURE = 10
"""The block that says which segments there are."""

_Blocks = dict[int, tuple[int, int]]
"""Length and checksum of each block of a segment."""
_Entry = tuple[int, int, int, int]
"""Level of a segment, its place there, and its first and last page."""


@dataclass(frozen=True)
class _Summed:
    """What the index is made of.

    Attributes:
        blocks: of each segment.
        ends: the checksum of each segment's table of contents.
        config: checksum of FTS5's settings.
        still: segments that no merge is at work on, as the structure tells of them; None where it cannot be read.
    """

    blocks: Mapping[int, _Blocks]
    ends: Mapping[int, int]
    config: int
    still: Mapping[int, _Entry] | None

    @property
    def total(self) -> int:
        of_blocks = sum(crc for blocks in self.blocks.values() for _, crc in blocks.values())
        return of_blocks + sum(self.ends.values()) + self.config


class WordChecksum:
    """Keeps the checksum of an index of words in the transactions that change it.

    A damaged index would find other leaves without a word, so it has a checksum over all of its tables. FTS5 does not
    tell which blocks it wrote, and reading all of them after every change would cost as much as there is. But it writes
    most of them once: a segment of a higher level that stands where it stood is as it was. Of the others, the blocks
    that came, went or are of another length now are seen without reading them, and only those are read, those at both
    ends, and small segments.

    Args:
        connection: of the database, inside of whose transactions everything is called.
    """

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection
        self._known: _Summed | None = None
        self._stored: int | None = None
        self._changing = False
        self._characters = self._worded = 0

    def begin(self, characters: int = 0) -> None:
        """Note that the index changes now, before it does.

        Args:
            characters: of the words that come or go.
        """
        self._characters += characters
        if self._changing:
            return
        self._changing = True
        stored = self.stored()
        if self._known is None or stored != self._stored:  # another process has changed it
            self._known = self._read(None)
        self._stored = stored

    def worded(self, rows: Iterable[tuple[object, ...]], sign: int) -> None:
        """Take in rows of documents that came (1) or went (-1)."""
        self._worded += sign * sum(checksum(*row) for row in rows)

    def finish(self) -> None:
        """Write what the checksum is now, at the end of a transaction; of one that changed nothing nothing."""
        if not self._changing:
            return
        _flush(self._connection)
        known = self._read(None if self._characters > MANY_CHARACTERS else self._known)
        if self._stored is not None:  # what was damaged before stays known as that
            self._stored += known.total - self._known.total + self._worded
            self._connection.execute("UPDATE word_checksum SET total = ?", (self._stored,))
        self._known, self._changing = known, False
        self._characters = self._worded = 0

    def forget(self) -> None:
        """Take in that a transaction was undone."""
        self._known, self._changing = None, False
        self._characters = self._worded = 0

    def seal(self) -> None:
        """Take the index for whole as it is."""
        _flush(self._connection)
        self.forget()
        self._connection.execute("DELETE FROM word_checksum")
        self._connection.execute("INSERT INTO word_checksum VALUES (?)", (self.total(),))

    def stored(self) -> int | None:
        """The checksum as it was written; None where none is."""
        (stored,) = self._connection.execute("SELECT total FROM word_checksum").fetchone() or (None,)
        return stored

    def is_missing(self) -> bool:
        """Whether a writer of an earlier version was cut off, which took the checksum away while it worked."""
        return self._connection.execute("SELECT total FROM word_checksum").fetchall() == [(None,)]

    def total(self) -> int:
        """The checksum of what is there, all of it read."""
        rows = self._connection.execute(f"SELECT {WORDED} FROM worded")
        return self._read(None).total + sum(checksum(*row) for row in rows)

    def _read(self, before: _Summed | None) -> _Summed:
        """What is there now.

        Args:
            before: what was there before a change; None reads all anew.
        """
        still = self._still()
        blocks: dict[int, _Blocks] = {}
        ends: dict[int, int] = {}
        if before is not None and still is not None and before.still is not None:
            for segment in still.keys() & before.still.keys():
                if still[segment] == before.still[segment] and still[segment][0] > 0:
                    blocks[segment] = before.blocks[segment]
                    ends[segment] = before.ends[segment]
        for segment, lengths in self._lengths(blocks).items():
            blocks[segment] = self._blocks(lengths, {} if before is None else before.blocks.get(segment, {}))
        for (segment,) in self._connection.execute("SELECT DISTINCT segid FROM words_idx").fetchall():
            if segment not in ends:
                ends[segment] = self._ends(segment)
        config = self._connection.execute(f"SELECT {FTS5_TABLES['words_config']} FROM words_config")
        return _Summed(blocks, ends, sum(checksum(*row) for row in config), still)

    def _blocks(self, lengths: Mapping[int, int], before: _Blocks) -> _Blocks:
        """Those of a segment, of which only those are read that may be other ones than before."""
        kept = [id for id, length in lengths.items() if id in before and before[id][0] == length]
        if len(lengths) <= FEW_BLOCKS or len(kept) < KEPT_SHARE * min(len(lengths), len(before)):
            kept = []
        found = {id: before[id] for id in kept[1:-1]}
        for id in lengths.keys() - found.keys():
            (block,) = self._connection.execute("SELECT block FROM words_data WHERE id = ?", (id,)).fetchone()
            found[id] = len(block), checksum(id, block)
        return found

    def _lengths(self, kept: Iterable[int]) -> dict[int, dict[int, int]]:
        """Length of each block, by segment; of all segments but those that are kept."""
        found: dict[int, dict[int, int]] = {}
        start = 0
        for segment in [*sorted(kept), LAST_SEGMENT]:
            rows = self._connection.execute(
                "SELECT id, LENGTH(block) FROM words_data WHERE id >= ? AND id < ? ORDER BY id",
                (start, segment << SEGMENT_BITS),
            )
            for id, length in rows:
                found.setdefault(id >> SEGMENT_BITS, {})[id] = length
            start = segment + 1 << SEGMENT_BITS
        return found

    def _ends(self, segment: int) -> int:
        """The checksum of a segment's table of contents."""
        rows = self._connection.execute(f"SELECT {FTS5_TABLES['words_idx']} FROM words_idx WHERE segid = ?", (segment,))
        return sum(checksum(*row) for row in rows)

    def _still(self) -> dict[int, _Entry] | None:
        """Segments that no merge is at work on; None where the structure cannot be read."""
        row = self._connection.execute("SELECT block FROM words_data WHERE id = ?", (STRUCTURE,)).fetchone()
        return None if row is None else _still(row[0])


def _still(structure: bytes) -> dict[int, _Entry] | None:
    """What FTS5's structure block says of segments, those left out that a merge is at work on.

    Behind a cookie of four bytes it holds numbers: how many levels and segments there are, a counter, and for each
    level how many of its segments are being merged, how many it has, and number, first and last page of each.
    """
    numbers = iter(_varints(structure[4:]))
    found: dict[int, _Entry] = {}
    try:
        levels, segments, _ = next(numbers), next(numbers), next(numbers)
        for level in range(levels):
            merging, count = next(numbers), next(numbers)
            for place in range(count):
                segment, first, last = next(numbers), next(numbers), next(numbers)
                segments -= 1
                if not merging:
                    found[segment] = level, place, first, last
    except StopIteration:
        return None
    return found if segments == 0 and next(numbers, None) is None else None


def _varints(data: bytes) -> Iterator[int]:
    """Numbers as SQLite writes them, seven bits a byte, the highest first; none here is so large that it takes nine."""
    number = 0
    for byte in data:
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            yield number
            number = 0


def _flush(connection: sqlite3.Connection) -> None:
    """Let FTS5 write what it holds back until the end of a transaction."""
    if connection.in_transaction:
        connection.execute("SAVEPOINT words")
        connection.execute("RELEASE words")
