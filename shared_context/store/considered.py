"""Which documents and chunks of an index are scored at all for a query."""

from __future__ import annotations

import numpy as np
import torch

from shared_context.config import require_count
from shared_context.errors import ConfigError
from shared_context.store.kept_prefilter import KeptPrefilter, Owner, spans_of
from shared_context.store.leaves import rows_of
from shared_context.store.node_index import NodeIndex
from shared_context.store.prefilter import nearest_owners
from shared_context.store.query import Query


class Considered:
    """Tells what of an index is considered.

    Args:
        index: what is chosen from.
        prefilter: tells which documents and chunks of the index are nearest to a query.
    """

    def __init__(self, index: NodeIndex, prefilter: KeptPrefilter):
        self._index, self._prefilter = index, prefilter

    def chunks(
        self,
        query: Query | None,
        keys: list[int],
        prefilter: int | None,
        prefilter_chunks: int | None,
        recent: int = 0,
    ) -> np.ndarray:
        """Rows of the chunks that are considered, of the documents that may be; rising.

        Args:
            query: None where there is none; then nothing can be nearer than all else.
            keys: of the documents that may be considered, rising.
            prefilter, prefilter_chunks: how many documents, and how many chunks; None takes all.
            recent: tokens at the end of the last document that are considered in any case.
        """
        asked = ("prefilter", prefilter, "documents"), ("prefilter_chunks", prefilter_chunks, "chunks")
        for setting, count, unit in asked:
            if count is not None:
                require_count(setting, count, unit)
                if query is None:
                    raise ConfigError(
                        f"{setting}={count}: without a query nothing is nearer than all else; leave it out."
                    )
                embedding = query.main.embedding
        if not keys:
            return np.zeros(0, np.int64)
        leaves, last = self._index.leaves(), keys[-1]
        if prefilter is not None and prefilter < len(keys):
            keys = self._nearest(embedding, keys, "document", prefilter).tolist()
        everything = len(keys) == len(self._index)
        chunks = np.arange(len(leaves.chunk_length)) if everything else leaves.chunks(keys)
        if prefilter_chunks is not None and prefilter_chunks < len(chunks):
            chunks = self._nearest(embedding, keys, "chunk", prefilter_chunks)
        if recent:
            chunks = np.union1d(chunks, leaves.chunks([last]) if prefilter_chunks is None else leaves.end(last, recent))
        return chunks

    def _nearest(self, embedding: torch.Tensor, keys: list[int], owner: Owner, count: int) -> np.ndarray:
        """The ``count`` of what documents' spans belong to whose nearest span is nearest, in rising order, int64."""
        if len(keys) == len(self._index):
            return np.sort(self._prefilter.nearest(embedding.numpy(), owner, count)[0])
        # What filters leave is usually few: their spans are compared one by one.
        leaves = self._index.leaves()
        spans = rows_of(leaves.span_document, keys)
        near = leaves.cosines(embedding, torch.from_numpy(spans).to(leaves.device)).numpy(force=True)
        return np.sort(nearest_owners(near, spans_of(leaves, owner)[spans], count)[0])
