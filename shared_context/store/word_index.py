"""Which leaves hold a word, kept in SQLite's FTS5."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from shared_context.model.tokenization import TokenizedText
from shared_context.store.word_checksum import CHECKSUM_TABLE, FTS5_TABLES, WORDED, WordChecksum
from shared_context.store.words import LANGUAGES, language_of, words

FIRST_NAMESPACE = 1
"""The key of the namespace of a store's own documents, which is made with the store."""

_OF_NAMESPACE = "\ue000"
"""Stands between a namespace's key and a term of it: no word has this character."""

_TOKENS = re.compile(r"[0-9A-Za-z\x80-\U0010ffff\-_./:@~\\+&=#,']+")
"""What FTS5 takes for one term, as SCHEMA tells it."""

LEAF_BITS = 24
"""Lowest bits of a row's number, which say which leaf of its document it is; the others are the document's key."""

# FTS5 only has to part the terms at their blanks: what joins the parts of a name belongs to its term. Where in a row a
# term stands, and how often, is not kept: it seldom comes twice in a leaf.
SCHEMA = (
    """CREATE VIRTUAL TABLE words USING fts5(
        terms, content = '', columnsize = 0, detail = none, tokenize = "ascii tokenchars '-_./:@~\\+&=#,'''"
    )""",
    # document: the key that the document has now; its rows are numbered by the one that it had first.
    """CREATE TABLE worded (
        key INTEGER PRIMARY KEY, document INTEGER NOT NULL, language TEXT NOT NULL, leaf_size INTEGER NOT NULL
    )""",
    "CREATE INDEX worded_moved ON worded (key, document) WHERE document <> key",
    CHECKSUM_TABLE,
)

BEFORE_CHARACTERS = 128
"""Of the chunk before, which a word that lies across the edge may begin in. What stands before a chunk never changes,
whatever is added behind it, so that the same words are found again when they have to be forgotten."""


@dataclass(frozen=True)
class LeafWords:
    """What the leaves of a document are found by.

    Attributes:
        language: that the text was taken for.
        leaf_size: tokens of a leaf.
        terms: of each leaf, its terms with blanks between them.
    """

    language: str
    leaf_size: int
    terms: Sequence[str]

    @classmethod
    def of(
        cls, text: str, tokens: TokenizedText, leaf_size: int, language: str | None = None, before: str = ""
    ) -> LeafWords:
        """The words of a text; one that lies on the edge of two leaves belongs to both.

        Args:
            language: None finds it out.
            before: what stands before the text. A word that begins there and goes on in the text belongs to its first
                leaf.
        """
        language = language or language_of(text)
        starts = (tokens.bounds[: len(tokens) : leaf_size] + len(before)).tolist()
        found: list[set[str]] = [set() for _ in starts]
        edges = [*starts[1:], len(before) + len(text) + 1]
        leaf = 0
        for start, end, terms in words(before + text, language):
            if end <= len(before):
                continue
            while edges[leaf] <= start:
                leaf += 1
            found[leaf] |= terms
            beyond = leaf + 1
            while beyond < len(found) and edges[beyond - 1] < end:
                found[beyond] |= terms
                beyond += 1
        # Sorted, so that the same text always gives the same row.
        return cls(language, leaf_size, [" ".join(sorted(terms)) for terms in found])

    @classmethod
    def by_chunk(
        cls,
        text: str,
        tokens: TokenizedText,
        leaf_size: int,
        chunk_size: int,
        language: str | None = None,
        before: str = "",
    ) -> LeafWords:
        """The same chunk by chunk, so that no word depends on what follows its chunk; arguments as in :meth:`of`."""
        language = language or language_of(text)
        found: list[str] = []
        for first in range(0, len(tokens), chunk_size):
            end = min(first + chunk_size, len(tokens))
            start, stop = tokens.characters(first, end)
            own = TokenizedText(tokens.ids[first:end], tokens.bounds[first : end + 1] - start)
            found += cls.of(
                text[start:stop], own, leaf_size, language, (before + text[:start])[-BEFORE_CHARACTERS:]
            ).terms
        return cls(language, leaf_size, found)

    @classmethod
    def of_chunks(cls, chunks: Sequence[tuple[str, TokenizedText]], leaf_size: int) -> list[LeafWords]:
        """Those of each chunk of a document.

        Args:
            chunks: text and tokens of each, in their order.
            leaf_size: tokens of a leaf.
        """
        language, before, found = language_of("".join(text for text, _ in chunks)), "", []
        for text, tokens in chunks:
            found.append(cls.of(text, tokens, leaf_size, language, before))
            before = (before + text)[-BEFORE_CHARACTERS:]
        return found

    def leaves(self, first: int, end: int) -> LeafWords:
        """Those of some leaves alone."""
        return LeafWords(self.language, self.leaf_size, self.terms[first:end])


