"""What a store keeps in its SQLite file: documents as rows with checksums, beside namespaces and conversations."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, cast, get_args, get_type_hints

import numpy as np

from shared_context.errors import StoreFormatError
from shared_context.model.tokenization import TokenizedText
from shared_context.store import format as file_format
from shared_context.store.checksum import checksum
from shared_context.store.conversation_rows import ConversationRows
from shared_context.store.format import Line, as_json
from shared_context.store.namespace_rows import NamespaceRows
from shared_context.store.node_data import (
    COLUMNS,
    HeaderData,
    NodeData,
    NodeShape,
    Part,
    StoredText,
    joined_nodes,
    joined_text,
)
from shared_context.store.read_only import read_only
from shared_context.store.sqlite_file import damaged
from shared_context.store.word_index import BEFORE_CHARACTERS, DamagedWordsError, LeafWords

logger = logging.getLogger(__name__)

Kind = Literal["document", "conversation"]

DIGEST_BYTES = 20
"""Of a chunk's digest."""

HEADERS_ONE_BY_ONE = 64
"""Documents whose headers are looked for one after the other; of more it is found out first which have one."""
LEAF_FILE = "leaves of namespace "
"""Before a namespace's key: what its file of leaves is known by."""
CHANGES_KEPT = 4096
"""Changes that are kept for other processes to take in; one that missed more looks at everything anew."""


@dataclass(frozen=True)
class Entry:
    """A document's line in the catalogue; its metadata are read only.

    Attributes:
        unsearched_keys: metadata that no query is compared with.
        hidden_keys: metadata that no model is shown.
    """

    kind: Kind
    id: str
    metadata: dict[str, Any]
    unsearched_keys: tuple[str, ...] = ()
    hidden_keys: tuple[str, ...] = ()


class Header(NamedTuple):
    """What is kept of a document's header.

    Attributes:
        data: what scoring needs of it; None where no query is compared with it.
        digest: of what a model is shown of it; empty where it is shown nothing.
    """

    data: HeaderData | None
    digest: bytes


@dataclass(frozen=True)
class Changes:
    """What happened in a namespace since a version.

    Attributes:
        documents: keys that came, changed or went.
        digests: of chunks that went.
    """

    documents: list[int]
    digests: set[bytes]


