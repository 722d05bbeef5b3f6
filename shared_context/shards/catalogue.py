"""What the shards of a store hold, as one catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.errors import DocumentNotFoundError, ShardUnavailableError, StoreClosedError
from shared_context.shards.crew import Crew
from shared_context.shards.index import ShardedIndex, ShardedWords, shard_of, whole_key
from shared_context.shards.shard import ShardState
from shared_context.store.forks import ForkSafeLock
from shared_context.store.line_rows import Entry
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
        words: those of the leaves.
    """

    def __init__(self, crew: Crew, tree: TreeConfig, device: torch.device | str):
        self._crew, self._lock, self._closed = crew, ForkSafeLock(), False
        self.index, self.words = ShardedIndex(crew, tree, device), ShardedWords(crew)
        self.states: dict[int, ShardState] = {}
        self._keys: dict[str, int] = {}
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
        self._keys = {
            entry.id: whole_key(number, key)
            for number, state in self.states.items()
            for key, entry in state.entries.items()
        }
        self.index.update(self.states)
        self.words.update(self.states)
        self._texts.clear()

    def documents(self) -> list[int]:
        """Keys of the documents, in their order."""
        return [whole_key(number, key) for number, state in self.states.items() for key in state.entries]

    def find(self, kind: str, id: object) -> int | None:
        """The key of a document; None where there is none of this id."""
        return self._keys.get(id) if kind == "document" and isinstance(id, str) else None

    def key(self, id: str) -> int:
        """The key of a document.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        key = self.find("document", id)
        if key is None:
            raise DocumentNotFoundError(f"No document has the id {id!r}; ids() lists the {len(self._keys)} known.")
        return key

    def entry(self, key: int) -> Entry:
        """A document's line."""
        number, own = shard_of(key)
        return self.states[number].entries[own]

    def entries(self, keys: Sequence[int]) -> list[Entry]:
        """Lines of documents."""
        return list(map(self.entry, keys))

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

    def close(self) -> None:
        """Nothing is read any more."""
        with self._lock:
            self._closed = True
