"""The checksum over all that the index of words is made of, carried on with every change of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
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
FEW_BLOCKS = 16
"""A segment of no more is read whole after every change."""
KEPT_SHARE = 0.75
"""Blocks that are as long as before, of a segment that was only added to or cut off. Else it is another one that has
got the number, of which FTS5 has few."""
MANY_CHARACTERS = 1 << 16
"""Of the words that came or went: after more of them FTS5 may have given a number several times."""

_Blocks = dict[int, tuple[int, int]]
"""Length and checksum of each block of a segment."""


@dataclass(frozen=True)
class _Summed:
    """What the index is made of.

    Attributes:
        blocks: of each segment.
        ends: of each segment how many lines its table of contents has, how long they are, and their checksum.
        config: checksum of FTS5's settings.
    """

    blocks: Mapping[int, _Blocks]
    ends: Mapping[int, tuple[int, int, int]]
    config: int

    @property
    def total(self) -> int:
        of_blocks = sum(crc for blocks in self.blocks.values() for _, crc in blocks.values())
        return of_blocks + sum(crc for *_, crc in self.ends.values()) + self.config


class WordChecksum:
    """Keeps the checksum of an index of words in the transactions that change it.

    A damaged index would find other leaves without a word, so it has a checksum over all of its tables. FTS5 does not
    tell which blocks it wrote, and reading all of them after every change would cost as much as there is. But it writes
    most of them once: which ones came, went or are of another length now is seen without reading them, and only those
    are read, those at both ends of each segment, and small segments.

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
            self._known = self._read({}, {})
        self._stored = stored

    def worded(self, rows: Iterable[tuple[object, ...]], sign: int) -> None:
        """Take in rows of documents that came (1) or went (-1)."""
        self._worded += sign * sum(checksum(*row) for row in rows)

    def finish(self) -> None:
        """Write what the checksum is now, at the end of a transaction; of one that changed nothing nothing."""
        if not self._changing:
            return
        _flush(self._connection)
        many = self._characters > MANY_CHARACTERS
        known = self._read({}, {}) if many else self._read(self._known.blocks, self._known.ends)
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
        return self._read({}, {}).total + sum(checksum(*row) for row in rows)

    def _read(self, blocks: Mapping[int, _Blocks], ends: Mapping[int, tuple[int, int, int]]) -> _Summed:
        """What is there now.

        Args:
            blocks: as they were before; empty reads all anew.
            ends: as they were before.
        """
        lengths: dict[int, dict[int, int]] = {}
        for id, length in self._connection.execute("SELECT id, LENGTH(block) FROM words_data ORDER BY id"):
            lengths.setdefault(id >> SEGMENT_BITS, {})[id] = length
        found = {segment: self._blocks(now, blocks.get(segment, {})) for segment, now in lengths.items()}
        config = self._connection.execute(f"SELECT {FTS5_TABLES['words_config']} FROM words_config")
        return _Summed(found, self._ends(found, blocks, ends), sum(checksum(*row) for row in config))

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

    def _ends(
        self,
        blocks: Mapping[int, _Blocks],
        before: Mapping[int, _Blocks],
        ends: Mapping[int, tuple[int, int, int]],
    ) -> dict[int, tuple[int, int, int]]:
        """The tables of contents of all segments; read are those of segments whose blocks are other ones."""
        found = {}
        counted = "SELECT segid, COUNT(*), SUM(LENGTH(term)) FROM words_idx GROUP BY segid"
        for segment, count, length in self._connection.execute(counted).fetchall():
            known = ends.get(segment)
            if known is None or known[:2] != (count, length) or blocks.get(segment) != before.get(segment):
                rows = self._connection.execute(
                    f"SELECT {FTS5_TABLES['words_idx']} FROM words_idx WHERE segid = ?", (segment,)
                )
                known = count, length, sum(checksum(*row) for row in rows)
            found[segment] = known
        return found


def _flush(connection: sqlite3.Connection) -> None:
    """Let FTS5 write what it holds back until the end of a transaction."""
    if connection.in_transaction:
        connection.execute("SAVEPOINT words")
        connection.execute("RELEASE words")