class Database(NamespaceRows, ConversationRows):
    """The rows of a store's file; arguments and errors of opening are those of the file."""

    _leaf_size: int | None = None

    # Documents

    def insert(
        self, namespace: int, entry: Entry, parts: Sequence[tuple[bytes, Part]], header: Header | None = None
    ) -> int:
        """Add a document.

        Args:
            parts: its chunks with their digests.
            header: what is kept of its metadata beside them.

        Returns:
            Its key, which no other document ever has.
        """
        with self.decoding("the numbering of documents"):
            content = file_format.next_key(self._connection)
        self._put_parts(namespace, content, 0, parts)
        line = Line(namespace, entry.kind, entry.id, content, len(parts), _text_bytes(parts), *_described(entry))
        key = file_format.put_document(self._connection, line)
        self._put_header(key, content, header)
        return key

    def _put_header(self, key: int, content: int, header: Header | None) -> None:
        if header is None or header == (None, b""):
            return
        values = (b"", b"", b"")
        if header.data is not None:
            values = tuple(getattr(header.data, field.name).tobytes() for field in fields(HeaderData))
        total = checksum(content, header.digest, *values)
        self._connection.execute(
            "INSERT INTO headers VALUES (?, ?, ?, ?, ?, ?, ?)", (key, content, header.digest, total, *values)
        )

    def _remove_header(self, key: int) -> set[bytes]:
        gone = self._connection.execute("DELETE FROM headers WHERE document = ? RETURNING digest", (key,)).fetchall()
        return self._checked_digests(f"document number {key}", {digest for (digest,) in gone if digest != b""})

    def headers(self, keys: Iterable[int], shape: NodeShape) -> dict[int, HeaderData]:
        """What scoring needs of the headers of documents; of those that have one."""
        columns, keys = "document, content, digest, checksum, codes, scales, embeddings", set(keys)
        if len(keys) > HEADERS_ONE_BY_ONE:
            rows = (row for row in self._connection.execute(f"SELECT {columns} FROM headers") if row[0] in keys)
        else:
            found = f"SELECT {columns} FROM headers WHERE document = ?"
            one_by_one = (self._connection.execute(found, (key,)).fetchone() for key in sorted(keys))
            rows = (row for row in one_by_one if row is not None)
        values = {row[0]: self._header_values(*row) for row in rows}
        values = {key: of_header for key, of_header in values.items() if of_header[0]}
        with suppress(ValueError):  # then it is found out whose they are
            return dict(zip(values, shape.decode_headers(list(values.values())), strict=True))
        for key, of_header in values.items():
            with self.decoding(f"document {self._line(key).id!r}"):
                shape.decode_headers([of_header])
        return {}

    def _header_values(self, key: int, *row: Any) -> tuple[bytes, ...]:
        if tuple(map(type, row)) != _HEADER_TYPES:
            self._check_types(f"document {self._line(key).id!r}", row, _HEADER_TYPES)
        content, digest, expected, *values = row
        if expected != checksum(content, digest, *values):
            with self.decoding(f"document {self._line(key).id!r}"):
                raise ValueError("the checksum of its header is wrong")
        return tuple(values)

    def extend(self, key: int, entry: Entry, first: int, parts: Sequence[tuple[bytes, Part]]) -> tuple[int, set[bytes]]:
        """Put chunks in the place of those of a document from ``first`` on.

        Returns:
            The document's new key, and the digests of the chunks that are gone.
        """
        line = self._line(key)
        with self.decoding("the numbering of documents"):
            file_format.next_key(self._connection)
        (before,) = self._connection.execute(
            "SELECT COALESCE(SUM(LENGTH(CAST(text AS BLOB))), 0) FROM parts WHERE content = ? AND number >= ?",
            (line.content, first),
        ).fetchone()
        digests = self._remove_parts(key, first)
        file_format.note_change(self._connection, line.namespace, key, digests)
        self._remove_line(line.namespace, key)
        self._put_parts(line.namespace, line.content, first, parts)
        nbytes = line.bytes - before + _text_bytes(parts)
        line = line._replace(parts=first + len(parts), bytes=nbytes)
        new = file_format.put_document(self._connection, line)
        self.words.move(line.content, new)
        self._connection.execute("UPDATE headers SET document = ? WHERE document = ?", (new, key))
        return new, digests

    def _put_parts(self, namespace: int, content: int, first: int, parts: Sequence[tuple[bytes, Part]]) -> None:
        leaf: int | None = None
        for number, (digest, part) in enumerate(parts, start=first):
            words = part.nodes.words
            assert words is not None  # of what was computed and not read back
            if leaf is None:
                leaf = self._first_leaf(content, first, words.leaf_size)
            file_format.put_part(self._connection, content, number, digest, part.stored, part.nodes)
            self.words.add(namespace, content, words, leaf)
            leaf += len(words.terms)

    def _first_leaf(self, content: int, number: int, leaf_size: int) -> int:
        """The leaf of the document that a part begins with; all before the last part are equally long."""
        if number == 0:
            return 0
        (nbytes,) = self._connection.execute(
            "SELECT LENGTH(ids) FROM parts WHERE content = ? AND number = 0", (content,)
        ).fetchone()
        return number * (nbytes // np.dtype(np.int32).itemsize // leaf_size)

    def _remove_parts(self, key: int, first: int) -> set[bytes]:
        """Delete parts of a document with their words; returns their digests."""
        line = self._line(key)
        content = line.content
        language, leaf_size = self._words_described(line)
        leaf = self._first_leaf(content, first, leaf_size)
        before = self._before(key, first)
        gone: list[str] = []
        for part in self._texts(key, first):
            gone += LeafWords.of(part.text, part.tokens, leaf_size, language, before).terms
            before = (before + part.text)[-BEFORE_CHARACTERS:]
        self.words.remove(line.namespace, content, LeafWords(language, leaf_size, gone), leaf)
        digests = self._checked_digests(f"document {line.id!r}", {row[-1] for row in self._parts(key, "digest", first)})
        self._connection.execute("DELETE FROM parts WHERE content = ? AND number >= ?", (content, first))
        return digests

    def _words_described(self, line: Line) -> tuple[str, int]:
        """The language that a document's words were taken for, and its tokens per leaf."""
        described = self.words.described(line.content)
        if described is None:
            raise damaged(self._place, f"document {line.id!r}: the index of words does not know it")
        return described

    def _before(self, key: int, number: int) -> str:
        """The last characters of a document before a part."""
        if number == 0:
            return ""
        content = self._line(key).content
        rows = self._connection.execute(
            "SELECT text FROM parts WHERE content = ? AND number BETWEEN ? AND ? ORDER BY number",
            (content, max(0, number - BEFORE_CHARACTERS), number - 1),
        ).fetchall()
        for row in rows:
            self._check_types(f"document number {key}", row, (str,))
        return "".join(text for (text,) in rows)[-BEFORE_CHARACTERS:]

    def remove(self, key: int) -> set[bytes]:
        """Delete a document; returns the digests of its chunks."""
        line = self._line(key)
        digests = self._remove_parts(key, 0) | self._remove_header(key)
        file_format.note_change(self._connection, line.namespace, key, digests)
        self._remove_line(line.namespace, key)
        self._log_has_deleted = True
        return digests

    def _line(self, key: int) -> Line:
        row = self._connection.execute(f"SELECT {_LINE} FROM documents WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise damaged(self._place, f"document {key} is missing")
        self._check_types(f"document number {key}", row, _LINE_TYPES)
        return Line(*row)

    def text_bytes(self, key: int) -> int:
        """Bytes of a document's text in UTF-8."""
        return self._line(key).bytes

    def _remove_line(self, namespace: int, key: int) -> None:
        (total,) = self._connection.execute("DELETE FROM documents WHERE key = ? RETURNING checksum", (key,)).fetchone()
        self._connection.execute(
            "UPDATE namespaces SET documents = documents - 1, total = total - ? WHERE key = ?", (total, namespace)
        )

    def describe(self, key: int, entry: Entry, header: Header | None) -> set[bytes]:
        """Replace a document's metadata and header; returns the digests of what is gone."""
        metadata, unsearched, hidden = _described(entry)
        line = self._line(key)._replace(metadata=metadata, unsearched_keys=unsearched, hidden_keys=hidden)
        (before,) = self._connection.execute("SELECT checksum FROM documents WHERE key = ?", (key,)).fetchone()
        total = checksum(*line)
        self._connection.execute(
            "UPDATE documents SET metadata = ?, unsearched_keys = ?, hidden_keys = ?, checksum = ? WHERE key = ?",
            (metadata, unsearched, hidden, total, key),
        )
        self._connection.execute(
            "UPDATE namespaces SET total = total + ? WHERE key = ?", (total - before, line.namespace)
        )
        digests = self._remove_header(key)
        self._put_header(key, line.content, header)
        file_format.note_change(self._connection, line.namespace, key, digests)
        self._log_has_deleted = True
        return digests

    def changes(self, since: int) -> Changes | None:
        """What happened since a version, in all namespaces; None where that is no longer known."""
        rows = self._connection.execute(
            "SELECT version, document, digests FROM changes WHERE version >= ? ORDER BY version", (since,)
        ).fetchall()
        if not rows and since == 0:
            return Changes([], set())
        if not rows or rows[0][0] != since:
            return None
        return Changes([key for _, key, _ in rows[1:]], _digests(b"".join(d for _, _, d in rows[1:])))

    def version(self) -> int:
        """Of the newest change; 0 where there was none."""
        return self._connection.execute("SELECT COALESCE(MAX(version), 0) FROM changes").fetchone()[0]

    def forget_changes(self) -> None:
        """Let go of changes that few processes can have missed."""
        self._connection.execute("DELETE FROM changes WHERE version <= ?", (self.version() - CHANGES_KEPT,))

    def compact(self) -> None:
        """Give the space of what was deleted back to the file system, and let nothing be left of it in the file.

        SQLite overwrites what is deleted where it stands, but seldom the copies that it left in unused parts of pages
        when it moved rows: a file that is made anew has none. Other processes that have not seen the last changes take
        everything in anew.
        """
        with self.transaction():
            self._connection.execute("DELETE FROM changes WHERE version < ?", (self.version(),))
            self._connection.execute("UPDATE changes SET digests = x''")
            self._log_has_deleted = True
        super().compact()

    def alive(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those that a chunk or the header of some document has."""
        found = "SELECT 1 FROM parts WHERE digest = ?1 UNION ALL SELECT 1 FROM headers WHERE digest = ?1 LIMIT 1"
        return {digest for digest in digests if self._connection.execute(found, (digest,)).fetchone()}

    def catalogue(self, namespace: int) -> dict[int, Entry]:
        """The lines of all documents by their keys, which rise in the order of adding."""
        entries, total = {}, 0
        for key, expected, *line in self._connection.execute(
            f"SELECT key, checksum, {_LINE} FROM documents WHERE namespace = ? ORDER BY key", (namespace,)
        ):
            entries[key] = self._entry(expected, Line(*line))
            total += expected
        if self.counted(namespace) not in ((len(entries), total), None):
            raise damaged(self._place, "some of its documents are missing")
        return entries

    def entries(self, namespace: int, keys: Iterable[int]) -> dict[int, Entry]:
        """The lines of those of these documents that are there."""
        found = f"SELECT key, checksum, {_LINE} FROM documents WHERE key = ? AND namespace = ?"
        rows = (self._connection.execute(found, (key, namespace)).fetchone() for key in keys)
        return {key: self._entry(expected, Line(*line)) for key, expected, *line in filter(None, rows)}

    def line_sums(self, namespace: int, keys: Iterable[int] | None = None) -> dict[int, int]:
        """The checksums of the lines of those of these documents that are there, None for all, by their keys."""
        found = "SELECT key, checksum FROM documents WHERE namespace = ?"
        if keys is None:
            return dict(self._connection.execute(found, (namespace,)))
        rows = (self._connection.execute(f"{found} AND key = ?", (namespace, key)).fetchone() for key in keys)
        return dict(filter(None, rows))

    def counted(self, namespace: int) -> tuple[int, int] | None:
        """How many documents and conversations a namespace has, and the sum of the checksums of their lines."""
        return self._connection.execute(
            "SELECT documents, total FROM namespaces WHERE key = ?", (namespace,)
        ).fetchone()

    def is_complete(self, namespace: int) -> bool:
        """Whether as many lines are there as should be, with the sum of checksums that they should have."""
        found = "SELECT COUNT(*), COALESCE(SUM(checksum), 0) FROM documents NOT INDEXED WHERE namespace = ?"
        return self._connection.execute(found, (namespace,)).fetchone() == self.counted(namespace)

    def lines(self, namespace: int, keys: Collection[int]) -> dict[int, Entry]:
        """The lines of documents that are there.

        Raises:
            StoreFormatError: one is not.
        """
        found = self.entries(namespace, keys)
        for key in keys:
            if key not in found:
                raise damaged(self._place, f"document {key} is missing")
        return found

    def find(self, namespace: int, kind: Kind, id: str) -> int | None:
        """The key of a document or conversation; None where there is none of this id."""
        found = "SELECT key FROM documents WHERE namespace = ? AND kind = ? AND id = ?"
        row = self._connection.execute(found, (namespace, kind, id)).fetchone()
        return None if row is None else row[0]

    def conversation_keys(self, namespace: int) -> list[int]:
        """Keys of the conversations that are in part a document."""
        found = "SELECT key FROM documents WHERE namespace = ? AND kind = 'conversation'"
        return [key for (key,) in self._connection.execute(found, (namespace,))]

    def leaf_file(self, namespace: int) -> int | None:
        """What the file of a namespace's leaves is known by that was written last."""
        name = self.find_meta(f"{LEAF_FILE}{namespace}")
        return int(name) if name is not None and name.isdigit() else None

    def set_leaf_file(self, namespace: int, name: int | None) -> None:
        """Note what a new file is known by; None where there is none any more."""
        self.set_meta(f"{LEAF_FILE}{namespace}", None if name is None else str(name).encode())

    def _entry(self, expected: int, line: Line) -> Entry:
        with self.decoding(f"document {line.id!r}"):
            if expected != checksum(*line):
                raise ValueError("the checksum of its entry is wrong")
            if tuple(map(type, line)) != _LINE_TYPES:
                self._check_types(f"document {line.id!r}", line, _LINE_TYPES)
            metadata = json.loads(line.metadata)
            if line.kind not in get_args(Kind) or not isinstance(metadata, dict):
                raise ValueError("its entry is none")
            named = (line.unsearched_keys, line.hidden_keys)
            keys = (() if names == "[]" else tuple(json.loads(names)) for names in named)
            return Entry(cast(Kind, line.kind), line.id, read_only(metadata), *keys)

    def _parts(self, key: int, columns: str, first: int = 0) -> list[tuple[Any, ...]]:
        """The document's id, and for each of its parts content, number and columns.

        Raises:
            StoreFormatError: a part is missing.
        """
        line = self._line(key)
        rows = self._connection.execute(
            f"SELECT content, number, {columns} FROM parts WHERE content = ? AND number >= ? ORDER BY number",
            (line.content, first),
        ).fetchall()
        name = f"document {line.id!r}"
        if len(rows) != line.parts - first or not line.parts or any(row[1] != n for n, row in enumerate(rows, first)):
            raise damaged(self._place, f"{name}: a part is missing")
        types = (int, int, *(_PART_TYPES.get(column, bytes) for column in columns.split(", ")))
        for row in rows:
            self._check_types(name, row, types)
        return [(name, *row) for row in rows]

    def document(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        return joined_text(self._texts(key))

    def _texts(self, key: int, first: int = 0) -> list[StoredText]:
        texts = []
        for name, content, number, expected, ids, bounds, text in self._parts(
            key, "text_checksum, ids, bounds, text", first
        ):
            with self.decoding(name):
                if expected != checksum(content, number, bounds, text):
                    raise ValueError("the checksum of its text is wrong")
                tokens = TokenizedText(np.frombuffer(ids, np.int32), np.frombuffer(bounds, np.uint32).astype(np.int64))
                ends = tokens.bounds
                if len(ends) != len(tokens) + 1 or ends[0] or ends[-1] != len(text) or (np.diff(ends) < 0).any():
                    raise ValueError("its tokens do not tile its text")
                texts.append(StoredText(text, tokens))
        return texts

    def token_ids(self, key: int) -> np.ndarray:
        """A document's token ids, int32 [tokens]."""
        return np.concatenate([np.frombuffer(row[-1], np.int32) for row in self._parts(key, "ids")])

    def digests(self, key: int) -> list[bytes]:
        """The digests of a document's chunks."""
        return [row[-1] for row in self._parts(key, "digest")]

    def nodes(self, key: int, shape: NodeShape) -> tuple[np.ndarray, NodeData]:
        """A document's token ids, int32 [tokens], and what scoring needs of it."""
        ids, parts = self._nodes(key, shape)
        return np.concatenate(ids), joined_nodes(parts)

    def _nodes(self, key: int, shape: NodeShape, first: int = 0) -> tuple[list[np.ndarray], list[NodeData]]:
        columns = f"digest, node_checksum, ids, {', '.join(COLUMNS)}"
        all_ids, nodes = [], []
        for name, content, number, digest, expected, ids, *values in self._parts(key, columns, first):
            with self.decoding(name):
                if expected != checksum(content, number, digest, ids, *values):
                    raise ValueError("the checksum of what scoring needs of it is wrong")
                tokens = np.frombuffer(ids, np.int32)
                shape.check_ids(tokens)
                all_ids.append(tokens)
                nodes.append(shape.decode(len(tokens), values))
        return all_ids, nodes

    def node_sums(self, namespace: int) -> dict[int, int]:
        """The sum of the checksums of what scoring needs of each document, by its key."""
        return dict(
            self._connection.execute(
                "SELECT documents.key, SUM(node_checksum & 0xFFFFFFFF) FROM documents JOIN parts USING (content) "
                "WHERE namespace = ? AND kind = 'document' GROUP BY documents.key",
                (namespace,),
            )
        )

    def last_part(self, key: int, shape: NodeShape) -> tuple[int, Part]:
        """The number of a document's last chunk, and the chunk."""
        last = self._line(key).parts - 1
        (text,), (nodes,) = self._texts(key, last), self._nodes(key, shape, last)[1]
        language, leaf_size = self._words_described(self._line(key))
        words = LeafWords(language, leaf_size, ())  # those of the chunk are found anew
        return last, Part(text, replace(nodes, words=words), self._before(key, last))

    # Looking for damage

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever other processes write meanwhile."""
        with self._without_damaged_words(), super().snapshot():
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside lands at its end, or nothing does."""
        with self._without_damaged_words(), super().transaction():
            yield

    @contextmanager
    def _without_damaged_words(self) -> Iterator[None]:
        """Make the index of words anew where a row that was read inside is damaged."""
        try:
            yield
        except DamagedWordsError as error:
            if self._leaf_size is None:
                raise damaged(self._place, error) from error
            self._mend_words(self._leaf_size, thorough=True)
            raise StoreFormatError(
                f"{self._place}: {error}. Nothing was changed; the index has been made anew of the texts: try again."
            ) from error

    def mend_words(self, leaf_size: int) -> None:
        """Look whether all of the index of words is there; a damaged one is made anew of the texts.

        Args:
            leaf_size: tokens of a leaf.

        Raises:
            StoreFormatError: it is damaged, and more is, or the file may not be written.
        """
        self._leaf_size = leaf_size
        self._mend_words(leaf_size)
        with self.snapshot():
            for reason in self.numbering():
                raise damaged(self._place, reason)
            known = self.words.knows_its_keys()
        if not known and not self.read_only:
            with self.transaction():
                self.words.note_keys()

    def _mend_words(self, leaf_size: int, *, thorough: bool = False) -> None:
        with self.snapshot():
            if self.words.is_whole(leaf_size, thorough=thorough):
                return
        if self.read_only:
            raise damaged(self._place, "its index of words")
        with self.transaction():
            if self.words.is_whole(leaf_size, thorough=thorough):  # another process was faster
                return
            # Where SQLite cannot tell which pages are whose, deleting some might hurt what is whole.
            if damage := self.integrity():
                raise damaged(self._place, f"its index of words: {damage[0]}")
            rows = self._connection.execute("SELECT namespace, content, key FROM documents").fetchall()
            chunks = ([(part.text, part.tokens) for part in self._texts(key)] for *_, key in rows)
            self.words.make_anew(((*row, of_row) for row, of_row in zip(rows, chunks, strict=True)), leaf_size)
        logger.warning("%s: the index of words was damaged and has been made anew of the texts.", self._place)

    def numbering(self) -> list[str]:
        """What is wrong with the keys of documents: the index of words, whose rows are counted, knows them too."""
        known = "JOIN worded ON worded.key = content WHERE worded.document <>"
        lines = self._connection.execute(f"SELECT id FROM documents {known} documents.key")
        headers = self._connection.execute(f"SELECT headers.document FROM headers {known} headers.document")
        return [
            *(f"document {id!r}: its number is another one" for (id,) in lines),
            *(f"document number {key}: it has another one's header" for (key,) in headers),
        ]

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the file."""
        try:
            rows = [line for (line,) in self._connection.execute("PRAGMA integrity_check")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [line for line in rows if line != "ok"]

    def _checked_digests(self, name: str, digests: set[bytes]) -> set[bytes]:
        if any(type(digest) is not bytes or len(digest) != DIGEST_BYTES for digest in digests):
            raise damaged(self._place, f"{name}: the digest of a chunk is none")
        return digests

    def readable_keys(self, namespace: int) -> list[int]:
        """Keys of the documents of a namespace, as many as a damaged file lets be read, from both of its ends."""
        found: set[int] = set()
        index = (
            "SELECT key FROM documents INDEXED BY sqlite_autoindex_documents_1 WHERE namespace = ? ORDER BY kind, id"
        )
        table = "SELECT key FROM documents NOT INDEXED WHERE namespace = ? ORDER BY key"
        for statement in (index, table, f"{table} DESC"):
            with suppress(sqlite3.DatabaseError):
                for (key,) in self._connection.execute(statement, (namespace,)):
                    found.add(key)
        return sorted(found)

    def texts(self, key: int) -> list[StoredText]:
        """A document's text with its tokens, chunk by chunk."""
        return self._texts(key)

    def parts(self, key: int, shape: NodeShape) -> list[tuple[bytes, NodeData]]:
        """The digest and node data of each chunk of a document."""
        return list(zip(self.digests(key), self._nodes(key, shape)[1], strict=True))

    def header_keys(self) -> dict[int, int]:
        """The key that the header of each document is kept under, which is the document's unless it is damaged."""
        rows = self._connection.execute(
            "SELECT documents.key, headers.document FROM headers JOIN documents USING (content)"
        )
        return dict(rows.fetchall())

    def header(self, key: int, shape: NodeShape) -> Header:
        """What is kept of a document's header."""
        row = self._connection.execute("SELECT digest FROM headers WHERE document = ?", (key,)).fetchone()
        return Header(self.headers([key], shape).get(key), b"" if row is None else row[0])


_LINE = ", ".join(Line._fields)
_HEADER_TYPES = int, bytes, int, bytes, bytes, bytes
_LINE_TYPES = tuple(get_type_hints(Line).values())
_PART_TYPES = {"text": str, "text_checksum": int, "node_checksum": int}
"""Of what is kept of a chunk; all else are bytes."""


def _described(entry: Entry) -> tuple[str, str, str]:
    """An entry's metadata and keys as JSON."""
    return as_json(entry.metadata), as_json(entry.unsearched_keys), as_json(entry.hidden_keys)


def _text_bytes(parts: Iterable[tuple[bytes, Part]]) -> int:
    return sum(len(part.stored.text.encode()) for _, part in parts)


def _digests(joined: bytes) -> set[bytes]:
    return {joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)}
