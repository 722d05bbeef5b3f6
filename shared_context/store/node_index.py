"""The index of a store's leaves, as documents come and go, and the statistics that their scores need."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.model.cache import give_back_freed
from shared_context.store.header_index import HeaderIndex
from shared_context.store.leaves import Arrays, KeptLeaves, Leaves, Piece, document_edges, document_leaves
from shared_context.store.node_data import NodeData

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
        self.frequency = np.zeros(vocabulary, dtype=np.int64)
        self._leaf_count = 0
        self._leaves: Leaves | None = None
        self._changed = False
        # What a file holds of the documents, where each begins there, and which of these are here still.
        self._kept: KeptLeaves | None = None
        self._kept_edges: dict[str, np.ndarray] = {}
        self._there = np.zeros(0, bool)
        # Token ids of the others. Rows of their leaves as they were joined last, and behind them room; the keys of
        # their documents and of their spans'; and what is not among them yet, or no more.
        self._token_ids: dict[int, np.ndarray] = {}
        self._room: Arrays | None = None
        self._owners = [np.zeros(0, np.int64)] * 2
        self._waiting: dict[int, Arrays] = {}
        self._gone: set[int] = set()
        self.headers = HeaderIndex()

    def __len__(self) -> int:
        """Documents held."""
        return len(self._token_ids) + int(self._there.sum())

    def __contains__(self, key: int) -> bool:
        return key in self._token_ids or self.is_kept(key)

    def is_kept(self, key: int) -> bool:
        """Whether what a document is compared by is that of a file."""
        return self._place(key) is not None

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self._token_ids.values())) + self.kept_tokens[0]

    @property
    def kept_tokens(self) -> tuple[int, int]:
        """Tokens of the documents of the file that was adopted: of those that are here still, and of all."""
        if self._kept is None:
            return 0, 0
        return int(self._kept.tokens[self._there].sum()), len(self._kept.ids)

    def keys(self) -> np.ndarray:
        """Of the documents, rising, int64 [documents]."""
        return np.union1d(self._kept_keys(), np.array(list(self._token_ids), np.int64))

    def token_ids(self) -> dict[int, np.ndarray]:
        """Token ids of all documents by their keys."""
        kept = zip(self._kept_keys().tolist(), np.flatnonzero(self._there).tolist(), strict=True)
        return {key: self._kept_ids(place) for key, place in kept} | self._token_ids

    def _kept_keys(self) -> np.ndarray:
        """Keys of the documents of the file that are here still, rising."""
        return np.zeros(0, np.int64) if self._kept is None else self._kept.keys[self._there]

    def _kept_ids(self, place: int) -> np.ndarray:
        assert self._kept is not None  # else nobody asks
        return self._kept.ids[slice(*self._kept_edges["ids"][place : place + 2].tolist())]

    def adopt(self, kept: KeptLeaves, there: np.ndarray) -> None:
        """Take in what a file holds, in the place of all that is held now.

        Args:
            there: which of its documents there are, bool [documents]; at least one.
        """
        if torch.device(self.device).type != "cpu":  # where all is copied to
            kept.mapped.check("codes", "scales", "embeddings")
        self._kept, self._there = replace(kept, arrays=kept.arrays.to(self.device)), there.copy()
        leaves, spans = document_edges(self._tree, kept.tokens)
        self._kept_edges = {"ids": np.concatenate([[0], np.cumsum(kept.tokens)]), "leaves": leaves, "spans": spans}
        self.frequency = kept.frequency.copy()
        self._leaf_count = int(np.diff(leaves)[kept.held].sum())
        for place in np.flatnonzero(kept.held & ~there).tolist():
            self._count(self._kept_ids(place), -1)
        self._token_ids, self._waiting, self._gone = {}, {}, set()
        self._room, self._owners = None, [np.zeros(0, np.int64)] * 2
        self._changed = True

    def add(self, key: int, token_ids: np.ndarray, nodes: NodeData) -> None:
        """Take in a document; one that a break has let in half is taken in anew."""
        if key in self:
            self.remove(key)
        self._put(key, token_ids, leaf_arrays(self._tree, token_ids, nodes))
        self._count(token_ids, 1)

    def extend(self, key: int, new_key: int, first: int, token_ids: np.ndarray, nodes: NodeData) -> None:
        """Take in that a document got other tokens from token ``first`` on, where a chunk begins, and another key.

        What stays of it is not read from a file, see :meth:`is_kept`: were that damaged, the database has it no more
        under the key that it is known by there.
        """
        leaf = first // self._tree.leaf_size
        kept = self._arrays_of(key).part(slice(leaf), slice(leaf // self._tree.embedded_leaves)).to("cpu")
        before = self._take(key)
        if first < len(before):
            self._count(before[first:], -1)
        self._count(token_ids, 1)
        self._put(
            new_key,
            np.concatenate([before[:first], token_ids]),
            kept.joined([leaf_arrays(self._tree, token_ids, nodes)]),
        )

    def _arrays_of(self, key: int) -> Arrays:
        """A document's own part."""
        if key in self._waiting:
            return self._waiting[key]
        if self._kept is not None and (place := self._place(key)) is not None:
            edges = (self._kept_edges[name][place : place + 2].tolist() for name in ("leaves", "spans"))
            return Piece(self._kept.arrays, mapped=self._kept.mapped).part(*(slice(*edge) for edge in edges))
        assert self._room is not None  # what neither waits nor is in a file was joined
        leaves, spans = (slice(*np.searchsorted(of, [key, key + 1]).tolist()) for of in self._owners)
        return self._room.part(leaves, spans)

    def embeddings(self, documents: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """Of spans by their documents' keys and their numbers there, float32 [spans, dimension]."""
        rows = zip(documents.tolist(), spans.tolist(), strict=True)
        return torch.stack([self._arrays_of(key).embeddings[number] for key, number in rows]).numpy(force=True)

    def _place(self, key: int) -> int | None:
        """Which document of the adopted file a key is that of; None where of none that is there."""
        if self._kept is None:
            return None
        place = int(np.searchsorted(self._kept.keys, key))
        return place if place < len(self._there) and self._there[place] and self._kept.keys[place] == key else None

    def remove(self, key: int) -> None:
        """Forget a document."""
        self._count(self._take(key), -1)

    def _put(self, key: int, token_ids: np.ndarray, arrays: Arrays) -> None:
        self._token_ids[key], self._waiting[key] = token_ids, arrays
        self._changed = True

    def _take(self, key: int) -> np.ndarray:
        self._changed = True
        if (place := self._place(key)) is not None:
            self._there[place] = False
            return self._kept_ids(place)
        if self._waiting.pop(key, None) is None:
            self._gone.add(key)
        return self._token_ids.pop(key)

    def _count(self, token_ids: np.ndarray, sign: int) -> None:
        leaves = count_leaves(self.frequency, token_ids, self._tree.leaf_size, sign)
        self._leaf_count += sign * leaves

    def weights(self, token_ids: np.ndarray) -> torch.Tensor:
        """Inverse leaf frequency of tokens, ``ln((n + 1) / (n_t + 0.5))``, float32 [tokens]."""
        return inverse_leaf_frequency(self.frequency[token_ids], self._leaf_count)

    def leaves(self) -> Leaves:
        """All leaves of at least one document; what has changed since they were last asked for is taken in now."""
        if self._leaves is None or self._changed:
            pieces, others = self._pieces(), sorted(self._token_ids)
            keys = np.concatenate([self._kept_keys(), np.array(others, np.int64)])
            tokens = np.array([len(self._token_ids[key]) for key in others], np.int64)
            if self._kept is not None:  # behind whose documents all others stand
                tokens = np.concatenate([self._kept.tokens[self._there], tokens])
            places = document_leaves(self._tree, keys, tokens)
            spans = torch.from_numpy(places.pop("spans")).to(self.device)
            self._leaves = Leaves(**places, spans=spans, pieces=pieces)
            self._changed = False
        return self._leaves

    def _pieces(self) -> tuple[Piece, ...]:
        """What all documents are compared by, in the order of their keys."""
        # Later documents have higher keys than those of the file; if one had not, all would have to be put in order.
        if min(self._waiting, default=np.inf) < max(self._kept_keys()[-1:], default=0):
            for key, ids in self.token_ids().items():
                if key not in self._token_ids:
                    self._waiting[key], self._token_ids[key] = self._arrays_of(key).to("cpu"), ids
            self._there[:] = False
        if not self._there.any():
            self._kept, self._there = None, np.zeros(0, bool)
        kept = () if self._kept is None else (self._kept_piece(self._kept),)
        if not self._token_ids:
            self._room, self._owners, self._gone = None, [np.zeros(0, np.int64)] * 2, set()
            return kept
        return *kept, Piece(self._arrays())

    def _kept_piece(self, kept: KeptLeaves) -> Piece:
        if self._there.all():
            return Piece(kept.arrays, mapped=kept.mapped)
        edges = (self._kept_edges[name] for name in ("leaves", "spans"))
        held = (np.flatnonzero(np.repeat(self._there, np.diff(of))) for of in edges)
        leaves, spans = (torch.from_numpy(rows).to(self.device) for rows in held)
        return Piece(kept.arrays, leaves, spans, kept.mapped)

    def _arrays(self) -> Arrays:
        """Those of documents that no file holds, in the order of their keys; one behind all others costs its rows."""
        room, owners = self._room, self._owners
        if self._gone and room is not None:
            stays = [~np.isin(of, list(self._gone)) for of in owners]
            owners = [of[there] for of, there in zip(owners, stays, strict=True)]
            if any(not there[: len(of)].all() for of, there in zip(owners, stays, strict=True)):  # not only at the end
                leaves, spans = (torch.from_numpy(there).to(self.device) for there in stays)
                room = room.part(slice(len(leaves)), slice(len(spans))).part(leaves, spans)
        if self._waiting:
            keys = sorted(self._waiting)
            new = [self._waiting[key] for key in keys]
            room = self._with_room(room, len(owners[0]), len(owners[1]), new[0].joined(new[1:]))
            counts = zip(*((len(part.codes), len(part.embeddings)) for part in new), strict=True)
            owners = [np.concatenate([of, np.repeat(keys, more)]) for of, more in zip(owners, counts, strict=True)]
        assert room is not None  # there is a document that no file holds
        arrays = room.part(slice(len(owners[0])), slice(len(owners[1])))
        if (np.diff(owners[0]) < 0).any():
            orders = [np.argsort(of, kind="stable") for of in owners]
            arrays = room = arrays.part(*map(torch.from_numpy, orders))
            owners = [of[order] for of, order in zip(owners, orders, strict=True)]
        many = len(self._waiting) >= GIVEN_BACK
        self._room, self._owners, self._waiting, self._gone = room, owners, {}, set()
        if many:
            give_back_freed()
        return arrays

    def _with_room(self, room: Arrays | None, leaves: int, spans: int, more: Arrays) -> Arrays:
        """The arrays with ``more`` behind the first leaves and spans, in the room that is there or in a larger one."""
        grown = {}
        for field, count in zip(fields(Arrays), (leaves, leaves, spans), strict=True):
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
        return Arrays(**grown)


def leaf_arrays(tree: TreeConfig, token_ids: np.ndarray, nodes: NodeData) -> Arrays:
    """What the leaves and spans of a document are compared by."""
    size = tree.leaf_size
    tokens = len(token_ids)
    leaves = -(-tokens // size)
    # Repeating the last token fills the last leaf up without touching any maximum over its tokens.
    rows = np.minimum(np.arange(leaves * size), tokens - 1)
    return Arrays(
        torch.from_numpy(nodes.codes[rows].reshape(leaves, size, -1)),
        torch.from_numpy(nodes.scales[rows].reshape(leaves, size)),
        torch.from_numpy(nodes.embeddings.copy()),
    )


def count_leaves(frequency: np.ndarray, token_ids: np.ndarray, leaf_size: int, sign: int) -> int:
    """Add how many leaves of a document have each token to ``frequency``, or take them off; returns its leaves."""
    leaf = np.arange(len(token_ids)) // leaf_size
    once_per_leaf = np.unique(leaf * len(frequency) + token_ids) % len(frequency)
    np.add.at(frequency, once_per_leaf, sign)
    return int(leaf[-1]) + 1


def inverse_leaf_frequency(having: np.ndarray, leaves: int) -> torch.Tensor:
    """``ln((n + 1) / (n_t + 0.5))``, float32 [tokens].

    Args:
        having: how many leaves have each token, [tokens].
        leaves: how many there are.
    """
    return torch.from_numpy(np.log((leaves + 1) / (having + 0.5))).float()
