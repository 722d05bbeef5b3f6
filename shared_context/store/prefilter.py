"""The prefilter: which documents and chunks are considered at all, found by their spans' embeddings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from shared_context.errors import ConfigError
from shared_context.store.forks import ForkSafeLock
from shared_context.store.leaves import Leaves
from shared_context.store.span_lists import SPAN_BITS, SpanLists, bit_sums, mean_directions

EXHAUSTIVE_SPANS = 20_000
"""Up to here every span is compared; above, lists of near ones keep the search sub-linear."""

PROBED_LISTS = 32
"""Lists that a search reads first; it reads more where these hold spans of too few."""

MOST_GROWN = 4
"""Lists are learned anew once there are so many times the spans that they were learned for."""

TOGETHER = 1 << 13
"""Spans whose embeddings are copied at once."""

SHARE = 8
"""What is kept is due to be written anew where one span of so many is not in it."""

_LEARNING = ForkSafeLock()
"""FAISS learns with all cores: several at a time, as shards of one process do, wait for each other and take longer."""


class Prefilter:
    """Which documents or chunks of a store are nearest to a query; a change of the store costs what has changed.

    A document, or a chunk, is as near to the query as its nearest span. Of many spans FAISS learns how to divide them
    into lists, and those of the nearest lists are compared. It holds no copy of their embeddings, which may be mapped
    from a file and be more than fits into memory.

    Args:
        leaves: the store's leaves, with embeddings.
        kept: how its spans were divided into lists before; None, or what is of other spans, has that learned anew.
    """

    def __init__(self, leaves: Leaves, kept: SpanLists | None = None):
        self._make(leaves, kept)

    def _make(self, leaves: Leaves, kept: SpanLists | None = None) -> None:
        ids, none = _ids(leaves), np.zeros(0, np.int64)
        self._leaves = leaves
        self._quantizer: Any = None
        # How spans are divided into lists, where there are some, and how many of them are not kept so.
        self._spans, self._unkept = SpanLists(np.zeros((0, leaves.dimension), np.float32), none, none, none, none), 0
        if len(ids) <= EXHAUSTIVE_SPANS:
            self._room = EXHAUSTIVE_SPANS
            return
        if kept is None or len(ids) > MOST_GROWN * kept.learned[0] or not np.isin(ids, kept.ids).any():
            kept = _learned(leaves, ids)
            self._unkept = len(ids)
        self._room = MOST_GROWN * int(kept.learned[0])
        self._quantizer = _faiss().IndexFlatIP(leaves.dimension)
        self._quantizer.add(kept.directions)
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
        self._leaves = leaves
        if self._quantizer is None:
            return
        gone = ~np.isin(self._spans.ids, ids, assume_unique=True)
        if gone.any():
            self._spans = self._spans.without(gone, partial(_embeddings_of, leaves, ids))
        self._take_in(ids)

    def _take_in(self, ids: np.ndarray, known: SpanLists | None = None) -> None:
        """Find the lists of spans that have none yet; these are the ids of all that there are."""
        there = np.isin(ids, self._spans.ids, assume_unique=True)
        lists, sums = np.zeros((2, len(ids)), np.int64)
        lists[there], sums[there] = self._spans.lists, self._spans.sums
        for some in _batches(np.flatnonzero(~there)):
            embeddings = _embeddings(self._leaves, some)
            sums[some] = bit_sums(embeddings)
            lists[some] = -1 if known is None else known.of(ids[some], sums[some])
            new = lists[some] < 0
            if new.any():
                lists[some[new]] = self._quantizer.search(embeddings[new], 1)[1][:, 0]
            self._unkept += int(new.sum())
        self._spans = replace(self._spans, ids=ids, lists=lists, sums=sums)
        # Rows of spans, one list after the other, and where each of these begins.
        self._by_list = np.argsort(lists, kind="stable")
        self._edges = np.searchsorted(lists[self._by_list], np.arange(len(self._spans.directions) + 1))

    def nearest(self, embedding: np.ndarray, of_span: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` documents or chunks nearest to a query, nearest first.

        Only where the store has fewer are there fewer.

        Args:
            embedding: of the query, float32 [dimension].
            of_span: what each span belongs to, ``span_document`` or ``span_chunk`` of the leaves, [spans].

        Returns:
            The documents or chunks, int64 [count], and the cosine of the nearest span of each, float32 [count].
        """
        if self._quantizer is None:
            return nearest_owners(self._leaves.cosines(torch.from_numpy(embedding)).numpy(force=True), of_span, count)
        lists = len(self._spans.directions)
        probed = min(lists, PROBED_LISTS)
        while True:
            of_probed = self._quantizer.search(embedding[None], probed)[1][0]
            rows = np.sort(np.concatenate([self._by_list[slice(*self._edges[[at, at + 1]])] for at in of_probed]))
            found = nearest_owners(_embeddings(self._leaves, rows) @ embedding, of_span[rows], count)
            if len(found[0]) == count or probed == lists:
                return found
            probed = min(lists, 4 * probed)


def nearest_owners(cosines: np.ndarray, owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` owners of spans whose nearest span is nearest, nearest first.

    Args:
        cosines: of the spans with a query, float32 [spans].
        owners: what each belongs to, int64 [spans].

    Returns:
        The owners, int64 [count], and the cosine of the nearest span of each, float32 [count]; fewer where there are.
    """
    order = np.argsort(-cosines, kind="stable")
    first = np.sort(np.unique(owners[order], return_index=True)[1])[:count]
    return owners[order[first]], cosines[order[first]]


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
    with _LEARNING:
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
