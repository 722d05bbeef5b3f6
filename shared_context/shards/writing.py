"""Changing a store of shards: each document by the store that its shard is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from shared_context.errors import BatchError, DocumentError
from shared_context.shards.catalogue import ShardedCatalogue
from shared_context.shards.index import shard_of
from shared_context.store.documents import Document
from shared_context.store.store import SharedLLMContextStore


def shard_for(id: str, shards: int) -> int:
    """The shard that a new document goes to: always the same."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") % shards


class Writers:
    """The stores of the shards, each opened when something of it is first changed.

    Args:
        open: opens the store of a shard by its number; raises where it may not be changed.
        shards: how many there are.
        catalogue: of them all.
    """

    def __init__(self, open: Callable[[int], SharedLLMContextStore], shards: int, catalogue: ShardedCatalogue):
        self._open, self._shards, self._catalogue = open, shards, catalogue
        self._opened: dict[int, SharedLLMContextStore] = {}

    def of(self, number: int) -> SharedLLMContextStore:
        """The store of a shard."""
        if number not in self._opened:
            self._opened[number] = self._open(number)
        return self._opened[number]

    def of_document(self, id: str) -> SharedLLMContextStore:
        """The store that holds a document."""
        with self._catalogue.reading():
            number, _ = shard_of(self._catalogue.key(id))
        return self.of(number)

    def all(self) -> Iterator[SharedLLMContextStore]:
        """The stores of all shards."""
        return map(self.of, range(self._shards))

    def add(self, documents: Sequence[Document], **options: Any) -> list[str]:
        """Store documents, each in the shard that has its id, or in that of its id; options are those of a store.

        Returns:
            Ids of those that are stored, in the order of the documents.

        Raises:
            DocumentError, BatchError: as for a store.
        """
        of_shard: dict[int, list[Document]] = {}
        with self._catalogue.reading():
            for document in documents:
                key = self._catalogue.find("document", document.id)
                number = shard_for(document.id, self._shards) if key is None else shard_of(key)[0]
                of_shard.setdefault(number, []).append(document)
        stored: set[str] = set()
        failures: dict[str, DocumentError] = {}
        for number, own in of_shard.items():
            try:
                stored |= set(self.of(number).add(own, **options))
            except BatchError as error:
                failures |= error.failures
            except DocumentError as error:
                failures[own[0].id] = error
        if failures and len(failures) == len(documents) == 1:
            raise next(iter(failures.values()))
        if failures:
            raise BatchError(f"{len(failures)} of {len(documents)} documents are not stored.", failures)
        return [document.id for document in documents if document.id in stored]

    def delete(self, ids: Iterable[str]) -> None:
        """Delete documents; where an id is unknown, none."""
        of_shard: dict[int, list[str]] = {}
        with self._catalogue.reading():
            for id in ids:
                of_shard.setdefault(shard_of(self._catalogue.key(id))[0], []).append(id)
        for number, own in of_shard.items():
            self.of(number).delete(own)

    def close(self) -> None:
        """Close them."""
        for store in self._opened.values():
            store.close()
