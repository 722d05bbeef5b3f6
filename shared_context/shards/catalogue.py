"""What the shards of a store hold, as one catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.errors import DocumentNotFoundError, ShardUnavailableError, StoreClosedError
from shared_context.shards.crew import Crew
from shared_context.shards.index import ShardedIndex, ShardedPrefilter, ShardedWords, shard_of, whole_key
from shared_context.shards.shard import ShardState
from shared_context.store.forks import ForkSafeLock
from shared_context.store.line_rows import Entry
from shared_context.store.lines import READ_ONE_BY_ONE
from shared_context.store.node_data import StoredText
from shared_context.store.texts import Texts


class ShardedCatalogue:
    """The documents of all shards, as :class:`~shared_context.store.catalogue.Catalogue` those of one.

    Documents come in the order of the shards and, in each, in that of their adding.

    Args:
        crew: the shards.
        tree: the shape of the trees.
        device: where scores are compared.

    Attributes:
        index: what queries are compared with.
        prefilter: tells which of the documents are nearest to a query.
        words: those of the leaves.
    """

    def __init__(self, crew: Crew, tree: TreeConfig, device: torch.device | str):
        self._crew, self._lock, self._closed = crew, ForkSafeLock(), False
        self.index, self.words = ShardedIndex(crew, tree, device), ShardedWords(crew)
        self.prefilter = ShardedPrefilter(self.index)
        self.states: dict[int, ShardState] = {}
        self._documents: list[int] = []
        # Lines that were asked for; and the keys of all documents by their ids, once many were.
        self._entries: dict[int, Entry] = {}
        self._keys: dict[str, int] | None = None
        self._sought = 0
        self._texts = Texts()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What reads works inside: one thread at a time, with what the shards hold when it begins."""
        with self._lock:
            if self._closed:
                raise StoreClosedError("The store of shards is closed; open it again.")
            self._take_in()
            yield

    def _take_in(self) -> None:
        crew, versions = self._crew, {number: state.version for number, state in self.states.items()}
        if not crew.present:
            raise ShardUnavailableError("No shard of the store answers; open it again.")
        answers = crew.ask({number: ("state", (versions.get(number),)) for number in crew.present})
        if versions.keys() == answers.keys() and all(state is None for state in answers.values()):
            return
        self.states = {number: state or self.states[number] for number, state in sorted(answers.items())}
        self._documents = [key for number, s in self.states.items() for key in whole_key(number, s.keys).tolist()]
        self._entries, self._keys, self._sought = {}, None, 0
        self.index.update(self.states)
        self.words.update(self.states)
        self._texts.clear()

    def changed(self) -> bool:
        """Whether a shard has changed since the last look, which takes it in."""
        with self._lock:
            before = self.states
            self._take_in()
            return self.states is not before

    def documents(self) -> list[int]:
        """Keys of the documents, in their order."""
        return self._documents

    def find(self, kind: str, id: object) -> int | None:
        """The key of a document; None where there is none of this id."""
        if kind != "document" or not isinstance(id, str):
            return None
        self._sought += 1
        if self._keys is None and self._sought > READ_ONE_BY_ONE:
            self._keys = {e.id: key for key, e in zip(self._documents, self.entries(self._documents), strict=True)}
        if self._keys is not None:
            return self._keys.get(id)
        found = self._crew.ask_all("find", id)
        return next((whole_key(number, key) for number, key in found.items() if key is not None), None)

    def key(self, id: str) -> int:
        """The key of a document.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        key = self.find("document", id)
        if key is None:
            raise DocumentNotFoundError(f"No document has the id {id!r}; ids() lists the {len(self._documents)} known.")
        return key

    def entry(self, key: int) -> Entry:
        """A document's line."""
        return self.entries([key])[0]

    def entries(self, keys: Sequence[int]) -> list[Entry]:
        """Lines of documents."""
        missing: dict[int, list[int]] = {}
        for key in keys:
            if key not in self._entries:
                number, own = shard_of(key)
                missing.setdefault(number, []).append(own)
        answers = self._crew.ask({number: ("entries", (own,)) for number, own in missing.items()}) if missing else {}
        for number, found in answers.items():
            self._entries |= zip((whole_key(number, own) for own in missing[number]), found, strict=True)
        return [self._entries[key] for key in keys]

    def text(self, key: int) -> StoredText:
        """A document's text with its tokens."""
        return self._texts.of(key, self._read)

    def _read(self, key: int) -> StoredText:
        number, own = shard_of(key)
        return self._crew.ask_one(number, "text", own)

    def token_ids(self, key: int) -> np.ndarray:
        """A document's token ids, int32 [tokens]."""
        number, own = shard_of(key)
        return self._crew.ask_one(number, "token_ids", [own])[0]

    def has_chunk(self, digest: bytes) -> bool:
        """Whether a document has a chunk of this digest now; False where that cannot be told."""
        try:
            return any(self._crew.ask_all("alive", [digest]).values())
        except (ShardUnavailableError, StoreClosedError):  # a selection outlives its store
            return False

    def alive(self, names: set[str]) -> set[str]:
        """Those digests, in hexadecimal, that a chunk of some document has."""
        digests = [bytes.fromhex(name) for name in names]
        return {digest.hex() for alive in self._crew.ask_all("alive", digests).values() for digest in alive}

    def keep_prefilter(self) -> None:
        """Nothing: each shard keeps what its own prefilter has learned."""

    def close(self) -> None:
        """Nothing is read any more."""
        with self._lock:
            self._closed = True
