"""All leaves of all documents side by side in memory, and the statistics that their scores need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import late_interaction_scores
from shared_context.model.cache import give_back_freed
from shared_context.store.header_index import HeaderIndex
from shared_context.store.node_data import NodeData


@dataclass(frozen=True)
class Leaves:
    """The leaves of a store as arrays, one row per leaf, in the order of documents and of their text.

    Tensors are where queries are compared, NumPy's arrays in main memory.

    Attributes:
        codes: int8 [leaves, leaf_size, code_size]; a short leaf repeats its last token.
        scales: float16 [leaves, leaf_size].
        embeddings: float32 [spans, dimension], of spans of leaves.
        spans: rows of ``embeddings`` that surround the leaf, int64 [leaves, 2]: its own span and, of those beside that
            in the document, the one it is nearer to; twice its own where there is none.
        span_document: key of the span's document, int64 [spans].
        span_chunk: row of the span's chunk in the arrays below, int64 [spans].
        document: key of the leaf's document, int64 [leaves].
        chunk: row of the leaf's chunk in the arrays below, int64 [leaves].
        slot: the leaf's place in its chunk's tree, int64 [leaves].
        chunk_document, chunk_number, chunk_length: for each chunk its document's key, its place in the document, and
            its tokens, int64 [chunks].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    embeddings: torch.Tensor
    spans: torch.Tensor
    span_document: np.ndarray
    span_chunk: np.ndarray
    document: np.ndarray
    chunk: np.ndarray
    slot: np.ndarray
    chunk_document: np.ndarray
    chunk_number: np.ndarray
    chunk_length: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    def late_interaction(
        self,
        codes: torch.Tensor,
        weights: torch.Tensor,
        rows: torch.Tensor | None = None,
        adjacent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Late-interaction scores of leaves, as :func:`~shared_context.kernels.late_interaction_scores` gives them."""
        device = self.codes.device
        beside = None if adjacent is None else adjacent.to(device)
        return late_interaction_scores(
            codes.to(device), weights.to(device), self.codes, self.scales, leaves=rows, adjacent=beside
        )

    def cosines(self, embedding: torch.Tensor, spans: torch.Tensor | None = None) -> torch.Tensor:
        """Of spans, by default all, the cosine with an embedding [dimension]."""
        embeddings = self.embeddings if spans is None else self.embeddings[spans]
        return embeddings @ embedding.to(embeddings.device)

    def places(self, chunks: np.ndarray) -> list[tuple[int, int]]:
        """Each chunk's document, by its key, and its number in the document; chunks are given by their rows."""
        return list(zip(self.chunk_document[chunks].tolist(), self.chunk_number[chunks].tolist(), strict=True))

    def chunks(self, keys: Sequence[int]) -> np.ndarray:
        """Rows of all chunks of documents."""
        return np.flatnonzero(np.isin(self.chunk_document, keys))

    def end(self, key: int, tokens: int) -> np.ndarray:
        """Rows of the chunks that so many tokens at the end of a document reach into."""
        rows = self.chunks([key])
        behind = np.cumsum(self.chunk_length[rows][::-1])[::-1] - self.chunk_length[rows]
        return rows[behind < tokens]


@dataclass(frozen=True)
class _Arrays:
    """What leaves and spans are compared by, of one document or of many side by side; see :class:`Leaves`."""

    codes: torch.Tensor
    scales: torch.Tensor
    embeddings: torch.Tensor

    def part(self, leaves: slice | torch.Tensor, spans: slice | torch.Tensor) -> _Arrays:
        """Those of some leaves and spans."""
        return _Arrays(self.codes[leaves], self.scales[leaves], self.embeddings[spans])

    def joined(self, others: Sequence[_Arrays]) -> _Arrays:
        """These and others behind them, copied."""
        parts = ([getattr(part, field.name) for part in (self, *others)] for field in fields(_Arrays))
        return _Arrays(*map(torch.cat, parts))


SPARE = 8
"""One of so many rows is kept free when the arrays have to grow, so that few additions copy them."""


GIVEN_BACK = 1024
"""Documents of which so many are joined at once leave as many small holes in memory, which are given back."""


class NodeIndex:
    """What a query is compared with.

    Args:
        tree: the shape of the trees.
        vocabulary: size of the model's vocabulary, for token frequencies.
        device: where queries are compared.

    Attributes:
        headers: the documents' headers.
        frequency: leaves that have a token, int64 [vocabulary].
        device: the same.
    """

    def __init__(self, tree: TreeConfig, vocabulary: int, device: torch.device | str = "cpu"):
        self._tree = tree
        self.device = device
        self._token_ids: dict[int, np.ndarray] = {}
        self.frequency = np.zeros(vocabulary, dtype=np.int64)
        self._leaf_count = 0
        self._leaves: Leaves | None = None
        self._changed = False
        # Rows of the leaves as they were joined last, and behind them room; and what is not among them yet, or no more.
        self._room: _Arrays | None = None
        self._waiting: dict[int, _Arrays] = {}
        self._gone: set[int] = set()
        self.headers = HeaderIndex()

    def __len__(self) -> int:
        """Documents held."""
        return len(self._token_ids)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self._token_ids.values()))

    def token_ids(self) -> dict[int, np.ndarray]:
        """Token ids of all documents by their keys."""
        return self._token_ids.copy()

    def add(self, key: int, token_ids: np.ndarray, nodes: NodeData) -> None:
        """Take in a document; one that a break has let in half is taken in anew."""
        if key in self._token_ids:
            self.remove(key)
        self._put(key, token_ids, self._of(token_ids, nodes))
        self._count(token_ids, 1)

    def extend(self, key: int, new_key: int, first: int, token_ids: np.ndarray, nodes: NodeData) -> None:
        """Take in that a document got other tokens from token ``first`` on, where a chunk begins, and another key."""
        leaf = first // self._tree.leaf_size
        kept = self._arrays_of(key).part(slice(leaf), slice(leaf // self._tree.embedded_leaves))
        kept = _Arrays(*(getattr(kept, field.name).cpu() for field in fields(_Arrays)))
        before = self._take(key)
        if first < len(before):
            self._count(before[first:], -1)
        self._count(token_ids, 1)
        self._put(new_key, np.concatenate([before[:first], token_ids]), kept.joined([self._of(token_ids, nodes)]))

    def _of(self, token_ids: np.ndarray, nodes: NodeData) -> _Arrays:
        size = self._tree.leaf_size
        tokens = len(token_ids)
        leaves = -(-tokens // size)
        # Repeating the last token fills the last leaf up without touching any maximum over its tokens.
        rows = np.minimum(np.arange(leaves * size), tokens - 1)
        return _Arrays(
            torch.from_numpy(nodes.codes[rows].reshape(leaves, size, -1)),
            torch.from_numpy(nodes.scales[rows].reshape(leaves, size)),
            torch.from_numpy(nodes.embeddings.copy()),
        )

    def _arrays_of(self, key: int) -> _Arrays:
        """A document's own part."""
        if key in self._waiting:
            return self._waiting[key]
        edges = (np.searchsorted(of, [key, key + 1]) for of in (self._leaves.document, self._leaves.span_document))
        return self._room.part(*(slice(*edge.tolist()) for edge in edges))

    def remove(self, key: int) -> None:
        """Forget a document."""
        self._count(self._take(key), -1)

    def _put(self, key: int, token_ids: np.ndarray, arrays: _Arrays) -> None:
        self._token_ids[key], self._waiting[key] = token_ids, arrays
        self._changed = True

    def _take(self, key: int) -> np.ndarray:
        if self._waiting.pop(key, None) is None:
            self._gone.add(key)
        self._changed = True
        return self._token_ids.pop(key)

    def _count(self, token_ids: np.ndarray, sign: int) -> None:
        leaf = np.arange(len(token_ids)) // self._tree.leaf_size
        once_per_leaf = np.unique(leaf * len(self.frequency) + token_ids) % len(self.frequency)
        np.add.at(self.frequency, once_per_leaf, sign)
        self._leaf_count += sign * (int(leaf[-1]) + 1)

    def weights(self, token_ids: np.ndarray) -> torch.Tensor:
        """Inverse leaf frequency of tokens, ``ln((n + 1) / (n_t + 0.5))``, float32 [tokens]."""
        return inverse_leaf_frequency(self.frequency[token_ids], self._leaf_count)

    def leaves(self) -> Leaves:
        """All leaves of at least one document; what has changed since they were last asked for is taken in now."""
        if self._leaves is None or self._changed:
            keys = sorted(self._token_ids)
            places = document_leaves(self._tree, keys, [len(self._token_ids[key]) for key in keys])
            spans, arrays = torch.from_numpy(places.pop("spans")).to(self.device), self._arrays()
            self._leaves = Leaves(**vars(arrays), spans=spans, **places)
            self._changed = False
        return self._leaves

    def _arrays(self) -> _Arrays:
        """The arrays of all documents in the order of their keys; a document behind all others costs its own rows."""
        room, old = self._room, self._leaves
        owners = [np.zeros(0, np.int64)] * 2 if old is None else [old.document, old.span_document]
        if self._gone:
            stays = [~np.isin(of, list(self._gone)) for of in owners]
            owners = [of[there] for of, there in zip(owners, stays, strict=True)]
            if any(not there[: len(of)].all() for of, there in zip(owners, stays, strict=True)):  # not only at the end
                filled = room.part(*(slice(len(there)) for there in stays))
                room = filled.part(*(torch.from_numpy(there).to(self.device) for there in stays))
        if self._waiting:
            keys = sorted(self._waiting)
            new = [self._waiting[key] for key in keys]
            room = self._with_room(room, *map(len, owners), new[0].joined(new[1:]))
            counts = zip(*((len(part.codes), len(part.embeddings)) for part in new), strict=True)
            owners = [np.concatenate([of, np.repeat(keys, more)]) for of, more in zip(owners, counts, strict=True)]
        arrays = room.part(*(slice(len(of)) for of in owners))
        if (np.diff(owners[0]) < 0).any():
            arrays = room = arrays.part(*(torch.from_numpy(np.argsort(of, kind="stable")) for of in owners))
        many = len(self._waiting) >= GIVEN_BACK
        self._room, self._waiting, self._gone = room, {}, set()
        if many:
            give_back_freed()
        return arrays

    def _with_room(self, room: _Arrays | None, leaves: int, spans: int, more: _Arrays) -> _Arrays:
        """The arrays with ``more`` behind the first leaves and spans, in the room that is there or in a larger one."""
        grown = {}
        for field, count in zip(fields(_Arrays), (leaves, leaves, spans), strict=True):
            rows = getattr(more, field.name).to(self.device)
            held, end = None if room is None else getattr(room, field.name), count + len(rows)
            if held is None:
                held = rows
            elif end > len(held):
                larger = held.new_empty((end + end // SPARE, *held.shape[1:]))
                larger[:count], larger[count:end] = held[:count], rows
                held = larger
            else:
                held[count:end] = rows
            grown[field.name] = held
        return _Arrays(**grown)


def document_leaves(tree: TreeConfig, keys: Sequence[int], tokens: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of :class:`Leaves` that hang on nothing but how long documents are.

    Args:
        tree: the shape of the trees.
        keys: of the documents, rising.
        tokens: of each, at least one.
    """
    documents, tokens = np.array(keys, np.int64), np.asarray(tokens, np.int64)
    per_chunk, together = 2**tree.height, tree.embedded_leaves
    chunks, per_document = -(-tokens // tree.chunk_size), -(-tokens // tree.leaf_size)
    chunk_number, number = _ranges(chunks), _ranges(per_document)
    spans, first_chunk = -(-per_document // together), np.cumsum(chunks) - chunks
    # A leaf in the left half of its span is nearer to the span before, one in the right half to the one behind.
    span, side = number // together, np.sign(2 * (number % together) + 1 - together)
    beside = np.clip(span + side, 0, np.repeat(spans, per_document) - 1)
    first_span = np.repeat(np.cumsum(spans) - spans, per_document)
    return {
        "spans": np.stack([first_span + span, first_span + beside], axis=1),
        "span_document": np.repeat(documents, spans),
        "span_chunk": np.repeat(first_chunk, spans) + _ranges(spans) // (per_chunk // together),
        "document": np.repeat(documents, per_document),
        "chunk": np.repeat(first_chunk, per_document) + number // per_chunk,
        "slot": number % per_chunk,
        "chunk_document": np.repeat(documents, chunks),
        "chunk_number": chunk_number,
        "chunk_length": np.minimum(np.repeat(tokens, chunks) - chunk_number * tree.chunk_size, tree.chunk_size),
    }


def inverse_leaf_frequency(having: np.ndarray, leaves: int) -> torch.Tensor:
    """``ln((n + 1) / (n_t + 0.5))``, float32 [tokens].

    Args:
        having: how many leaves have each token, [tokens].
        leaves: how many there are.
    """
    return torch.from_numpy(np.log((leaves + 1) / (having + 0.5))).float()


def _ranges(counts: Iterable[int]) -> np.ndarray:
    """0 to n - 1 for every n of ``counts``, one after the other."""
    counts = np.asarray(counts, dtype=np.int64)
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
