"""What a store holds, as this process knows it: the one place where changes are taken in, its own and others'."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared_context.errors import DocumentNotFoundError, SharedContextError, StoreClosedError
from shared_context.store import leaf_file
from shared_context.store.change import Change
from shared_context.store.database import Database
from shared_context.store.encoding import chunk_digest
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.header import header as header_text
from shared_context.store.kept_prefilter import KeptPrefilter
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.leaf_file import LeafFile
from shared_context.store.leaves import Leaves
from shared_context.store.line_rows import Entry, Kind
from shared_context.store.lines import Lines
from shared_context.store.mapped_leaves import MappedLeaves
from shared_context.store.node_data import HeaderData, NodeData, NodeShape, Part, StoredText
from shared_context.store.node_index import NodeIndex
from shared_context.store.part_rows import DIGEST_BYTES
from shared_context.store.span_lists import SpanFile
from shared_context.store.texts import Texts
from shared_context.store.word_index import NamespaceWords

logger = logging.getLogger(__name__)


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
        folder: where a copy of what scoring needs of many documents is kept for the next opening, and how the prefilter
            divides their spans; None keeps neither.
        embedder: the name of what made the embeddings.

    Attributes:
        index: what scoring needs of the documents, conversations left out.
        prefilter: tells which of them are nearest to a query.
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
        embedder: str = "",
    ):
        self.index, self.namespace, self.shape = index, namespace, shape
        self._spans = None if folder is None else SpanFile(folder, embedder, shape, database)
        self.prefilter = KeptPrefilter(index, self._spans)
        self.words = NamespaceWords(database.words, namespace)
        self._name = name
        self._database, self._salt, self._cache, self._header_ids = database, salt, cache, header_ids
        self._data_version: int | None = None
        self._version: int | None = None
        self._lines = Lines(database, namespace)
        file = None if folder is None else folder / leaf_file.FILE
        self._mapped = MappedLeaves(file, database, namespace, shape, index, self._lines)
        self._texts = Texts()
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
                self._lines.put(key, entry)
                self.index.headers.put(key, header, "" if header is None else _told(entry))
            self._data_version, self._version = seen, version or before
            self._overwrite([*change.removed, *(old for old, *_ in change.extended.values())], list(change.described))

    def _are_of_now(self, leaves: Leaves) -> bool:
        """Whether leaves are those of all that the database holds, asked in a transaction."""
        return self._database.version() == self._version and self.index.leaves() is leaves

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
        file = None
        if self._version is None and not len(self._lines):
            self.sweep()
            file = self._mapped.read()
            if file is not None:
                self._version = self._mapped.adopt(file)
        changes = self._database.changes(self._version) if self._version is not None else None
        if changes is None:
            self._take_in_all(file)
        else:
            self._take_in_changes({*changes.documents, *self._mapped.changed})
            dead = changes.digests - self._database.alive(changes.digests)
            self._cache.discard(digest.hex() for digest in dead)
        self._data_version, self._version = data_version, version

    def _take_in_changes(self, keys: Collection[int]) -> None:
        """Take in that documents came, changed or went."""
        entries = self._database.entries(self.namespace, sorted(keys))
        for key in keys - entries.keys():
            if key in self._lines:
                self._forget(key)
        self._put(entries, frozenset())

    def _take_in_all(self, file: LeafFile | None) -> None:
        """Take in all that there is; what the file holds as it is is taken from there."""
        entries = self._database.catalogue(self.namespace)
        for key in set(self._lines) - entries.keys():
            self._forget(key)
        self._put(entries, self._mapped.adopt_same(file))

    def _put(self, entries: dict[int, Entry], kept: frozenset[int]) -> None:
        """Take in lines, and of documents that are new what scoring needs of them, but for those that are ``kept``."""
        documents = [key for key, entry in entries.items() if entry.kind == "document"]
        for key in documents:
            if key not in self._lines and key not in kept:
                self.index.add(key, *self._database.nodes(key, self.shape))
        headers = self._database.headers(documents, self.shape)
        for key in documents:
            text = _told(entries[key])
            # A store that was made before there were headers has no salt.
            if key not in headers and self._salt and any(map(str.isalnum, text)):
                self.headerless.add(key)
            self.index.headers.put(key, headers.get(key), text if key in headers else "")
        for key, entry in entries.items():
            self._lines.put(key, entry)

    # The file that is mapped

    def keep(self, *, tight: bool = False) -> None:
        """Bring the file up to date where it pays; nothing is lost where that fails.

        Args:
            tight: also where little was deleted, to give its space back.
        """
        if self._mapped.path is None or self._database.read_only:
            return
        try:
            with self._database.locked():
                if self._version is not None:  # else it is not known what there is
                    if self._spans is not None:
                        self._spans.forget(self.index)
                    if not self.headerless:  # else what is kept would be without their headers for good
                        self._mapped.keep(self.reading, tight=tight)
        except (OSError, SharedContextError) as error:
            logger.debug("%s cannot be written (%s); the next opening takes longer.", self._mapped.path, error)

    def _overwrite(self, keys: Collection[int], described: Collection[int]) -> None:
        """Let nothing be left in files of documents, and nothing of how others were described before."""
        if keys and self._spans is not None:
            self._spans.forget(self.index)
        self._mapped.overwrite(keys, described)

    def keep_prefilter(self) -> None:
        """Keep what the prefilter has learned where much of it is not kept; called while nothing is read."""
        self.prefilter.keep(self._are_of_now)

    # What there is

    def sweep(self) -> None:
        """Forget the keys and values of all chunks that no document has."""
        self._cache.retain(self._alive, 2 * DIGEST_BYTES)

    def _alive(self, names: set[str]) -> set[str]:
        """Those digests, in hexadecimal, that a chunk of some document has."""
        return {digest.hex() for digest in self._database.alive(map(bytes.fromhex, names))}

    def remove_all(self, change: Change) -> None:
        """Take all documents and conversations away."""
        for key in list(self._lines):
            change.remove(key)
        self._database.set_leaf_file(self.namespace, None)

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
        self._lines.put(key, entry)

    def _grow(self, key: int, old: int, entry: Entry, first: int, ids: np.ndarray, nodes: NodeData) -> None:
        """Take in that a document got other tokens from ``first`` on, and with them another key."""
        if self.index.is_kept(old):
            self._forget(old)
            self._put({key: entry}, frozenset())
            return
        if entry.kind == "document":
            self.index.extend(old, key, first, ids, nodes)
            self.index.headers.move(old, key)
        self._lines.drop(old)
        self._texts.forget(old)
        self._lines.put(key, entry)

    def _forget(self, key: int) -> None:
        if self._lines.drop(key):
            self.index.remove(key)
            self.index.headers.put(key, None)
        self._texts.forget(key)

    def find(self, kind: Kind, id: object) -> int | None:
        """The key of a document or conversation; None where there is none of this id."""
        return self._lines.find(kind, id) if isinstance(id, str) else None

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
        return self._lines.documents()

    def entry(self, key: int) -> Entry:
        """A document's line."""
        return self._lines.entry(key)

    def entries(self, keys: Sequence[int]) -> list[Entry]:
        """Lines of documents."""
        return self._lines.entries(keys)

    def text(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        return self._texts.of(key, self._read)

    def _read(self, key: int) -> StoredText:
        stored = self._database.document(key)
        self._check_ids(key, stored.tokens.ids)
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
        with self._database.decoding(f"document {self.entry(key).id!r}"):
            if digests != self._database.digests(key):
                raise ValueError("the digest of its tokens is wrong")

    def nodes(self, key: int) -> tuple[np.ndarray, NodeData]:
        """A document's or conversation's token ids, int32 [tokens], and what scoring needs of it."""
        return self._database.nodes(key, self.shape)

    def last_part(self, key: int) -> tuple[int, Part]:
        """The number of a document's last chunk, and the chunk."""
        return self._database.last_part(key, self.shape)


def _told(entry: Entry) -> str:
    """The text of a document's header that queries are compared with."""
    return header_text(entry.metadata, entry.unsearched_keys)
