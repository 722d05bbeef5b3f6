"""All leaves of all documents side by side in memory, and the statistics that their scores need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from shared_context.config import TreeConfig
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
        device: the same.
    """

    def __init__(self, tree: TreeConfig, vocabulary: int, device: torch.device | str = "cpu"):
        self._tree = tree
        self.device = device
        self._documents: dict[int, _Document] = {}
        self._frequency = np.zeros(vocabulary, dtype=np.int64)
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
        once_per_leaf = np.unique(leaf * len(self._frequency) + token_ids) % len(self._frequency)
        self._frequency += sign * np.bincount(once_per_leaf, minlength=len(self._frequency))
        self._leaf_count += sign * (int(leaf[-1]) + 1)

    def weights(self, token_ids: np.ndarray) -> torch.Tensor:
        """Inverse leaf frequency of tokens, ``ln((n + 1) / (n_t + 0.5))``, float32 [tokens]."""
        return torch.from_numpy(np.log((self._leaf_count + 1) / (self._frequency[token_ids] + 0.5))).float()

    def leaves(self) -> Leaves:
        """All leaves of at least one document; the arrays are joined again after a change."""
        if self._leaves is None:
            self._leaves = self._join()
        return self._leaves

    def _join(self) -> Leaves:
        size, per_chunk = self._tree.leaf_size, 2**self._tree.height
        keys = sorted(self._documents)
        documents = [self._documents[key] for key in keys]
        tokens = np.array([len(d.token_ids) for d in documents], dtype=np.int64)
        chunks = -(-tokens // self._tree.chunk_size)
        chunk_number = _ranges(chunks)
        chunk_length = np.minimum(
            np.repeat(tokens, chunks) - chunk_number * self._tree.chunk_size, self._tree.chunk_size
        )
        per_document = -(-tokens // size)
        number = _ranges(per_document)
        together = self._tree.embedded_leaves
        spans = -(-per_document // together)
        first_chunk = np.cumsum(chunks) - chunks
        joined = {
            name: torch.cat([getattr(d, name).to(self.device) for d in documents])
            for name in ("codes", "scales", "embeddings")
        }
        # The documents' own arrays become views of the joined ones, so that nothing is held twice.
        ends, span_ends = np.cumsum(per_document), np.cumsum(spans)
        for at, (key, document) in enumerate(zip(keys, documents, strict=True)):
            own = {name: slice(ends[at] - per_document[at], ends[at]) for name in joined}
            own["embeddings"] = slice(span_ends[at] - spans[at], span_ends[at])
            views = {name: array[own[name]] for name, array in joined.items()}
            self._documents[key] = _Document(document.token_ids, **views)
        # A leaf in the left half of its span is nearer to the span before, one in the right half to the one behind.
        span, side = number // together, np.sign(2 * (number % together) + 1 - together)
        beside = np.clip(span + side, 0, np.repeat(spans, per_document) - 1)
        first_span = np.repeat(span_ends - spans, per_document)
        return Leaves(
            **joined,
            spans=torch.from_numpy(np.stack([first_span + span, first_span + beside], axis=1)).to(self.device),
            span_document=np.repeat(np.array(keys, dtype=np.int64), spans),
            span_chunk=np.repeat(first_chunk, spans) + _ranges(spans) // (per_chunk // together),
            document=np.repeat(np.array(keys, dtype=np.int64), per_document),
            chunk=np.repeat(first_chunk, per_document) + number // per_chunk,
            slot=number % per_chunk,
            chunk_document=np.repeat(np.array(keys, dtype=np.int64), chunks),
            chunk_number=chunk_number,
            chunk_length=chunk_length,
        )


def _ranges(counts: Iterable[int]) -> np.ndarray:
    """0 to n - 1 for every n of ``counts``, one after the other."""
    counts = np.asarray(counts, dtype=np.int64)
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
