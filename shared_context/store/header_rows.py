"""The headers of a store's documents as rows of its file: metadata as queries and models meet them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from typing import Any, NamedTuple

from shared_context.store.checksum import checksum
from shared_context.store.node_data import HeaderData, NodeShape
from shared_context.store.part_rows import PartRows

HEADERS_ONE_BY_ONE = 64
"""Documents whose headers are looked for one after the other; of more it is found out first which have one."""

_HEADER_TYPES = int, bytes, int, bytes, bytes, bytes


class Header(NamedTuple):
    """What is kept of a document's header.

    Attributes:
        data: what scoring needs of it; None where no query is compared with it.
        digest: of what a model is shown of it; empty where it is shown nothing.
    """

    data: HeaderData | None
    digest: bytes


class HeaderRows(PartRows):
    """Headers of documents; called inside of a snapshot or a transaction."""

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

    def header(self, key: int, shape: NodeShape) -> Header:
        """What is kept of a document's header."""
        row = self._connection.execute("SELECT digest FROM headers WHERE document = ?", (key,)).fetchone()
        return Header(self.headers([key], shape).get(key), b"" if row is None else row[0])

    def header_keys(self) -> dict[int, int]:
        """The key that the header of each document is kept under, which is the document's unless it is damaged."""
        rows = self._connection.execute(
            "SELECT documents.key, headers.document FROM headers JOIN documents USING (content)"
        )
        return dict(rows.fetchall())

    def _header_values(self, key: int, *row: Any) -> tuple[bytes, ...]:
        if tuple(map(type, row)) != _HEADER_TYPES:
            self._check_types(f"document {self._line(key).id!r}", row, _HEADER_TYPES)
        content, digest, expected, *values = row
        if expected != checksum(content, digest, *values):
            with self.decoding(f"document {self._line(key).id!r}"):
                raise ValueError("the checksum of its header is wrong")
        return tuple(values)

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
