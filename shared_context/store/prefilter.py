"""The prefilter: which documents and chunks are considered at all, found by FAISS over their spans' embeddings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from shared_context.errors import ConfigError
from shared_context.store.leaves import Leaves
from shared_context.store.span_lists import SPAN_BITS, SpanLists, bit_sums, mean_directions

EXHAUSTIVE_SPANS = 20_000
"""Up to here every span is compared; above, an inverted file keeps the search sub-linear."""

PROBED_LISTS = 32
"""Lists of the inverted file that a search reads first; it reads more where these hold spans of too few."""

MOST_GROWN = 4
"""An inverted file is trained anew once it holds so many times the spans that it was trained for."""

TOGETHER = 1 << 13
"""Spans whose embeddings are copied at once."""

SHARE = 8
"""What is kept is due to be written anew where one span of so many is not in it."""


class Prefilter:
    """A FAISS index over the embedded spans of a store; a change of the store costs what has changed.

    A document, or a chunk, is as near to the query as its nearest span.

    Args:
        leaves: the store's leaves, with embeddings.
        kept: how its spans were divided into lists before; None, or what is of other spans, has that learned anew.
    """

    def __init__(self, leaves: Leaves, kept: SpanLists | None = None):
        self._make(leaves, kept)

    def _make(self, leaves: Leaves, kept: SpanLists | None = None) -> None:
        faiss = _faiss()
        self._index: Any
        ids, dimension, none = _ids(leaves), leaves.dimension, np.zeros(0, np.int64)
        self._leaves, self._lists = leaves, 0
        # How spans are divided into lists, where there are some, and how many of them are not kept so.
        self._spans, self._unkept = SpanLists(np.zeros((0, dimension), np.float32), none, none, none, none), 0
        if len(ids) <= EXHAUSTIVE_SPANS:
            self._index, self._room = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension)), EXHAUSTIVE_SPANS
            self._take_in(ids)
            return
        if kept is None or len(ids) > MOST_GROWN * kept.learned[0] or not np.isin(ids, kept.ids).any():
            kept = _learned(leaves, ids)
            self._unkept = len(ids)
        self._room, self._lists = MOST_GROWN * int(kept.learned[0]), len(kept.directions)
        self._quantizer = faiss.IndexFlatIP(dimension)
        self._quantizer.add(kept.directions)
        self._index = faiss.IndexIVFFlat(self._quantizer, dimension, self._lists, faiss.METRIC_INNER_PRODUCT)
        self._spans = replace(self._spans, directions=kept.directions, learned=kept.learned)
        self._take_in(ids, kept)

    @property
    def due(self) -> bool:
        """Whether many spans are divided into lists otherwise than was kept."""
        return SHARE * self._unkept > len(self._spans.ids)

    def kept(self) -> SpanLists:
        """How spans are divided into lists, to be kept now."""
        self._unkept = 0
        return self._spans

    def update(self, leaves: Leaves) -> None:
        """Take in what has changed: documents that came and went. One that was changed has another key."""
        ids = _ids(leaves)
        if len(ids) > self._room:
            self._make(leaves)
            return
        gone = ~np.isin(self._spans.ids, ids, assume_unique=True)
        self._leaves = leaves
        if gone.any():
            self._index.remove_ids(self._spans.ids[gone])
            self._spans = self._spans.without(gone, partial(_embeddings_of, leaves, ids))
        self._take_in(ids)

    def _take_in(self, ids: np.ndarray, known: SpanLists | None = None) -> None:
        """Add spans; these are the ids of all that there are."""
        faiss = _faiss()
        there = np.isin(ids, self._spans.ids, assume_unique=True)
        lists, sums = np.zeros((2, len(ids)), np.int64)
        lists[there], sums[there] = self._spans.lists, self._spans.sums
        for some in _batches(np.flatnonzero(~there)):
            embeddings = _embeddings(self._leaves, some)
            if not self._lists:
                self._index.add_with_ids(embeddings, ids[some])
                continue
            sums[some] = bit_sums(embeddings)
            lists[some] = -1 if known is None else known.of(ids[some], sums[some])
            new = lists[some] < 0
            if new.any():
                lists[some[new]] = self._quantizer.search(embeddings[new], 1)[1][:, 0]
            self._unkept += int(new.sum())
            added = np.ascontiguousarray(ids[some]), np.ascontiguousarray(lists[some])
            self._index.add_core(len(some), faiss.swig_ptr(embeddings), *map(faiss.swig_ptr, added))
        self._spans = replace(self._spans, ids=ids, lists=lists, sums=sums)

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
            owners = list(dict.fromkeys(of_span[np.searchsorted(self._spans.ids, found[found >= 0])].tolist()))
            if len(owners) >= count or (wanted, probed) == (spans, lists):
                return owners[:count]
            wanted, probed = min(spans, 4 * wanted), min(lists, 4 * probed)


def _faiss() -> Any:
    """FAISS, whose types do not know that it takes arrays; loaded where it is used: most stores never ask for it."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"A prefilter searches with FAISS ({error}): pip install 'sharedllm[faiss]', or select without a prefilter."
        ) from error
    return faiss


def _learned(leaves: Leaves, ids: np.ndarray) -> SpanLists:
    """Lists that are made for the spans of now."""
    faiss = _faiss()
    count, lists = len(ids), int(4 * np.sqrt(len(ids)))
    index = faiss.index_factory(leaves.dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    # faiss wants 39 points per list to train on; more only take longer
    sample = np.random.default_rng(0).permutation(count)[: 39 * lists]
    index.train(_embeddings(leaves, np.sort(sample)))
    of_span, sums = np.zeros((2, count), np.int64)
    for some in _batches(np.arange(count)):
        embeddings = _embeddings(leaves, some)
        of_span[some], sums[some] = index.quantizer.search(embeddings, 1)[1][:, 0], bit_sums(embeddings)
    batches = ((_embeddings(leaves, some), of_span[some]) for some in _batches(np.arange(count)))
    directions = mean_directions(batches, (lists, leaves.dimension))
    return SpanLists(directions, ids, of_span, sums, np.array([count]))


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[first : first + TOGETHER] for first in range(0, len(rows), TOGETHER)]


def _ids(leaves: Leaves) -> np.ndarray:
    """Of each span its document's key and its number there, in one, rising as the spans do, [spans]."""
    documents, row = leaves.span_document, np.arange(len(leaves.span_document))
    return documents << SPAN_BITS | row - np.searchsorted(documents, documents)


def _embeddings_of(leaves: Leaves, ids: np.ndarray, keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Those of spans by their documents' keys and their numbers there; ``ids`` are those of all leaves."""
    return _embeddings(leaves, np.searchsorted(ids, keys << SPAN_BITS | numbers))


def _embeddings(leaves: Leaves, rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaves.embeddings_of(rows), dtype=np.float32)
