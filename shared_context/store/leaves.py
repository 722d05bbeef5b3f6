"""The leaves of all documents side by side in memory: what queries are compared with, and where each of them stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import late_interaction_scores
from shared_context.store.mapped_rows import MappedRows


@dataclass(frozen=True)
class Arrays:
    """What leaves and spans are compared by.

    Attributes:
        codes: int8 [leaves, leaf_size, code_size]; a short leaf repeats its last token.
        scales: float16 [leaves, leaf_size].
        embeddings: float32 [spans, dimension], of spans of leaves.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    embeddings: torch.Tensor

    def part(self, leaves: slice | torch.Tensor, spans: slice | torch.Tensor) -> Arrays:
        """Those of some leaves and spans."""
        return Arrays(self.codes[leaves], self.scales[leaves], self.embeddings[spans])

    def joined(self, others: Sequence[Arrays]) -> Arrays:
        """These and others behind them, copied."""
        parts = ([getattr(part, field.name) for part in (self, *others)] for field in fields(Arrays))
        return Arrays(*map(torch.cat, parts))

    def to(self, device: torch.device | str) -> Arrays:
        """The same on a device."""
        return Arrays(*(getattr(self, field.name).to(device) for field in fields(Arrays)))


@dataclass(frozen=True)
class KeptLeaves:
    """What a file holds of documents, one after the other in the order of their keys.

    Attributes:
        keys: of the documents, rising, int64 [documents].
        held: which of them are not gone, bool [documents]; one that is gone has the key of the one before, or 0.
        tokens: of each, int64 [documents].
        frequency: leaves of those that are held that have a token, int64 [vocabulary].
        ids: token ids of all of them, int32 [tokens].
        arrays: what their leaves and spans are compared by.
        mapped: checks them before they are read.
    """

    keys: np.ndarray
    held: np.ndarray
    tokens: np.ndarray
    frequency: np.ndarray
    ids: np.ndarray
    arrays: Arrays
    mapped: MappedRows


