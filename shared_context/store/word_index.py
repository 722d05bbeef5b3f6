"""Which leaves hold a word, kept in the store's own database."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from struct import Struct, pack
from zlib import crc32

import numpy as np

from shared_context.model.tokenization import TokenizedText
from shared_context.store.checksum import checksum, encoded
from shared_context.store.common_words import LANGUAGES
from shared_context.store.leaf_words import LeafWords

FIRST_NAMESPACE = 1
"""The key of the namespace of a store's own documents, which is made with the store."""

_TOKENS = re.compile(r"[0-9A-Za-z\x80-\U0010ffff\-_./:@~\\+&=#,']+")
"""Of several, a leaf holds a term only with all of them."""

LEAF_BITS = 24
"""Lowest bits of the number that a key and a leaf of its document make together; the others are the key."""
LEAVES_TOGETHER_BITS, DOCUMENTS_TOGETHER_BITS = 5, 8
"""So many leaves of so many documents make a block. Both together fit 16 bits."""
PENDING_PLACES = 1 << 18
"""Of the words that came or went in a transaction, which are then written before its end."""
ROWS_TOGETHER = 512
"""Rows that one statement reads."""

SCHEMA = (
    # term: its keyed hash, for SQLite overwrites what is deleted, but seldom all that it once moved within a page.
    # places: of the leaves of a block that hold it, 16 bits each.
    """CREATE TABLE postings (
        term INTEGER NOT NULL, block INTEGER NOT NULL, checksum INTEGER NOT NULL, places BLOB NOT NULL,
        PRIMARY KEY (term, block)
    ) WITHOUT ROWID""",
    # document: the key that the document has now; its leaves are known by the one that it had first.
    """CREATE TABLE worded (
        key INTEGER PRIMARY KEY, document INTEGER NOT NULL, language TEXT NOT NULL, leaf_size INTEGER NOT NULL
    )""",
    "CREATE INDEX worded_moved ON worded (key, document) WHERE document <> key",
    # One row: the sum of the checksums of all rows of both, so that none can vanish unnoticed.
    "CREATE TABLE word_checksum (total INTEGER)",
)
KEYS = "keys of words"
"""What the sum of the keys of postings is kept under, among the values of the store as a whole."""
_KEY_SUM = "(term & 0xFFFFFFFF) + (term >> 32 & 0xFFFFFFFF) + (block & 0xFFFFFFFF) + (block >> 32)"
"""Of one row; a sum of many is less than 2**63."""
_WORDED = "key, document, language, leaf_size"


class DamagedWordsError(Exception):
    """A row of the index of words is not what was written."""


