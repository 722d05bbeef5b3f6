"""Which documents and chunks of an index are scored at all for a query."""

from __future__ import annotations

import numpy as np
import torch

from shared_context.config import require_count
from shared_context.errors import ConfigError
from shared_context.store import prefilter as prefilters
from shared_context.store.catalogue import Catalogue
from shared_context.store.leaves import Leaves
from shared_context.store.node_index import NodeIndex
from shared_context.store.prefilter import Prefilter
from shared_context.store.query import Query


class Considered:
    """Tells what of an index is considered.

    Args:
        index: what is chosen from.
        keeper: keeps how the prefilter divides spans; None keeps nothing.
    """

    def __init__(self, index: NodeIndex, keeper: Catalogue | None = None):
        self._index, self._keeper = index, keeper
        self._prefilter: tuple[Leaves, Prefilter] | None = None

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
            keys = self._nearest(embedding, keys, leaves.span_document, prefilter)
        chunks = leaves.chunks(keys)
        if prefilter_chunks is not None and prefilter_chunks < len(chunks):
            chunks = np.array(self._nearest(embedding, keys, leaves.span_chunk, prefilter_chunks))
        if recent:
            chunks = np.union1d(chunks, leaves.chunks([last]) if prefilter_chunks is None else leaves.end(last, recent))
        return chunks

    def _nearest(self, embedding: torch.Tensor, keys: list[int], of_span: np.ndarray, count: int) -> list[int]:
        """The ``count`` of what documents' spans belong to whose nearest span is nearest, in rising order."""
        leaves = self._index.leaves()
        if len(keys) < len(self._index):
            # What filters leave is usually few: their spans are compared one by one.
            spans = np.flatnonzero(np.isin(leaves.span_document, keys))
            near = leaves.cosines(embedding, torch.from_numpy(spans).to(leaves.device)).numpy(force=True)
            return sorted(list(dict.fromkeys(of_span[spans[np.argsort(-near, kind="stable")]].tolist()))[:count])
        if self._prefilter is None:
            kept = None
            if self._keeper is not None and len(leaves.span_document) > prefilters.EXHAUSTIVE_SPANS:
                kept = self._keeper.span_lists()
            self._prefilter = (leaves, Prefilter(leaves, kept))
        elif self._prefilter[0] is not leaves:
            self._prefilter[1].update(leaves)
            self._prefilter = (leaves, self._prefilter[1])
        return sorted(self._prefilter[1].nearest(embedding.numpy(), of_span, count))

    def keep(self) -> None:
        """Keep how the prefilter divides spans where much of that is not kept; called while the store is not read."""
        if self._keeper is not None and self._prefilter is not None and self._prefilter[1].due:
            self._keeper.keep_span_lists(*self._prefilter)
