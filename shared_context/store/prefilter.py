"""The prefilter: which documents and chunks are considered at all, found by FAISS over their spans' embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared_context.store.leaves import Leaves

EXHAUSTIVE_SPANS = 20_000
"""Up to here every span is compared; above, an inverted file keeps the search sub-linear."""

PROBED_LISTS = 32
"""Lists of the inverted file that a search reads first; it reads more where these hold spans of too few."""


SPAN_BITS = 24
"""Lowest bits of an id in FAISS, which say which span of its document it is; the others are the document's key."""

MOST_GROWN = 4
"""An inverted file is trained anew once it holds so many times the spans that it was trained for."""


class Prefilter:
    """A FAISS index over the embedded spans of a store; a change of the store costs what has changed.

    A document, or a chunk, is as near to the query as its nearest span.

    Args:
        leaves: the store's leaves, with embeddings.
    """

    def __init__(self, leaves: Leaves):
        self._make(leaves)

    def _make(self, leaves: Leaves) -> None:
        import faiss  # loaded where it is used: most stores never ask for it

        self._index: Any  # faiss's types do not know that it takes arrays
        count, dimension = len(leaves.span_document), leaves.dimension
        self._lists = 0
        if count <= EXHAUSTIVE_SPANS:
            self._index, self._room = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension)), EXHAUSTIVE_SPANS
        else:
            self._lists, self._room = int(4 * np.sqrt(count)), MOST_GROWN * count
            self._index = faiss.index_factory(dimension, f"IVF{self._lists},Flat", faiss.METRIC_INNER_PRODUCT)
            # faiss wants 39 points per list to train on; more only take longer
            sample = np.random.default_rng(0).permutation(count)[: 39 * self._lists]
            self._index.train(_embeddings(leaves, np.sort(sample)))
        self._ids = np.zeros(0, np.int64)
        self._leaves = leaves
        self._take_in(_ids(leaves))

    def update(self, leaves: Leaves) -> None:
        """Take in what has changed: documents that came and went. One that was changed has another key."""
        ids = _ids(leaves)
        if len(ids) > self._room:
            self._make(leaves)
            return
        gone = np.setdiff1d(self._ids, ids, assume_unique=True)
        if len(gone):
            self._index.remove_ids(gone)
        self._leaves = leaves
        self._take_in(ids)

    def _take_in(self, ids: np.ndarray) -> None:
        new = np.flatnonzero(~np.isin(ids, self._ids, assume_unique=True))
        if len(new):
            self._index.add_with_ids(_embeddings(self._leaves, new), ids[new])
        self._ids = ids

    def nearest(self, embedding: np.ndarray, of_span: np.ndarray, count: int) -> list[int]:
        """The ``count`` documents or chunks nearest to a query's embedding [dimension], nearest first.

        Only where the store has fewer are there fewer.

        Args:
            of_span: what each span belongs to, ``span_document`` or ``span_chunk`` of the leaves, [spans].
        """
        spans, lists = self._index.ntotal, self._lists
        wanted, probed = min(spans, 4 * count), min(lists, PROBED_LISTS)
        while True:
            if lists:
                self._index.nprobe = probed
            found = self._index.search(embedding[None], wanted)[1][0]
            owners = list(dict.fromkeys(of_span[np.searchsorted(self._ids, found[found >= 0])].tolist()))
            if len(owners) >= count or (wanted, probed) == (spans, lists):
                return owners[:count]
            wanted, probed = min(spans, 4 * wanted), min(lists, 4 * probed)


def _ids(leaves: Leaves) -> np.ndarray:
    """Of each span its document's key and its number there, in one, rising as the spans do, [spans]."""
    documents, row = leaves.span_document, np.arange(len(leaves.span_document))
    return documents << SPAN_BITS | row - np.searchsorted(documents, documents)


def _embeddings(leaves: Leaves, rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaves.embeddings_of(rows), dtype=np.float32)
