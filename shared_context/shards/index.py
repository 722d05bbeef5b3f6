"""What all shards hold, as one index: the statistics are those of the whole, what is compared stays in the shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.shards.crew import Crew
from shared_context.shards.shard import ShardState
from shared_context.store.header_index import HeaderScores, SaidWords, figure_scores
from shared_context.store.kept_prefilter import Owner
from shared_context.store.leaves import Leaves, document_leaves
from shared_context.store.node_index import inverse_leaf_frequency
from shared_context.store.prefilter import nearest_owners

KEY_BITS = 32
"""Lowest bits of a document's key in a store of shards; the others are the shard's number."""

MOST_SHARDS = 100


_Keys = TypeVar("_Keys", int, np.ndarray)


def whole_key(shard: int, key: _Keys) -> _Keys:
    """The key of a shard's document in the store, or the keys of several, int64 [documents]."""
    return shard << KEY_BITS | key


def shard_of(key: int) -> tuple[int, int]:
    """The shard that a document is in, and its key there."""
    return key >> KEY_BITS, key & (1 << KEY_BITS) - 1


class ShardedLeaves:
    """The leaves of all shards, one shard after the other, as :class:`~shared_context.store.leaves.Leaves`.

    Codes and embeddings are where their shards are.

    Args:
        crew: the shards.
        tree: the shape of the trees.
        states: what each of them holds.
        device: where scores are compared.
    """

    def __init__(self, crew: Crew, tree: TreeConfig, states: dict[int, ShardState], device: torch.device | str):
        self._crew, self._device = crew, device
        keys = np.concatenate([whole_key(number, state.keys) for number, state in states.items()])
        tokens = np.concatenate([state.tokens for state in states.values()])
        arrays = document_leaves(tree, keys, tokens)
        self.spans = torch.from_numpy(arrays.pop("spans")).to(device)
        for name, array in arrays.items():
            setattr(self, name, array)
        # Where the leaves and spans of each shard begin.
        self._shards = shards = np.array([*states, max(states) + 1], np.int64) << KEY_BITS
        self._numbers = list(states)
        self._first_leaf = np.searchsorted(self.document, shards)
        self._first_span = np.searchsorted(self.span_document, shards)

    document: np.ndarray
    chunk: np.ndarray
    slot: np.ndarray
    span_document: np.ndarray
    span_chunk: np.ndarray
    chunk_document: np.ndarray
    chunk_number: np.ndarray
    chunk_length: np.ndarray

    places, chunks, end = Leaves.places, Leaves.chunks, Leaves.end

    def __len__(self) -> int:
        return len(self.document)

    @property
    def device(self) -> torch.device:
        """Where scores are compared."""
        return self.spans.device

    def nearest(self, embedding: np.ndarray, owner: Owner, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents or chunks, see :meth:`~shared_context.store.prefilter.Prefilter.nearest`."""
        first_chunk = np.searchsorted(self.chunk_document, self._shards)
        holding = [at for at, count in enumerate(np.diff(self._first_span)) if count]
        asked = dict.fromkeys((self._numbers[at] for at in holding), ("nearest", (embedding, owner, count)))
        answers = self._crew.ask(asked).values()
        first = self._shards if owner == "document" else first_chunk
        owners = np.concatenate([own + first[at] for at, (own, _) in zip(holding, answers, strict=True)])
        cosines = np.concatenate([near for _, near in answers])
        return nearest_owners(cosines, owners, count)

    def late_interaction(
        self,
        codes: torch.Tensor,
        weights: torch.Tensor,
        rows: torch.Tensor | None = None,
        adjacent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Late-interaction scores of leaves."""
        asked = codes.numpy(force=True), weights.numpy(force=True)
        beside = None if adjacent is None else adjacent.numpy(force=True)
        return self._scattered("late_interaction", asked, rows, self._first_leaf, (beside,))

    def cosines(self, embedding: torch.Tensor, spans: torch.Tensor | None = None) -> torch.Tensor:
        """Of spans, by default all, the cosine with an embedding."""
        return self._scattered("cosines", (embedding.numpy(force=True),), spans, self._first_span, ())

    def _scattered(
        self,
        method: str,
        asked: tuple[np.ndarray, ...],
        rows: torch.Tensor | None,
        first: np.ndarray,
        beside: tuple[np.ndarray | None, ...],
    ) -> torch.Tensor:
        """What shards answer about rows, in the order of the rows.

        Args:
            asked: what comes first in the question.
            rows: of all shards together; None means all.
            first: where the rows of each shard begin.
            beside: of rows but the last, something of each row and the next; comes last in the question.
        """
        chosen = np.arange(first[-1]) if rows is None else rows.numpy(force=True)
        of_shard = np.searchsorted(first, chosen, side="right") - 1
        questions: dict[int, tuple[str, tuple[Any, ...]]] = {}
        places: list[np.ndarray] = []
        for at, number in enumerate(self._numbers):
            mine = np.flatnonzero(of_shard == at)
            if len(mine):
                own = None if rows is None else chosen[mine] - first[at]
                # Leaves of two shards never touch, so what is between the last and the next is of no use.
                pairs = (None if b is None else b[mine[:-1]] for b in beside)
                questions[number] = method, (*asked, own, *pairs)
                places.append(mine)
        answers = self._crew.ask(questions)
        joined = np.empty(len(chosen), np.float32)
        for mine, answer in zip(places, answers.values(), strict=True):
            joined[mine] = answer
        return torch.from_numpy(joined).to(self._device)


class ShardedHeaders:
    """The headers of all shards, as :class:`~shared_context.store.header_index.HeaderIndex`."""

    def __init__(self, crew: Crew, states: dict[int, ShardState]):
        self._crew = crew
        self._holding = [number for number, state in states.items() if state.headers]
        self._count = sum(state.headers for state in states.values())

    def __len__(self) -> int:
        return self._count

    def scores(self, codes: torch.Tensor, weights: torch.Tensor) -> HeaderScores:
        """The words of a query that each header says, weighted by how rare they are in all shards, and summed."""
        answers = self._crew.ask(dict.fromkeys(self._holding, ("headers_said", (codes.numpy(force=True),))))
        keys = [answer.keys | (number << KEY_BITS) for number, answer in answers.items()]
        said = SaidWords(np.concatenate(keys), np.concatenate([answer.shares for answer in answers.values()]))
        return said.weighted(weights, len(self))

    def near(self, embedding: torch.Tensor, documents: np.ndarray | None = None) -> HeaderScores:
        """The cosine of each header's embedding with that of a query, by default of all."""
        asked: dict[int, np.ndarray | None] = dict.fromkeys(self._holding)
        if documents is not None:
            of_shard = documents >> KEY_BITS
            asked = {number: documents[of_shard == number] & (1 << KEY_BITS) - 1 for number in self._holding}
        questions = {
            number: ("headers_near", (embedding.numpy(force=True), own))
            for number, own in asked.items()
            if own is None or len(own)
        }
        answers = self._crew.ask(questions)
        keys = [np.zeros(0, np.int64), *(near.keys | (number << KEY_BITS) for number, near in answers.items())]
        scores = [np.zeros(0, np.float32), *(near.scores for near in answers.values())]
        return HeaderScores(np.concatenate(keys), np.concatenate(scores))

    def with_figures(self, terms: Iterable[str]) -> HeaderScores | None:
        """How rare the numbers and identifiers of a query are that headers have."""
        if not (asked := list(terms)):
            return None
        answers = self._crew.ask(dict.fromkeys(self._holding, ("headers_having", (asked,))))
        having = [
            [whole_key(number, key) for number, keys in zip(answers, of_term, strict=True) for key in keys]
            for of_term in zip(*answers.values(), strict=True)
        ]
        return figure_scores(having, len(self))


class ShardedIndex:
    """What a query is compared with, as :class:`~shared_context.store.node_index.NodeIndex`."""

    def __init__(self, crew: Crew, tree: TreeConfig, device: torch.device | str):
        self._crew, self._tree, self.device = crew, tree, device

    def update(self, states: dict[int, ShardState]) -> None:
        """Take in what the shards hold now."""
        self._states = states
        self.headers = ShardedHeaders(self._crew, states)
        self.frequency = np.sum([state.frequency for state in states.values()], axis=0)
        self.tokens = sum(int(state.tokens.sum()) for state in states.values())
        self._leaves = ShardedLeaves(self._crew, self._tree, states, self.device) if len(self) else None

    def __len__(self) -> int:
        return sum(len(state.keys) for state in self._states.values())

    def leaves(self) -> ShardedLeaves:
        """All leaves of at least one document."""
        assert self._leaves is not None  # there is a document
        return self._leaves

    def weights(self, token_ids: np.ndarray) -> torch.Tensor:
        """Inverse leaf frequency of tokens in all shards, float32 [tokens]."""
        return inverse_leaf_frequency(self.frequency[token_ids], 0 if self._leaves is None else len(self._leaves))

    def token_ids(self) -> dict[int, np.ndarray]:
        """Token ids of all documents by their keys."""
        keys = {number: state.keys.tolist() for number, state in self._states.items() if len(state.keys)}
        answers = self._crew.ask({number: ("token_ids", (own,)) for number, own in keys.items()})
        return {
            whole_key(number, key): ids
            for number, answer in answers.items()
            for key, ids in zip(keys[number], answer, strict=True)
        }


class ShardedPrefilter:
    """What is nearest to a query, as :class:`~shared_context.store.kept_prefilter.KeptPrefilter` of one store tells.

    Args:
        index: of all shards.
    """

    def __init__(self, index: ShardedIndex):
        self._index = index

    def nearest(self, embedding: np.ndarray, owner: Owner, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`~shared_context.store.prefilter.Prefilter.nearest`."""
        return self._index.leaves().nearest(embedding, owner, count)


class ShardedWords:
    """Which leaves of all shards hold a word, as :class:`~shared_context.store.word_index.WordIndex`."""

    def __init__(self, crew: Crew):
        self._crew = crew

    def update(self, states: dict[int, ShardState]) -> None:
        """Take in what the shards hold now."""
        self._holding = [number for number, state in states.items() if len(state.keys)]
        self._languages = sorted({language for state in states.values() for language in state.languages})

    def leaves_with(self, terms: Iterable[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each term, keys and leaves of the documents that hold it, int64, in rising order."""
        answers = self._crew.ask(dict.fromkeys(self._holding, ("leaves_with", (list(terms),))))
        found = []
        for of_term in zip(*answers.values(), strict=True):
            keys = [keys | (number << KEY_BITS) for number, (keys, _) in zip(answers, of_term, strict=True)]
            found.append((np.concatenate(keys), np.concatenate([leaves for _, leaves in of_term])))
        return found

    def languages(self) -> Sequence[str]:
        """Those that documents were taken for."""
        return self._languages