class WordIndex:
    """Which leaves hold a word, in the store's own database.

    Why FTS5 (measured with 800,000 words in 33,334 leaves, on one busy core): it takes 109 bytes a leaf and 22 us to
    add one, is there as soon as the file is open, and finds the rows of a rare word in 0.1 ms and those of a word in
    two leaves of three in 7 ms. Deleting 300 leaves took 13 ms, and it is exact afterwards. It changes in the
    transactions of the documents: no killed writer leaves words of a document that is not there, and other processes
    see both at once. bm25s takes 193 bytes a leaf and scores in 0.3 ms, but has to be made anew, 1.8 s, after every
    change. tantivy keeps a folder and a lock of its own, which no transaction of SQLite covers.

    FTS5's own ranking knows no neighbouring rows; see :func:`shared_context.store.scoring.lexical`.

    Args:
        connection: of the database, inside of whose transactions everything is called.

    Attributes:
        checksum: over all that it is made of.
    """

    def __init__(self, connection: sqlite3.Connection):
        self.reconnect(connection)

    def reconnect(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._connection, self.checksum = connection, WordChecksum(connection)

    def is_whole(self, leaf_size: int) -> bool:
        """Whether the index is what was written.

        Args:
            leaf_size: tokens of a leaf.
        """
        try:
            described = set(self._connection.execute("SELECT DISTINCT language, leaf_size FROM worded"))
            known = {(language, leaf_size) for language in LANGUAGES}
            return self.checksum.stored() == self.checksum.total() and described <= known
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE:
                return False
            raise

    def clear(self) -> None:
        """Forget everything, whatever state it is in."""
        # FTS5 itself refuses to touch an index that it cannot read: its tables become those of an empty one.
        with closing(sqlite3.connect(":memory:")) as empty:
            empty.execute(SCHEMA[0])
            for table, columns in FTS5_TABLES.items():
                self._connection.execute(f"DELETE FROM {table}")
                rows = empty.execute(f"SELECT {columns} FROM {table}").fetchall()
                marks = ", ".join("?" * len(columns.split(", ")))
                self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        self._connection.execute("DELETE FROM worded")

    # Words

    def add(self, namespace: int, key: int, words: LeafWords, first: int = 0) -> None:
        """Take in the leaves of a document, from leaf ``first`` on.

        Args:
            namespace: key of the document's namespace.
            key: the document's first one, which does not change when text is added to it.
        """
        self.checksum.begin(sum(map(len, words.terms)))
        came = self._connection.execute(
            f"INSERT OR IGNORE INTO worded VALUES (?, ?, ?, ?) RETURNING {WORDED}",
            (key, key, words.language, words.leaf_size),
        )
        self.checksum.worded(came.fetchall(), 1)
        rows = _rows(namespace, key, words, first)
        self._connection.executemany("INSERT INTO words (rowid, terms) VALUES (?, ?)", rows)

    def move(self, key: int, document: int) -> None:
        """Take in that a document has another key now."""
        self.checksum.begin()
        moved = self._connection.execute(f"SELECT {WORDED} FROM worded WHERE key = ?", (key,)).fetchall()
        self.checksum.worded(moved, -1)
        came = f"UPDATE worded SET document = ? WHERE key = ? RETURNING {WORDED}"
        self.checksum.worded(self._connection.execute(came, (document, key)).fetchall(), 1)

    def described(self, key: int) -> tuple[str, int] | None:
        """The language that a document was taken for, and its tokens per leaf; None where it is not known."""
        return self._connection.execute("SELECT language, leaf_size FROM worded WHERE key = ?", (key,)).fetchone()

    def remove(self, namespace: int, key: int, words: LeafWords, first: int = 0) -> None:
        """Forget the leaves of a document from leaf ``first`` on, whose words are these."""
        self.checksum.begin(sum(map(len, words.terms)))
        gone = _rows(namespace, key, words, first)
        self._connection.executemany("INSERT INTO words (words, rowid, terms) VALUES ('delete', ?, ?)", gone)
        if first == 0:
            rows = self._connection.execute(f"DELETE FROM worded WHERE key = ? RETURNING {WORDED}", (key,))
            self.checksum.worded(rows.fetchall(), -1)

    def merge(self) -> None:
        """Let nothing be left of words that were removed: until then FTS5 only marks them so."""
        self.checksum.begin()
        self._connection.execute("INSERT INTO words (words) VALUES ('optimize')")

    def leaves_with(self, namespace: int, term: str) -> tuple[np.ndarray, np.ndarray]:
        """Keys and leaves of the documents of a namespace that hold a term, int64, in rising order."""
        # A term of several is one that a leaf holds all of.
        all_of_it = " ".join(f'"{token}"' for token in _tokens(namespace, term))
        (found,) = self._connection.execute(
            "SELECT group_concat(rowid) FROM words WHERE words MATCH ?", (all_of_it or '""',)
        ).fetchone()
        rows = np.fromstring(found or "", dtype=np.int64, sep=",")
        documents, leaves = rows >> LEAF_BITS, rows & (1 << LEAF_BITS) - 1
        query = "SELECT key, document FROM worded INDEXED BY worded_moved WHERE document <> key ORDER BY key"
        if len(moved := np.array(self._connection.execute(query).fetchall(), np.int64).reshape(-1, 2)):
            places = np.searchsorted(moved[:, 0], documents).clip(max=len(moved) - 1)
            documents = np.where(moved[places, 0] == documents, moved[places, 1], documents)
        order = np.lexsort((leaves, documents))
        return documents[order], leaves[order]

    def languages(self, namespace: int) -> list[str]:
        """Those that documents of a namespace were taken for."""
        rows = self._connection.execute(
            "SELECT DISTINCT language FROM documents JOIN worded ON worded.key = content "
            "WHERE namespace = ? ORDER BY language",
            (namespace,),
        )
        return [language for (language,) in rows]


@dataclass(frozen=True)
class NamespaceWords:
    """Which leaves of a namespace hold a word; no word of another one is seen by it."""

    index: WordIndex
    namespace: int

    def leaves_with(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """Keys and leaves of the documents that hold a term, int64, in rising order."""
        return self.index.leaves_with(self.namespace, term)

    def languages(self) -> list[str]:
        """Those that documents were taken for."""
        return self.index.languages(self.namespace)


_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}
"""What SQLite says of an index that it cannot read; the second of text that is not UTF-8."""


def _rows(namespace: int, key: int, words: LeafWords, first: int) -> list[tuple[int, str]]:
    rows = ((key << LEAF_BITS | leaf, terms) for leaf, terms in enumerate(words.terms, start=first))
    if namespace == FIRST_NAMESPACE:
        return list(rows)
    return [(row, " ".join(_tokens(namespace, terms))) for row, terms in rows]


def _tokens(namespace: int, terms: str) -> list[str]:
    """What FTS5 knows terms of a namespace by, so that it never meets those of another one."""
    mark = "" if namespace == FIRST_NAMESPACE else f"{namespace}{_OF_NAMESPACE}"
    return [f"{mark}{token}" for token in _TOKENS.findall(terms)]
