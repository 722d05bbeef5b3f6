"""What one transaction does to what a namespace holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shared_context.store.database import Database
from shared_context.store.encoding import chunk_digest
from shared_context.store.header_rows import Header
from shared_context.store.line_rows import Entry
from shared_context.store.node_data import HeaderData, NodeData, NodeShape, Part, StoredText, joined_nodes


class Change:
    """What a transaction does to the catalogue.

    Args:
        database: where it is done.
        namespace: the namespace's key.
        salt: of its chunks' digests.
        shape: of the node data.
        header_ids: token ids of the header that a model is shown of a document; None where there is none.

    Attributes:
        removed: keys of the documents that are gone.
        digests: of their chunks.
        added: entry, token ids, node data and header of new documents, by their keys.
        extended: of documents that text was added to, by their new keys: old key, entry, the first token that is
            another, and token ids and node data from there on.
        described: documents that got other metadata, with their headers.
    """

    def __init__(
        self,
        database: Database,
        namespace: int,
        salt: bytes,
        shape: NodeShape,
        header_ids: Callable[[Entry], np.ndarray | None],
    ):
        self._database, self._namespace, self._salt, self._shape = database, namespace, salt, shape
        self._header_ids = header_ids
        self.removed: list[int] = []
        self.digests: set[bytes] = set()
        self.added: dict[int, tuple[Entry, np.ndarray, NodeData, HeaderData | None]] = {}
        self.extended: dict[int, tuple[int, Entry, int, np.ndarray, NodeData]] = {}
        self.described: dict[int, tuple[Entry, HeaderData | None]] = {}

    def insert(self, entry: Entry, stored: StoredText, nodes: NodeData, header: HeaderData | None) -> None:
        """Add a document."""
        self.insert_parts(entry, self._shape.split(stored, nodes), header)

    def insert_parts(self, entry: Entry, parts: Sequence[Part], header: HeaderData | None = None) -> None:
        """Add a document chunk by chunk."""
        named = list(map(self._named, parts))
        key = self._database.insert(self._namespace, entry, named, self._header(entry, header))
        self.added[key] = entry, *_of_index(parts), header

    def _header(self, entry: Entry, header: HeaderData | None) -> Header:
        ids = self._header_ids(entry)
        return Header(header, b"" if ids is None else chunk_digest(self._salt, ids))

    def extend(self, key: int, entry: Entry, first: int, parts: Sequence[Part]) -> None:
        """Put chunks in the place of those of a document from ``first`` on."""
        new, digests = self._database.extend(key, entry, first, list(map(self._named, parts)))
        self.digests |= digests
        self.extended[new] = key, entry, first * self._shape.tree.chunk_size, *_of_index(parts)

    def _named(self, part: Part) -> tuple[bytes, Part]:
        return chunk_digest(self._salt, part.stored.tokens.ids), part

    def describe(self, key: int, entry: Entry, header: HeaderData | None) -> None:
        """Give a document other metadata."""
        self.digests |= self._database.describe(key, entry, self._header(entry, header))
        self.described[key] = entry, header

    def remove(self, key: int) -> None:
        """Take a document away."""
        self.digests |= self._database.remove(key)
        self.removed.append(key)


def _of_index(parts: Sequence[Part]) -> tuple[np.ndarray, NodeData]:
    """Token ids and node data of parts that follow one another."""
    ids = [part.stored.tokens.ids for part in parts]
    return np.concatenate(ids), joined_nodes([part.nodes for part in parts])
