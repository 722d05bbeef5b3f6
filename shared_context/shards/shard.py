"""A shard: one store's file with its index, which compares what it holds with a query. It needs no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from shared_context.remote.fetching import Checkout, check_out, store_folders
from shared_context.store.about import About
from shared_context.store.catalogue import Catalogue
from shared_context.store.codec import Codec
from shared_context.store.database import Database
from shared_context.store.encoding import chunk_digest
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.header_index import HeaderScores, SaidWords
from shared_context.store.kept_prefilter import Owner
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.line_rows import Entry
from shared_context.store.node_data import NodeShape, StoredText
from shared_context.store.node_index import NodeIndex

Place: TypeAlias = str | Path | tuple[str, int]
"""A folder, or the address of a snapshot and the number of one of its stores."""


@dataclass(frozen=True)
class ShardState:
    """What is known of a shard where queries are asked.

    Attributes:
        version: changes with what the shard holds.
        keys: of its documents, rising, int64 [documents].
        tokens: of each document, int64 [documents].
        frequency: leaves that have a token, int64 [vocabulary].
        headers: documents that have a header.
        languages: that documents were taken for.
        conversations: how many there are.
        database_bytes, code_bytes: what it takes.
    """

    version: int
    keys: np.ndarray
    tokens: np.ndarray
    frequency: np.ndarray
    headers: int
    languages: list[str]
    conversations: int
    database_bytes: int
    code_bytes: int


class Shard:
    """What the front of a store of shards asks one of them; all arguments and answers can be sent to a process.

    What it compares is what it held when :meth:`state` was last asked.

    Args:
        place: the folder of its store, or the address of a snapshot of a store of shards and the number of this one,
            which is fetched.
        vocabulary: size of the model's vocabulary.
        read_only: nothing is written, whatever this process may.
        device: where queries are compared.
    """

    def __init__(self, place: Place, vocabulary: int, read_only: bool = False, device: str = "cpu"):
        self._checkout: Checkout | None = None
        if isinstance(place, tuple):
            address, number = place
            self._checkout = check_out(address, shards=[number])
            place = store_folders(self._checkout.folder, len(self._checkout.snapshot.stores))[number]
        self._database = Database(Path(place), digest=chunk_digest, read_only=read_only)
        with self._database.decoding():
            self._about, self._codec = self._database.get_meta("about"), self._database.get_meta("codec")
            about, size = About.from_bytes(self._about), Codec.from_bytes(self._codec).size
        self._database.mend_words(about.config.tree.leaf_size)
        with self._database.snapshot(), self._database.decoding("the store's own namespace"):
            found = self._database.namespace(DEFAULT_NAMESPACE)
            if found is None:
                raise ValueError("it is missing")
            namespace, self._salt = found
        self._catalogue = Catalogue(
            self._database,
            namespace,
            DEFAULT_NAMESPACE,
            self._salt,
            NodeIndex(about.config.tree, vocabulary, device),
            NodeShape(about.config.tree, size, about.dimension, vocabulary),
            TieredKVCache(0),  # keys and values are the front's
            lambda entry: None,
            Path(place),
            about.embedder or "",
        )
        # One that is started again must know what the one before it did, in the middle of a question.
        with self._catalogue.reading():
            pass
        self._catalogue.keep()

    def made_with(self) -> tuple[bytes, bytes, bytes]:
        """What the store was made with, its codec and the salt of its chunks: the same in all shards of a store."""
        return self._about, self._codec, self._salt

    def state(self, known: int | None = None) -> ShardState | None:
        """What the shard holds now; None where that is still version ``known``."""
        with self._catalogue.reading():
            index = self._catalogue.index
            version = self._database.version()
            if known == version:
                return None
            keys = np.array(self._catalogue.documents(), np.int64)
            leaves = index.leaves() if len(keys) else None
            tokens = np.zeros(len(keys), np.int64)
            if leaves is not None:
                place = np.searchsorted(keys, leaves.chunk_document)
                np.add.at(tokens, place, leaves.chunk_length)
            return ShardState(
                version,
                keys,
                tokens,
                index.frequency.copy(),
                len(index.headers),
                self._catalogue.words.languages(),
                len(self._database.conversations(self._catalogue.namespace)),
                self._database.nbytes(),
                leaves.code_bytes if leaves is not None else 0,
            )

    # Comparing

    def late_interaction(
        self, codes: np.ndarray, weights: np.ndarray, rows: np.ndarray | None, adjacent: np.ndarray | None
    ) -> np.ndarray:
        """Late-interaction scores of leaves, see :meth:`~shared_context.store.leaves.Leaves.late_interaction`."""
        with self._database.locked():
            leaves = self._catalogue.index.leaves()
            chosen = None if rows is None else torch.from_numpy(rows).to(leaves.device)
            beside = None if adjacent is None else torch.from_numpy(adjacent)
            found = leaves.late_interaction(torch.from_numpy(codes), torch.from_numpy(weights), chosen, beside)
            return found.numpy(force=True)

    def cosines(self, embedding: np.ndarray, spans: np.ndarray | None) -> np.ndarray:
        """Cosines of spans, see :meth:`~shared_context.store.leaves.Leaves.cosines`."""
        with self._database.locked():
            leaves = self._catalogue.index.leaves()
            chosen = None if spans is None else torch.from_numpy(spans).to(leaves.device)
            return leaves.cosines(torch.from_numpy(embedding), chosen).numpy(force=True)

    def nearest(self, embedding: np.ndarray, owner: Owner, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents or chunks, see :meth:`~shared_context.store.prefilter.Prefilter.nearest`."""
        with self._database.locked():
            found = self._catalogue.prefilter.nearest(embedding, owner, count)
        self._catalogue.keep_prefilter()
        return found

    def headers_said(self, codes: np.ndarray) -> SaidWords:
        """What headers say of a query, see :meth:`~shared_context.store.header_index.HeaderIndex.said`."""
        with self._database.locked():
            return self._catalogue.index.headers.said(torch.from_numpy(codes))

    def headers_near(self, embedding: np.ndarray, documents: np.ndarray | None) -> HeaderScores:
        """Cosines of headers, see :meth:`~shared_context.store.header_index.HeaderIndex.near`."""
        with self._database.locked():
            return self._catalogue.index.headers.near(torch.from_numpy(embedding), documents)

    def headers_having(self, terms: Sequence[str]) -> list[list[int]]:
        """For each number or identifier, keys of the documents whose headers have it."""
        with self._database.locked():
            return self._catalogue.index.headers.having(terms)

    def leaves_with(self, terms: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each term, keys and leaves of the documents that hold it, int64, in rising order."""
        with self._database.snapshot():
            return self._catalogue.words.leaves_with(terms)

    # Reading

    def find(self, id: str) -> int | None:
        """The key of a document; None where there is none of this id."""
        with self._database.snapshot():
            return self._catalogue.find("document", id)

    def entries(self, keys: Sequence[int]) -> list[Entry]:
        """Lines of documents."""
        with self._database.snapshot():
            return self._catalogue.entries(keys)

    def text(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        with self._database.snapshot():
            return self._catalogue.text(key)

    def token_ids(self, keys: Sequence[int]) -> list[np.ndarray]:
        """Token ids of documents."""
        with self._database.snapshot():
            return [self._catalogue.token_ids(key) for key in keys]

    def alive(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those that a chunk of some document has."""
        with self._database.snapshot():
            return self._database.alive(digests)

    # Changing

    def delete(self, keys: Sequence[int]) -> None:
        """Delete documents."""
        with self._catalogue.changing() as change:
            for key in keys:
                change.remove(key)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        if self._checkout is not None:
            self._checkout.release()
