"""All leaves of all documents side by side in memory, and the statistics that their scores need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import late_interaction_scores
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
class _Document:
    token_ids: np.ndarray
    codes: torch.Tensor
    scales: torch.Tensor
    embeddings: torch.Tensor


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
        self._documents: dict[int, _Document] = {}
        self.frequency = np.zeros(vocabulary, dtype=np.int64)
        self._leaf_count = 0
        self._leaves: Leaves | None = None
        self.headers = HeaderIndex()

    def __len__(self) -> int:
        """Documents held."""
        return len(self._documents)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(d.token_ids) for d in self._documents.values())

    def token_ids(self) -> dict[int, np.ndarray]:
        """Token ids of all documents by their keys."""
        return {key: document.token_ids for key, document in self._documents.items()}

    def add(self, key: int, token_ids: np.ndarray, nodes: NodeData) -> None:
        """Take in a document; one that a break has let in half is taken in anew."""
        if key in self._documents:
            self.remove(key)
        self._documents[key] = self._of(token_ids, nodes)
        self._count(token_ids, 1)
        self._leaves = None

    def extend(self, key: int, new_key: int, first: int, token_ids: np.ndarray, nodes: NodeData) -> None:
        """Take in that a document got other tokens from token ``first`` on, where a chunk begins, and another key."""
        old, more = self._documents.pop(key), self._of(token_ids, nodes)
        leaf = first // self._tree.leaf_size
        kept = {"token_ids": first, "embeddings": leaf // self._tree.embedded_leaves}
        joined = {}
        for field in fields(_Document):
            before, behind = (getattr(document, field.name) for document in (old, more))
            before = before[: kept.get(field.name, leaf)]
            both = [before, behind] if isinstance(before, np.ndarray) else [before.cpu(), behind]
            joined[field.name] = np.concatenate(both) if isinstance(before, np.ndarray) else torch.cat(both)
        self._documents[new_key] = _Document(**joined)
        if first < len(old.token_ids):
            self._count(old.token_ids[first:], -1)
        self._count(token_ids, 1)
        self._leaves = None

    def _of(self, token_ids: np.ndarray, nodes: NodeData) -> _Document:
        size = self._tree.leaf_size
        tokens = len(token_ids)
        leaves = -(-tokens // size)
        # Repeating the last token fills the last leaf up without touching any maximum over its tokens.
        rows = np.minimum(np.arange(leaves * size), tokens - 1)
        return _Document(
            token_ids,
            torch.from_numpy(nodes.codes[rows].reshape(leaves, size, -1)),
            torch.from_numpy(nodes.scales[rows].reshape(leaves, size)),
            torch.from_numpy(nodes.embeddings.copy()),
        )

    def remove(self, key: int) -> None:
        """Forget a document."""
        self._count(self._documents.pop(key).token_ids, -1)
        self._leaves = None

    def _count(self, token_ids: np.ndarray, sign: int) -> None:
        leaf = np.arange(len(token_ids)) // self._tree.leaf_size
        once_per_leaf = np.unique(leaf * len(self.frequency) + token_ids) % len(self.frequency)
        self.frequency += sign * np.bincount(once_per_leaf, minlength=len(self.frequency))
        self._leaf_count += sign * (int(leaf[-1]) + 1)

    def weights(self, token_ids: np.ndarray) -> torch.Tensor:
        """Inverse leaf frequency of tokens, ``ln((n + 1) / (n_t + 0.5))``, float32 [tokens]."""
        return inverse_leaf_frequency(self.frequency[token_ids], self._leaf_count)

    def leaves(self) -> Leaves:
        """All leaves of at least one document; the arrays are joined again after a change."""
        if self._leaves is None:
            self._leaves = self._join()
        return self._leaves

    def _join(self) -> Leaves:
        keys = sorted(self._documents)
        documents = [self._documents[key] for key in keys]
        arrays = document_leaves(self._tree, keys, [len(document.token_ids) for document in documents])
        joined = {
            name: torch.cat([getattr(d, name).to(self.device) for d in documents])
            for name in ("codes", "scales", "embeddings")
        }
        # The documents' own arrays become views of the joined ones, so that nothing is held twice.
        at = span_at = 0
        for key, document in zip(keys, documents, strict=True):
            own, own_spans = slice(at, at + len(document.codes)), slice(span_at, span_at + len(document.embeddings))
            at, span_at = own.stop, own_spans.stop
            views = joined["codes"][own], joined["scales"][own], joined["embeddings"][own_spans]
            self._documents[key] = _Document(document.token_ids, *views)
        spans = torch.from_numpy(arrays.pop("spans")).to(self.device)
        return Leaves(**joined, spans=spans, **arrays)


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
