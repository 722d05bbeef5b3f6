"""The prefilter: which documents and chunks are considered at all, found by FAISS over their spans' embeddings."""

from __future__ import annotations

import numpy as np

from shared_context.store.node_index import Leaves

EXHAUSTIVE_SPANS = 20_000
"""Up to here every span is compared; above, an inverted file keeps the search sub-linear."""

PROBED_LISTS = 32
"""Lists of the inverted file that a search reads first; it reads more where these hold spans of too few."""


class Prefilter:
    """A FAISS index over the embedded spans of a store.

    A document, or a chunk, is as near to the query as its nearest span.

    Args:
        leaves: the store's leaves, with embeddings.
    """

    def __init__(self, leaves: Leaves):
        import faiss  # loaded where it is used: most stores never ask for it

        embeddings = np.ascontiguousarray(leaves.embeddings.numpy(force=True), dtype=np.float32)
        count, dimension = embeddings.shape
        self._lists = 0
        if count <= EXHAUSTIVE_SPANS:
            self._index = faiss.IndexFlatIP(dimension)
        else:
            self._lists = int(4 * np.sqrt(count))
            self._index = faiss.index_factory(dimension, f"IVF{self._lists},Flat", faiss.METRIC_INNER_PRODUCT)
            # faiss wants 39 points per list to train on; more only take longer
            sample = np.random.default_rng(0).permutation(count)[: 39 * self._lists]
            self._index.train(embeddings[np.sort(sample)])
        self._index.add(embeddings)

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
            owners = list(dict.fromkeys(of_span[found[found >= 0]].tolist()))
            if len(owners) >= count or (wanted, probed) == (spans, lists):
                return owners[:count]
            wanted, probed = min(spans, 4 * wanted), min(lists, 4 * probed)