class WordIndex:
    """Which leaves hold a word, in the transactions of the documents: no killed writer leaves words of a document that
    is not there, and other processes see both at once.

    Why a table of its own and not SQLite's FTS5: FTS5 only marks words as deleted until all that it holds is merged, so
    that deleting a document took 61 ms of the processor among 10,000 short ones and 27 among 4,000, and its blocks have
    no checksums. Here a document's words are taken out of the rows that they stand in: 5 to 8 ms among 4,000. To add
    one takes longer than with FTS5. Words of a transaction are gathered and written at its end: a batch of
    documents meets most of its rows many times.

    Args:
        connection: of the database, inside of whose transactions everything is called.
    """

    def __init__(self, connection: sqlite3.Connection):
        self.reconnect(connection)

    def reconnect(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._connection = connection
        self._pending: dict[int, dict[int, dict[int, bool]]] = {}  # by blocks and terms, whether a place is there now
        self._count = self._more = 0

    # The whole

    def is_whole(self, leaf_size: int, *, thorough: bool = False) -> bool:
        """Whether the index is what was written.

        Args:
            leaf_size: tokens of a leaf.
            thorough: compare every row with its checksum, which a look-up does with those that it reads; else only
                whether all rows are there.
        """
        try:
            described = set(self._connection.execute("SELECT DISTINCT language, leaf_size FROM worded"))
            if not described <= {(language, leaf_size) for language in LANGUAGES}:
                return False
            known, (of_rows, keys) = self._stored_keys(), self._sums()
            worded = self._connection.execute(f"SELECT {_WORDED} FROM worded")
            if self._stored() != of_rows + _sum_of_worded(worded) or (known is not None and known != keys):
                return False
            rows = self._connection.execute("SELECT term, block, checksum, places FROM postings") if thorough else ()
            return all(_is_as_written(*row) for row in rows)
        except (TypeError, ValueError, sqlite3.DatabaseError) as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE:
                return False
            raise

    def _stored(self) -> int | None:
        (stored,) = self._connection.execute("SELECT total FROM word_checksum").fetchone() or (None,)
        return stored

    def knows_its_keys(self) -> bool:
        """Whether the sum of the keys of rows is kept, which an earlier version did not."""
        return self._stored_keys() is not None

    def note_keys(self) -> None:
        """Keep the sum of the keys of rows: where one is damaged, no look-up meets its row, nor the row's checksum."""
        self._put_keys(self._sums()[1])

    def _sums(self) -> tuple[int, int]:
        """The sums of the checksums and of the keys of postings, in one pass."""
        sums = f"SELECT COALESCE(SUM(checksum), 0), COALESCE(SUM({_KEY_SUM}), 0) FROM postings"
        of_rows, keys = self._connection.execute(sums).fetchone()
        return of_rows, keys

    def _stored_keys(self) -> int | None:
        row = self._connection.execute("SELECT checksum, value FROM meta WHERE key = ?", (KEYS,)).fetchone()
        if row is None:
            return None
        return int(row[1]) if row[0] == checksum(KEYS, row[1]) else -1

    def _put_keys(self, total: int) -> None:
        value = str(total).encode()
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (KEYS, checksum(KEYS, value), value))

    def make_anew(self, documents: Iterable[tuple[int, int, int, list[tuple[str, TokenizedText]]]], size: int) -> None:
        """Forget everything, whatever state it is in, and take documents in.

        Args:
            documents: of each its namespace's key, the key that it had first, its key, and text and tokens of its
                chunks.
            size: tokens of a leaf.
        """
        for table in ("postings", "worded", "word_checksum"):
            self._connection.execute(f"DELETE FROM {table}")
        self._connection.execute("INSERT INTO word_checksum VALUES (0)")
        self._put_keys(0)
        self.undo()
        for namespace, content, key, chunks in documents:
            leaf = 0
            for of_chunk in LeafWords.of_chunks(chunks, size):
                self.add(namespace, content, of_chunk, leaf)
                leaf += len(of_chunk.terms)
            self.move(content, key)
        self.write()

    # Words

    def add(self, namespace: int, key: int, words: LeafWords, first: int = 0) -> None:
        """Take in the leaves of a document, from leaf ``first`` on.

        Args:
            namespace: key of the document's namespace.
            key: the document's first one, which does not change when text is added to it.
        """
        came = self._connection.execute(
            f"INSERT OR IGNORE INTO worded VALUES (?, ?, ?, ?) RETURNING {_WORDED}",
            (key, key, words.language, words.leaf_size),
        )
        self._more += sum(checksum(*row) for row in came.fetchall())
        self._put(namespace, key, words, first, True)

    def remove(self, namespace: int, key: int, words: LeafWords, first: int = 0) -> None:
        """Forget the leaves of a document from leaf ``first`` on, whose words are these."""
        self._put(namespace, key, words, first, False)
        if first == 0:
            gone = self._connection.execute(f"DELETE FROM worded WHERE key = ? RETURNING {_WORDED}", (key,))
            self._more -= sum(checksum(*row) for row in gone.fetchall())

    def move(self, key: int, document: int) -> None:
        """Take in that a document has another key now."""
        before = self._connection.execute(f"SELECT {_WORDED} FROM worded WHERE key = ?", (key,)).fetchall()
        now = self._connection.execute(
            f"UPDATE worded SET document = ? WHERE key = ? RETURNING {_WORDED}", (document, key)
        ).fetchall()
        self._more += sum(checksum(*row) for row in now) - sum(checksum(*row) for row in before)

    def described(self, key: int) -> tuple[str, int] | None:
        """The language that a document was taken for, and its tokens per leaf; None where it is not known."""
        return self._connection.execute("SELECT language, leaf_size FROM worded WHERE key = ?", (key,)).fetchone()

    def _put(self, namespace: int, key: int, words: LeafWords, first: int, there: bool) -> None:
        salt = self._salt(namespace)
        for leaf, terms in enumerate(words.terms, start=first):
            block, place = _placed(key, leaf)
            of_block = self._pending.setdefault(block, {})
            for term in (hash for word in terms.split(" ") for hash in _hashes(salt, word)):
                changed = of_block.get(term)
                if changed is None:
                    of_block[term] = {place: there}
                elif changed.pop(place, there) == there:  # else it came and went, or went and came
                    changed[place] = there
            self._count += terms.count(" ") + 1
        if self._count > PENDING_PLACES:
            self.write()

    def write(self) -> None:
        """Write what came or went, before a transaction ends or the index is read in it.

        Raises:
            DamagedWordsError: it belongs into a row that is damaged.
        """
        if not self._pending and not self._more:
            return
        added, keys = self._more, 0
        put: list[tuple[int, int, int, bytes]] = []
        gone: list[tuple[int, int]] = []
        for block, of_block in self._pending.items():
            rows = self._rows(block, list(of_block))
            for term, changed in of_block.items():
                expected, before = rows.get(term, (0, b""))
                if changed and all(changed.values()):
                    came = pack(f"<{len(changed)}H", *changed)
                    # The checksum of what is put behind something goes on from that of what stands before.
                    after, total = before + came, crc32(came, expected if before else _checksum(term, block, b""))
                else:
                    after = _changed(before, changed)
                    total = _checksum(term, block, after) if after else 0
                if after:
                    put.append((term, block, total, after))
                else:
                    gone.append((term, block))
                if bool(after) != (term in rows):
                    keys += _key_sum(term, block) if after else -_key_sum(term, block)
                added += total - expected
        # In the order of the table: neighbours lie in one page. What is there is overwritten in place.
        self._connection.executemany("INSERT OR REPLACE INTO postings VALUES (?, ?, ?, ?)", sorted(put))
        self._connection.executemany("DELETE FROM postings WHERE term = ? AND block = ?", sorted(gone))
        if added:
            self._connection.execute("UPDATE word_checksum SET total = total + ?", (added,))
        if keys and (stored := self._stored_keys()) is not None:
            self._put_keys(stored + keys)
        self.undo()

    def _rows(self, block: int, terms: list[int]) -> dict[int, tuple[int, bytes]]:
        """Checksum and places of those of some terms that have a row in a block, by the terms."""
        found: dict[int, tuple[int, bytes]] = {}
        for at in range(0, len(terms), ROWS_TOGETHER):
            some = terms[at : at + ROWS_TOGETHER]
            some += some[:1] * (-len(some) % 32)  # so that few statements have to be prepared
            marks = ", ".join("?" * len(some))
            query = f"SELECT term, checksum, places FROM postings WHERE block = ? AND term IN ({marks})"
            for term, expected, places in self._connection.execute(query, (block, *some)):
                if not _is_as_written(term, block, expected, places):
                    raise DamagedWordsError(_DAMAGED)
                found[term] = expected, places
        return found

    def undo(self) -> None:
        """Forget what came or went and is not written yet."""
        self._pending.clear()
        self._count = self._more = 0

    def leaves_with(self, namespace: int, term: str) -> tuple[np.ndarray, np.ndarray]:
        """Keys and leaves of the documents of a namespace that hold a term, int64, in rising order.

        Raises:
            DamagedWordsError: a row of it is damaged.
        """
        self.write()
        salt, found = self._salt(namespace), None
        for of_term in _hashes(salt, term):
            of_token = self._leaves(of_term)
            found = of_token if found is None else np.intersect1d(found, of_token)
        rows = np.zeros(0, np.int64) if found is None else found
        documents, leaves = rows >> LEAF_BITS, rows & (1 << LEAF_BITS) - 1
        query = "SELECT key, document FROM worded INDEXED BY worded_moved WHERE document <> key ORDER BY key"
        if len(moved := np.array(self._connection.execute(query).fetchall(), np.int64).reshape(-1, 2)):
            places = np.searchsorted(moved[:, 0], documents).clip(max=len(moved) - 1)
            documents = np.where(moved[places, 0] == documents, moved[places, 1], documents)
        order = np.lexsort((leaves, documents))
        return documents[order], leaves[order]

    def _leaves(self, term: int) -> np.ndarray:
        """Keys and leaves, each two as one number, that hold a term."""
        rows = self._connection.execute(
            "SELECT block, checksum, places FROM postings WHERE term = ?", (term,)
        ).fetchall()
        if not all(_is_as_written(term, *row) for row in rows):
            raise DamagedWordsError(_DAMAGED)
        blocks = np.repeat([block for block, *_ in rows], [len(places) // 2 for *_, places in rows]).astype(np.int64)
        return _leaf(blocks, np.frombuffer(b"".join(places for *_, places in rows), "<u2").astype(np.int64))

    def _salt(self, namespace: int) -> bytes:
        """What makes the hashes of a namespace's terms others than those of any other namespace."""
        (salt,) = self._connection.execute("SELECT salt FROM namespaces WHERE key = ?", (namespace,)).fetchone()
        return salt

    def languages(self, namespace: int) -> list[str]:
        """Those that documents of a namespace were taken for."""
        # One document tells of a language that it is there; to join all with their languages takes ten times as long.
        query = (
            "SELECT language FROM (SELECT DISTINCT language FROM worded) AS known WHERE EXISTS (SELECT 1 FROM worded "
            "JOIN documents ON content = worded.key WHERE worded.language = known.language AND namespace = ?)"
        )
        return sorted(language for (language,) in self._connection.execute(query, (namespace,)))


@dataclass(frozen=True)
class NamespaceWords:
    """Which leaves of a namespace hold a word; no word of another one is seen by it."""

    index: WordIndex
    namespace: int

    def leaves_with(self, terms: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each term, keys and leaves of the documents that hold it, int64, in rising order."""
        return [self.index.leaves_with(self.namespace, term) for term in terms]

    def languages(self) -> list[str]:
        """Those that documents were taken for."""
        return self.index.languages(self.namespace)


_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}
"""What SQLite says of a table that it cannot read; the second of text that is not UTF-8."""


@lru_cache(maxsize=1 << 16)
def _hashes(salt: bytes, term: str) -> tuple[int, ...]:
    """The hashes of what a term consists of; texts are made of few words again and again."""
    return tuple(_hash(salt, token) for token in _TOKENS.findall(term))


def _hash(salt: bytes, token: str) -> int:
    return int.from_bytes(
        blake2b(token.encode(errors="surrogatepass"), key=salt, digest_size=8).digest(), "little", signed=True
    )


def _placed(key: int, leaf: int) -> tuple[int, int]:
    """The block of a document's leaf, and its place there."""
    in_leaves, in_documents = 1 << LEAVES_TOGETHER_BITS, 1 << DOCUMENTS_TOGETHER_BITS
    block = key // in_documents << LEAF_BITS - LEAVES_TOGETHER_BITS | leaf // in_leaves
    return block, key % in_documents << LEAVES_TOGETHER_BITS | leaf % in_leaves


def _leaf(block: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Keys and leaves, each two as one number, of places in blocks."""
    of_block = LEAF_BITS - LEAVES_TOGETHER_BITS
    key = block >> of_block << DOCUMENTS_TOGETHER_BITS | place >> LEAVES_TOGETHER_BITS
    leaf = (block & (1 << of_block) - 1) << LEAVES_TOGETHER_BITS | place & (1 << LEAVES_TOGETHER_BITS) - 1
    return key << LEAF_BITS | leaf


def _changed(places: bytes, changed: dict[int, bool]) -> bytes:
    """Places of a row without those that went, and with those that came."""
    came = [place for place, there in changed.items() if there]
    if len(came) < len(changed):
        kept, gone = np.frombuffer(places, "<u2"), [place for place, there in changed.items() if not there]
        # isin takes five times as long as a comparison.
        places = kept[kept != gone[0] if len(gone) == 1 else ~np.isin(kept, gone)].tobytes()
    return places + pack(f"<{len(came)}H", *came)


def _sum_of_worded(rows: Iterable[tuple[object, object, object, object]]) -> int:
    """The sum of the checksums of rows of ``worded``: most have the same last values, and the first one twice."""
    ends: dict[tuple[object, object], bytes] = {}
    total = 0
    for key, document, language, leaf_size in rows:
        end = ends.get((language, leaf_size))
        if end is None:
            end = ends[language, leaf_size] = encoded(language, leaf_size)
        first = encoded(key)
        total += crc32(first + (first if document == key else encoded(document)) + end)
    return total


def _key_sum(term: int, block: int) -> int:
    low = (1 << 32) - 1
    return (term & low) + (term >> 32 & low) + (block & low) + (block >> 32)


def _checksum(term: int, block: int, places: bytes) -> int:
    # Of its own, and not as of other rows: one look-up reads many.
    return crc32(places, crc32(_KEY(term, block)))


def _is_as_written(term: int, block: int, expected: int, places: bytes) -> bool:
    """Whether a row is what was written; of a damaged one the types may be others, too."""
    if not (type(term) is type(block) is int and type(places) is bytes and len(places) % 2 == 0):
        return False
    return expected == crc32(places, crc32(_KEY(term, block)))


_KEY = Struct("<qq").pack
_DAMAGED = "the checksum of a row of the index of words is wrong"
