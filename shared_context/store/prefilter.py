"""The prefilter: which documents are considered at all, found by FAISS over leaf embeddings."""

from __future__ import annotations

import numpy as np

from shared_context.store.node_index import Leaves

EXHAUSTIVE_LEAVES = 20_000
"""Up to here every leaf is compared; above, an inverted file keeps the search sub-linear."""

PROBED_LISTS = 32
"""Lists of the inverted file that a search reads."""


class Prefilter:
    """A FAISS index over the leaves of a store; a document is as near to the query as its nearest leaf.

    Args:
        leaves: the store's leaves, with embeddings.
    """

    def __init__(self, leaves: Leaves):
        import faiss  # loaded where it is used: most stores never ask for it

        embeddings = np.ascontiguousarray(leaves.embeddings.numpy(), dtype=np.float32)
        count, dimension = embeddings.shape
        if count <= EXHAUSTIVE_LEAVES:
            self._index = faiss.IndexFlatIP(dimension)
        else:
            lists = int(4 * np.sqrt(count))
            self._index = faiss.index_factory(dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
            # faiss wants 39 points per list to train on; more only take longer
            sample = np.random.default_rng(0).permutation(count)[: 39 * lists]
            self._index.train(embeddings[np.sort(sample)])
            self._index.nprobe = min(PROBED_LISTS, lists)
        self._index.add(embeddings)
        self._document = leaves.document

    def documents(self, embedding: np.ndarray, count: int) -> np.ndarray:
        """Keys of the ``count`` documents nearest to a query's embedding [dimension], fewer if there are fewer."""
        total = self._index.ntotal
        wanted = min(total, 4 * count)
        while True:
            found = self._index.search(embedding[None], wanted)[1][0]
            keys = list(dict.fromkeys(self._document[found[found >= 0]].tolist()))
            if len(keys) >= count or wanted == total:
                return np.array(keys[:count], dtype=np.int64)
            wanted = min(total, 4 * wanted)
