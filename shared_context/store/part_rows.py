"""The chunks of a store's documents as rows of its file: text, tokens and what scoring needs, with checksums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shared_context.model.tokenization import TokenizedText
from shared_context.store import format as file_format
from shared_context.store.checksum import checksum
from shared_context.store.format import Line
from shared_context.store.leaf_words import BEFORE_CHARACTERS, LeafWords
from shared_context.store.line_rows import LineRows
from shared_context.store.node_data import COLUMNS, NodeData, NodeShape, Part, StoredText, joined_nodes, joined_text
from shared_context.store.sqlite_file import damaged

DIGEST_BYTES = 20
"""Of a chunk's digest."""

_PART_TYPES = {"text": str, "text_checksum": int, "node_checksum": int}
"""Of what is kept of a chunk; all else are bytes."""


class PartRows(LineRows):
    """Chunks of documents, with their words; called inside of a snapshot or a transaction."""

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

    def texts(self, key: int) -> list[StoredText]:
        """A document's text with its tokens, chunk by chunk."""
        return self._texts(key)

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

    def _checked_digests(self, name: str, digests: set[bytes]) -> set[bytes]:
        if any(type(digest) is not bytes or len(digest) != DIGEST_BYTES for digest in digests):
            raise damaged(self._place, f"{name}: the digest of a chunk is none")
        return digests

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

    def parts(self, key: int, shape: NodeShape) -> list[tuple[bytes, NodeData]]:
        """The digest and node data of each chunk of a document."""
        return list(zip(self.digests(key), self._nodes(key, shape)[1], strict=True))

    def last_part(self, key: int, shape: NodeShape) -> tuple[int, Part]:
        """The number of a document's last chunk, and the chunk."""
        last = self._line(key).parts - 1
        (text,), (nodes,) = self._texts(key, last), self._nodes(key, shape, last)[1]
        language, leaf_size = self._words_described(self._line(key))
        words = LeafWords(language, leaf_size, ())  # those of the chunk are found anew
        return last, Part(text, replace(nodes, words=words), self._before(key, last))
