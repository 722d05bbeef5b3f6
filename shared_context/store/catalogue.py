"""What a store holds, as this process knows it: the one place where changes are taken in, its own and others'."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shared_context.errors import DocumentNotFoundError, SharedContextError, StoreClosedError
from shared_context.store import leaf_file
from shared_context.store.database import DIGEST_BYTES, Database, Entry, Header, Kind
from shared_context.store.encoding import chunk_digest
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.header import header as header_text
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.leaf_file import LeafFile
from shared_context.store.node_data import HeaderData, NodeData, NodeShape, Part, StoredText, joined_nodes
from shared_context.store.node_index import NodeIndex
from shared_context.store.word_index import NamespaceWords

logger = logging.getLogger(__name__)

TEXTS_KEPT = 32
"""Documents whose text and tokens are kept in memory after they were selected from."""


class Catalogue:
    """The documents and conversations of a namespace: their entries, what scoring needs of them, texts used of late.

    Everything is read inside of :meth:`reading` or :meth:`changing`, which make it what the database holds, and raise
    StoreClosedError where the namespace was dropped.

    Args:
        database: what is kept.
        namespace: the namespace's key.
        name: the namespace's name.
        salt: of its chunks' digests.
        index: takes in what scoring needs of the documents; empty.
        shape: of the node data.
        cache: forgets the keys and values of chunks that are gone.
        header_ids: token ids of the header that a model is shown of a document; None where there is none.
        folder: where a copy of what scoring needs of many documents is kept for the next opening; None keeps none.

    Attributes:
        index: what scoring needs of the documents, conversations left out.
        words: those of the leaves of documents and conversations.
        namespace: the namespace's key.
        shape: of the node data.
        headerless: documents that were met without their headers, which are damage.
    """

    def __init__(
        self,
        database: Database,
        namespace: int,
        name: str,
        salt: bytes,
        index: NodeIndex,
        shape: NodeShape,
        cache: TieredKVCache,
        header_ids: Callable[[Entry], np.ndarray | None],
        folder: Path | None = None,
    ):
        self.index, self.namespace, self.shape = index, namespace, shape
        self._file = None if folder is None else folder / leaf_file.FILE
        self._file_is_old = False
        self.words = NamespaceWords(database.words, namespace)
        self._name = name
        self._database, self._salt, self._cache, self._header_ids = database, salt, cache, header_ids
        self._data_version: int | None = None
        self._version: int | None = None
        self._entries: dict[int, Entry] = {}
        self._keys: dict[tuple[Kind, str], int] = {}
        self._texts: OrderedDict[int, StoredText] = OrderedDict()
        self.headerless: set[int] = set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What reads works inside: one thread at a time, on an open store, as it is at one moment."""
        with self._database.snapshot():
            self._check_there()
            self._take_in()
            yield

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """A change that lands whole or not at all."""
        with self._database.locked():
            change = Change(self._database, self.namespace, self._salt, self.shape, self._header_ids)
            with self._database.transaction():
                self._check_there()
                self._take_in()
                yield change
                gone = change.digests - self._database.alive(change.digests)
                self._database.forget_changes()
                # Should what follows be interrupted, the next look takes everything in anew.
                seen, self._data_version = self._data_version, None
                before, self._version = self._version, None
                version = self._database.version()
            self._cache.discard(digest.hex() for digest in gone)
            for key in change.removed:
                self._forget(key)
            for key, (entry, ids, nodes, header) in change.added.items():
                self._know(key, entry, ids, nodes, header)
            for key, (old, entry, first, ids, nodes) in change.extended.items():
                self._grow(key, old, entry, first, ids, nodes)
            for key, (entry, header) in change.described.items():
                self._entries[key] = entry
                self.index.headers.put(key, header, "" if header is None else _told(entry))
            self._data_version, self._version = seen, version or before
            # Last, for what stays of a document that was extended has been read from there.
            self._overwrite([*change.removed, *(old for old, *_ in change.extended.values())])

    def _check_there(self) -> None:
        """That the namespace was not dropped, by this process or another one."""
        if self._name != DEFAULT_NAMESPACE and not self._database.has_namespace(self.namespace):
            self._cache.clear()
            self._texts.clear()
            raise StoreClosedError(
                f"The namespace {self._name!r} was dropped. namespace({self._name!r}) of the store begins it anew."
            )

    def _take_in(self) -> None:
        """Take in what another process has committed since the last look."""
        data_version = self._database.data_version()
        if data_version == self._data_version:
            return
        version = self._database.version()
        changes = self._database.changes(self._version) if self._version is not None else None
        kept: frozenset[int] = frozenset()
        if changes is None:
            entries = self._database.catalogue(self.namespace)
            gone = self._entries.keys() - entries.keys()
            self.sweep()
            if not self._entries:
                kept = self._from_file()
        else:
            entries = self._database.entries(self.namespace, changes.documents)
            gone = self._entries.keys() & set(changes.documents) - entries.keys()
            dead = changes.digests - self._database.alive(changes.digests)
            self._cache.discard(digest.hex() for digest in dead)
        for key in gone:
            self._forget(key)
        for key in sorted(entries.keys() - self._entries.keys()):
            if entries[key].kind == "document" and key not in kept:
                self.index.add(key, *self._database.nodes(key, self.shape))
            self._keys[entries[key].kind, entries[key].id] = key
        described = [key for key, entry in entries.items() if entry.kind == "document"]
        headers = self._database.headers(described, self.shape)
        for key in described:
            text = _told(entries[key])
            # A store that was made before there were headers has no salt.
            if key not in headers and self._salt and any(map(str.isalnum, text)):
                self.headerless.add(key)
            self.index.headers.put(key, headers.get(key), text if key in headers else "")
        self._entries |= entries
        self._data_version, self._version = data_version, version

    # The file that is mapped

    def _from_file(self) -> frozenset[int]:
        """Take in what the file holds of the documents that there are; returns their keys."""
        kept = None if self._file is None else LeafFile.read(self._file, self.shape)
        if kept is None:
            return frozenset()
        there = kept.there(self._database.node_sums(self.namespace))
        self._file_is_old = there is None or not there[kept.leaves.keys > 0].all()
        if there is None or not there.any():
            return frozenset()
        self.index.adopt(kept.leaves, there)
        return frozenset(kept.leaves.keys[there].tolist())

    def keep(self, *, tight: bool = False) -> None:
        """Bring the file up to date where it pays; nothing is lost where that fails.

        Args:
            tight: also where little was deleted, to give its space back.
        """
        file = self._file
        if file is None or self._database.read_only:
            return
        try:
            with self._database.locked():
                if self._version is not None:  # else it is not known what there is
                    self._keep(file, tight)
        except (OSError, SharedContextError) as error:
            logger.debug("%s cannot be written (%s); the next opening takes longer.", file, error)

    def _keep(self, file: Path, tight: bool) -> None:
        tokens, (kept, held) = self.index.tokens, self.index.kept_tokens
        if tokens < leaf_file.LEAST_TOKENS:
            file.unlink(missing_ok=True)
            return
        if max(tokens - kept, held - kept) <= (0 if tight else tokens // leaf_file.SHARE):
            if self._file_is_old:
                with self._database.transaction():
                    leaf_file.forget(file, self.shape, None, self._entries)
                self._file_is_old = False
            return
        with self.reading():
            version, ids = self._version, self.index.token_ids()
            file.parent.mkdir(parents=True, exist_ok=True)
            written = leaf_file.write(
                file.parent, self.shape, self.index.leaves(), ids, self._database.node_sums(self.namespace),
                self.index.frequency,
            )  # fmt: skip
        try:
            with self._database.transaction():
                # Else what was deleted meanwhile would come back.
                if self._database.version() == version:
                    os.replace(written, file)
                    self._file_is_old = False
                    mapped = LeafFile.read(file, self.shape)
                    if mapped is not None:
                        self.index.adopt(mapped.leaves, np.ones(len(ids), bool))
        finally:
            written.unlink(missing_ok=True)

    def _overwrite(self, keys: Sequence[int]) -> None:
        """Let nothing be left of documents in the file."""
        if not keys or self._file is None or not self._file.exists():
            return
        try:
            with self._database.transaction():
                leaf_file.forget(self._file, self.shape, keys)
        except (OSError, SharedContextError):
            self._file.unlink(missing_ok=True)

    # What there is

    def sweep(self) -> None:
        """Forget the keys and values of all chunks that no document has."""
        self._cache.retain(self._alive, 2 * DIGEST_BYTES)

    def _alive(self, names: set[str]) -> set[str]:
        """Those digests, in hexadecimal, that a chunk of some document has."""
        return {digest.hex() for digest in self._database.alive(map(bytes.fromhex, names))}

    def remove_all(self, change: Change) -> None:
        """Take all documents and conversations away."""
        for key in list(self._entries):
            change.remove(key)

    def has_chunk(self, digest: bytes) -> bool:
        """Whether a document has a chunk of this digest in the database now; False where that cannot be told."""
        try:
            with self.reading():
                return bool(self._database.alive([digest]))
        except SharedContextError:  # a selection outlives its store
            return False

    def _know(self, key: int, entry: Entry, ids: np.ndarray, nodes: NodeData, header: HeaderData | None) -> None:
        """Take a document in; conversations are read when they are selected from."""
        if entry.kind == "document":
            self.index.add(key, ids, nodes)
            self.index.headers.put(key, header, "" if header is None else _told(entry))
        self._entries[key] = entry
        self._keys[entry.kind, entry.id] = key

    def _grow(self, key: int, old: int, entry: Entry, first: int, ids: np.ndarray, nodes: NodeData) -> None:
        """Take in that a document got other tokens from ``first`` on, and with them another key."""
        if entry.kind == "document":
            self.index.extend(old, key, first, ids, nodes)
            self.index.headers.move(old, key)
        del self._entries[old]
        self._texts.pop(old, None)
        self._entries[key] = entry
        self._keys[entry.kind, entry.id] = key

    def _forget(self, key: int) -> None:
        entry = self._entries.pop(key)
        if entry.kind == "document":
            self.index.remove(key)
            self.index.headers.put(key, None)
        if self._keys.get((entry.kind, entry.id)) == key:
            del self._keys[entry.kind, entry.id]
        self._texts.pop(key, None)

    def find(self, kind: Kind, id: object) -> int | None:
        """The key of a document or conversation; None where there is none of this id."""
        return self._keys.get((kind, id)) if isinstance(id, str) else None

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
        stored = self._texts.pop(key, None)
        if stored is None:
            stored = self._database.document(key)
            self._check_ids(key, stored.tokens.ids)
        self._texts[key] = stored
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return stored

    def text_bytes(self, key: int) -> int:
        """Bytes of a document's text in UTF-8."""
        return self._database.text_bytes(key)

    def token_ids(self, key: int) -> np.ndarray:
        """A document's token ids, int32 [tokens]."""
        ids = self._database.token_ids(key)
        self._check_ids(key, ids)
        return ids

    def _check_ids(self, key: int, ids: np.ndarray) -> None:
        """That a document's token ids are those that its chunks' digests are of: their checksum covers more than is
        read with them.
        """
        size = self.shape.tree.chunk_size
        digests = [chunk_digest(self._salt, ids[first : first + size]) for first in range(0, len(ids), size)]
        with self._database.decoding(f"document {self._entries[key].id!r}"):
            if digests != self._database.digests(key):
                raise ValueError("the digest of its tokens is wrong")

    def nodes(self, key: int) -> tuple[np.ndarray, NodeData]:
        """A document's or conversation's token ids, int32 [tokens], and what scoring needs of it."""
        return self._database.nodes(key, self.shape)

    def last_part(self, key: int) -> tuple[int, Part]:
        """The number of a document's last chunk, and the chunk."""
        return self._database.last_part(key, self.shape)


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


def _told(entry: Entry) -> str:
    """The text of a document's header that queries are compared with."""
    return header_text(entry.metadata, entry.unsearched_keys)


def _of_index(parts: Sequence[Part]) -> tuple[np.ndarray, NodeData]:
    """Token ids and node data of parts that follow one another."""
    ids = [part.stored.tokens.ids for part in parts]
    return np.concatenate(ids), joined_nodes([part.nodes for part in parts])
