"""What a store holds, as this process knows it: the one place where changes are taken in, its own and others'."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from shared_context.errors import DocumentNotFoundError
from shared_context.store.database import Database, Entry, HeaderData, Kind, NodeData, NodeShape, StoredText
from shared_context.store.encoding import ChunkEncoder
from shared_context.store.node_index import NodeIndex

NOTHING = np.zeros(0, np.int32)
"""No tokens."""

TEXTS_KEPT = 32
"""Documents whose text and tokens are kept in memory after they were selected from."""


class Catalogue:
    """The documents and conversations of a store: their entries, what scoring needs of them, texts used of late.

    Everything is read inside of :meth:`reading` or :meth:`changing`, which make it what the database holds.

    Args:
        database: what is kept.
        index: takes in what scoring needs of the documents; empty.
        shape: of the node data.
        encoder: forgets the keys and values of what is removed.

    Attributes:
        index: what scoring needs of the documents, conversations left out.
        words: those of the leaves of documents and conversations.
    """

    def __init__(self, database: Database, index: NodeIndex, shape: NodeShape, encoder: ChunkEncoder):
        self.index, self.words = index, database.words
        self._database, self._shape, self._encoder = database, shape, encoder
        self._seen_version: int | None = None
        self._entries: dict[int, Entry] = {}
        self._keys: dict[tuple[Kind, str], int] = {}
        self._texts: OrderedDict[int, StoredText] = OrderedDict()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What reads works inside: one thread at a time, on an open store, as it is at one moment."""
        with self._database.snapshot():
            self._take_in()
            yield

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """A change that lands whole or not at all."""
        with self._database.locked():
            change = Change(self._database)
            with self._database.transaction():
                self._take_in()
                yield change
                # Should what follows be interrupted, the next look takes everything in anew.
                seen, self._seen_version = self._seen_version, None
            gone = [(self._entries[key], ids) for key, ids in change.removed.items()]
            # Of a document with other metadata the text stays as it was, and only the header is another one.
            gone += [(self._entries[key], NOTHING) for key in change.described if key in self._entries]
            for key in change.removed:
                self._forget(key)
            for key, (entry, stored, nodes, header) in change.added.items():
                self._know(key, entry, stored.tokens.ids, nodes, header)
            for key, (entry, header) in change.described.items():
                self._entries[key] = entry
                self.index.headers.put(key, header)
            self._seen_version = seen
            if gone:
                added = [(entry, stored.tokens.ids) for entry, stored, _, _ in change.added.values()]
                self._encoder.discard(gone, [*added, *((entry, NOTHING) for entry, _ in change.described.values())])

    def _take_in(self) -> None:
        """Take in what another process has committed since the last look."""
        version = self._database.data_version()
        if version == self._seen_version:
            return
        entries = self._database.catalogue()
        for key in self._entries.keys() - entries.keys():
            self._forget(key)
        headers = self._database.headers(self._shape) if not self._entries else None
        for key in sorted(entries.keys() - self._entries.keys()):
            of_document = entries[key].kind == "document"
            ids, nodes = (self._database.token_ids(key), self.nodes(key)) if of_document else (None, None)
            own = self._database.headers(self._shape, key) if headers is None else headers
            self._know(key, entries[key], ids, nodes, own.get(key))
        for key in (key for key, entry in self._entries.items() if entry != entries[key]):
            self.index.headers.put(key, self._database.headers(self._shape, key).get(key))
        self._entries = entries
        self._seen_version = version

    def _know(
        self, key: int, entry: Entry, ids: np.ndarray | None, nodes: NodeData | None, header: HeaderData | None
    ) -> None:
        """Take a document in; conversations are read when they are selected from."""
        if entry.kind == "document":
            self.index.add(key, ids, nodes)
            self.index.headers.put(key, header)
        self._entries[key] = entry
        self._keys[entry.kind, entry.id] = key

    def _forget(self, key: int) -> None:
        entry = self._entries.pop(key)
        if entry.kind == "document":
            self.index.remove(key)
            self.index.headers.put(key, None)
        del self._keys[entry.kind, entry.id]
        self._texts.pop(key, None)

    def find(self, kind: Kind, id: object) -> int | None:
        """The key of a document or conversation; None where there is none of this id."""
        return self._keys.get((kind, id))

    def key(self, id: str) -> int:
        """The key of a document.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        key = self.find("document", id)
        if key is None:
            raise DocumentNotFoundError(
                f"No document has the id {id!r}; ids() lists the {len(self.documents())} known."
            )
        return key

    def documents(self) -> list[int]:
        """Keys of the documents, conversations left out, in the order of their adding or last change of text."""
        return [key for key, entry in self._entries.items() if entry.kind == "document"]

    def entry(self, key: int) -> Entry:
        """A document's line."""
        return self._entries[key]

    def metadata(self, key: int) -> dict[str, Any]:
        """A document's metadata, read only."""
        return self._entries[key].metadata

    def text(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        stored = self._texts.pop(key, None) or self._database.document(key)
        self._texts[key] = stored
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return stored

    def token_ids(self, key: int) -> np.ndarray:
        """A document's token ids, int32 [tokens]."""
        return self._database.token_ids(key)

    def nodes(self, key: int) -> NodeData:
        """What scoring needs of a document or conversation."""
        return self._database.nodes(key, self._shape)


class Change:
    """What a transaction does to the catalogue.

    Attributes:
        removed: token ids of the documents that are gone, by their keys.
        added: new documents by their keys.
        described: documents that got other metadata.
    """

    def __init__(self, database: Database):
        self._database = database
        self.removed: dict[int, np.ndarray] = {}
        self.added: dict[int, tuple[Entry, StoredText, NodeData, HeaderData | None]] = {}
        self.described: dict[int, tuple[Entry, HeaderData | None]] = {}

    def insert(self, entry: Entry, stored: StoredText, nodes: NodeData, header: HeaderData | None = None) -> None:
        """Add a document."""
        self.added[self._database.insert(entry, stored, nodes, header)] = entry, stored, nodes, header

    def describe(self, key: int, entry: Entry, header: HeaderData | None) -> None:
        """Give a document other metadata."""
        self._database.describe(key, entry, header)
        self.described[key] = entry, header

    def remove(self, key: int) -> None:
        """Take a document away."""
        self.removed[key] = self._database.token_ids(key)
        self._database.remove(key)