class Piece(NamedTuple):
    """Some of the leaves of an index, and the spans of the same documents.

    Attributes:
        arrays: hold them, and others perhaps.
        leaves: their rows in ``arrays``, int64 [leaves]; None where these are all of it.
        spans: the same of the spans.
        mapped: checks what is read of ``arrays``; None where nothing is to be checked.
    """

    arrays: Arrays
    leaves: torch.Tensor | None = None
    spans: torch.Tensor | None = None
    mapped: MappedRows | None = None

    def leaf_rows(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Rows in ``arrays`` of leaves of the piece, None for all, to be read now."""
        return self._rows(rows, self.leaves, "codes", "scales")

    def span_rows(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Rows in ``arrays`` of spans of the piece, None for all, to be read now."""
        return self._rows(rows, self.spans, "embeddings")

    def _rows(self, rows: torch.Tensor | None, own: torch.Tensor | None, *kinds: str) -> torch.Tensor | None:
        chosen = rows if own is None else own if rows is None else own[rows]
        if self.mapped is not None:  # where all are asked for, all is checked: nearly all are of the piece
            self.mapped.check(*kinds, rows=None if rows is None or chosen is None else chosen.numpy(force=True))
        return chosen

    @property
    def leaf_count(self) -> int:
        """Leaves of the piece."""
        return len(self.arrays.codes if self.leaves is None else self.leaves)

    @property
    def span_count(self) -> int:
        """Spans of the piece."""
        return len(self.arrays.embeddings if self.spans is None else self.spans)

    def whole(self) -> Arrays:
        """The leaves and spans of the piece alone; copied where ``arrays`` hold others."""
        leaves, spans = self.leaf_rows(None), self.span_rows(None)
        return self.arrays if leaves is None or spans is None else self.arrays.part(leaves, spans)

    def part(self, leaves: slice, spans: slice) -> Arrays:
        """Some of the leaves and spans of the piece."""
        if self.mapped is not None:
            self.leaf_rows(torch.arange(leaves.start, leaves.stop))
            self.span_rows(torch.arange(spans.start, spans.stop))
        held = (some if own is None else own[some] for some, own in ((leaves, self.leaves), (spans, self.spans)))
        return self.arrays.part(*held)


@dataclass(frozen=True)
class Leaves:
    """The leaves of a store, one row per leaf, in the order of documents and of their text.

    Tensors are where queries are compared, NumPy's arrays in main memory.

    Attributes:
        pieces: what they are compared by: one piece, or that of a file and behind it that of later documents.
        spans: numbers of the spans that surround the leaf, int64 [leaves, 2]: its own span and, of those beside that
            in the document, the one it is nearer to; twice its own where there is none.
        span_document: key of the span's document, int64 [spans].
        span_chunk: row of the span's chunk in the arrays below, int64 [spans].
        document: key of the leaf's document, int64 [leaves].
        chunk: row of the leaf's chunk in the arrays below, int64 [leaves].
        slot: the leaf's place in its chunk's tree, int64 [leaves].
        chunk_document, chunk_number, chunk_length: for each chunk its document's key, its place in the document, and
            its tokens, int64 [chunks].
    """

    pieces: tuple[Piece, ...]
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

    @property
    def device(self) -> torch.device:
        """Where scores are compared."""
        return self.spans.device

    @property
    def dimension(self) -> int:
        """Of the embeddings."""
        return self.pieces[0].arrays.embeddings.shape[1]

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes and their scales."""
        codes, scales = self.pieces[0].arrays.codes[:1], self.pieces[0].arrays.scales[:1]
        return len(self) * (codes.nbytes + scales.nbytes)

    def late_interaction(
        self,
        codes: torch.Tensor,
        weights: torch.Tensor,
        rows: torch.Tensor | None = None,
        adjacent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Late-interaction scores of leaves, as :func:`~shared_context.kernels.late_interaction_scores` gives them."""
        codes, weights = codes.to(self.device), weights.to(self.device)
        beside = None if adjacent is None else adjacent.to(self.device)

        def of_piece(piece: Piece, own: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor:
            held, pairs = piece.arrays, None if beside is None else beside[places[:-1]]
            return late_interaction_scores(
                codes, weights, held.codes, held.scales, leaves=piece.leaf_rows(own), adjacent=pairs
            )

        return _scattered(self.pieces, [piece.leaf_count for piece in self.pieces], rows, of_piece, self.device)

    def cosines(self, embedding: torch.Tensor, spans: torch.Tensor | None = None) -> torch.Tensor:
        """Of spans, by default all, the cosine with an embedding [dimension]."""
        asked = embedding.to(self.device)

        def of_piece(piece: Piece, own: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor:
            chosen = piece.span_rows(own)
            return (piece.arrays.embeddings if chosen is None else piece.arrays.embeddings[chosen]) @ asked

        return _scattered(self.pieces, [piece.span_count for piece in self.pieces], spans, of_piece, self.device)

    @property
    def codes(self) -> torch.Tensor:
        """Of all leaves, int8 [leaves, leaf_size, code_size]; joined where they are several pieces."""
        return torch.cat([piece.whole().codes for piece in self.pieces])

    @property
    def scales(self) -> torch.Tensor:
        """Of all leaves, float16 [leaves, leaf_size]; joined where they are several pieces."""
        return torch.cat([piece.whole().scales for piece in self.pieces])

    @property
    def embeddings(self) -> torch.Tensor:
        """Of all spans, float32 [spans, dimension]; joined where they are several pieces."""
        return torch.cat([piece.whole().embeddings for piece in self.pieces])

    def embeddings_of(self, spans: np.ndarray) -> np.ndarray:
        """Of some spans, which rise, float32 [spans, dimension]."""
        found, first = [], 0
        for piece in self.pieces:
            own = spans[(spans >= first) & (spans < first + piece.span_count)] - first
            rows = piece.span_rows(torch.from_numpy(own).to(self.device))
            found.append(piece.arrays.embeddings[rows].numpy(force=True))
            first += piece.span_count
        return np.concatenate(found)

    def rows(self, leaves: slice, spans: slice) -> Arrays:
        """What some documents, whose leaves and spans these are, are compared by, in main memory."""
        found, first = [], (0, 0)
        for piece in self.pieces:
            counts = piece.leaf_count, piece.span_count
            own = [
                slice(max(rows.start - at, 0), max(min(rows.stop - at, count), 0))
                for rows, at, count in zip((leaves, spans), first, counts, strict=True)
            ]
            if own[0].start < own[0].stop:
                found.append(piece.part(*own).to("cpu"))
            first = first[0] + counts[0], first[1] + counts[1]
        return found[0].joined(found[1:])

    def places(self, chunks: np.ndarray) -> list[tuple[int, int]]:
        """Each chunk's document, by its key, and its number in the document; chunks are given by their rows."""
        return list(zip(self.chunk_document[chunks].tolist(), self.chunk_number[chunks].tolist(), strict=True))

    def chunks(self, keys: Sequence[int]) -> np.ndarray:
        """Rows of all chunks of documents, rising."""
        return rows_of(self.chunk_document, keys)

    def end(self, key: int, tokens: int) -> np.ndarray:
        """Rows of the chunks that so many tokens at the end of a document reach into."""
        rows = self.chunks([key])
        behind = np.cumsum(self.chunk_length[rows][::-1])[::-1] - self.chunk_length[rows]
        return rows[behind < tokens]


def rows_of(owners: np.ndarray, some: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows of what belongs to some of the owners, rising, int64.

    Args:
        owners: what each row belongs to, rising, [rows].
        some: of these.
    """
    some = np.unique(some)
    first, behind = np.searchsorted(owners, some), np.searchsorted(owners, some, side="right")
    return np.repeat(first, behind - first) + _ranges(behind - first)


def _scattered(
    pieces: Sequence[Piece],
    counts: Sequence[int],
    rows: torch.Tensor | None,
    compare: Callable[[Piece, torch.Tensor | None, torch.Tensor], torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """What comparing pieces gives for rows of all of them together, None for all, in the order of the rows.

    Args:
        counts: rows of each piece.
        compare: is given a piece, rows of it, and the places that these have among ``rows``.
    """
    if len(pieces) == 1:
        return compare(pieces[0], rows, torch.arange(counts[0] if rows is None else len(rows), device=device))
    scores = torch.empty(sum(counts) if rows is None else len(rows), device=device)
    first = 0
    for piece, count in zip(pieces, counts, strict=True):
        if rows is None:
            places, own = torch.arange(first, first + count, device=device), None
        else:
            places = ((rows >= first) & (rows < first + count)).nonzero()[:, 0]
            own = rows[places] - first
        if len(places):
            scores[places] = compare(piece, own, places)
        first += count
    return scores


def document_edges(tree: TreeConfig, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first leaf and the first span of each of several documents, and those behind the last."""
    leaves = -(-tokens // tree.leaf_size)
    spans = -(-leaves // tree.embedded_leaves)
    return np.concatenate([[0], np.cumsum(leaves)]), np.concatenate([[0], np.cumsum(spans)])


def document_leaves(
    tree: TreeConfig, keys: Sequence[int] | np.ndarray, tokens: Sequence[int] | np.ndarray
) -> dict[str, np.ndarray]:
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


def _ranges(counts: Iterable[int]) -> np.ndarray:
    """0 to n - 1 for every n of ``counts``, one after the other."""
    counts = np.asarray(counts, dtype=np.int64)
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
