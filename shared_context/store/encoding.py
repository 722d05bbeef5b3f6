"""The chunks of documents, and their keys and values: from the cache, or computed now."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from shared_context.config import Rows, StoreConfig
from shared_context.kernels import ChunkKV, RaggedKV
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.database import Entry
from shared_context.store.header import header
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.selection import SelectedChunk, ShownChunk
from shared_context.tree import important_rows

DISCARDED_KEPT = 1 << 16
"""Chunks of deleted documents that are remembered, so that no earlier selection brings their KV back."""


class Chunk(NamedTuple):
    """The tokens of a chunk.

    Attributes:
        token_ids: of the chunk behind its lead-in, int32 [lead_in + tokens].
        lead_in: tokens before the chunk that it is encoded behind.
    """

    token_ids: np.ndarray
    lead_in: int


class ChunkEncoder:
    """Encodes chunks when they are first asked for, and keeps their keys and values in a cache.

    Args:
        model: the model that encodes.
        cache: where keys and values are kept.
        config: the store's settings.
    """

    def __init__(self, model: SharedLLMModel, cache: TieredKVCache, config: StoreConfig):
        self._model, self._cache, self._config = model, cache, config
        self._discarded: OrderedDict[str, None] = OrderedDict()

    def chunk(self, token_ids: np.ndarray, number: int) -> Chunk:
        """A chunk of a document's tokens."""
        first = number * self._config.tree.chunk_size
        begin = max(0, first - self._config.lead_in)
        return Chunk(token_ids[begin : first + self._config.tree.chunk_size], first - begin)

    def chunks(self, token_ids: np.ndarray) -> list[Chunk]:
        """A document's tokens chunk by chunk."""
        count = -(-len(token_ids) // self._config.tree.chunk_size)
        return [self.chunk(token_ids, number) for number in range(count)]

    def header(self, entry: Entry) -> Chunk | None:
        """The part of a document's header that a model may be shown, as a chunk; None where nothing is."""
        text = header(entry.metadata, entry.hidden_keys)
        if not text:
            return None
        ids = self._model.tokenize(f"{text}\n").ids[: self._config.tree.chunk_size]
        return Chunk(ids, 0) if len(ids) else None

    def discard(self, removed: Iterable[tuple[Entry, np.ndarray]], added: Iterable[tuple[Entry, np.ndarray]]) -> None:
        """Forget the KV of documents that are gone, but for chunks that new ones have, too.

        Keys and values give away what the text said; they must not outlive it.

        Args:
            removed, added: entries and token ids of documents.
        """
        old, new = (
            {_content(chunk) for entry, ids in documents for chunk in (*self.chunks(ids), self.header(entry)) if chunk}
            for documents in (removed, added)
        )
        self._discarded |= dict.fromkeys(old - new)
        while len(self._discarded) > DISCARDED_KEPT:
            self._discarded.popitem(last=False)
        self._cache.discard(old - new)

    def keep(self, chunks: Iterable[Chunk]) -> None:
        """Let the KV of chunks be kept although a document that said the same was deleted: these are still there."""
        if self._discarded:
            for chunk in chunks:
                self._discarded.pop(_content(chunk), None)

    def missing(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Those whose keys and values the cache does not hold."""
        return [chunk for chunk, name in zip(chunks, self._names(chunks), strict=True) if name not in self._cache]

    def encode(self, chunk: Chunk | SelectedChunk, *, finest: int = 1, coarse: bool = False) -> ChunkKV | RaggedKV:
        """Keys and values of a chunk, at least down to a ratio.

        Args:
            chunk: its tokens.
            finest: the finest ratio that will be shown of it. Where the cache keeps its rows down to that, they may be
                all that comes back; else all rows are computed again.
            coarse: whether rows will be chosen by importance, which is then known of what comes back.
        """
        (name,) = self._names([chunk])
        found = self._cache.get(name)
        if isinstance(found, RaggedKV) and finest >= self._config.cache.finest and coarse:
            return found
        known = found if isinstance(found, ChunkKV) else None
        if known is not None and (known.importance is not None or not coarse):
            return known
        whole = self._complete(chunk, known, coarse or self._config.cache.finest > 1)
        # A selection outlives its documents, and they may be deleted while it is encoded.
        self._cache.put(name, self._kept(chunk, whole))
        self._cache.discard({_content(chunk)} & self._discarded.keys())
        return whole

    def _complete(self, chunk: Chunk | SelectedChunk, known: ChunkKV | None, scored: bool) -> ChunkKV:
        """All of a chunk's rows, computed where they are not known, and their importance where it is asked for."""
        ids = torch.from_numpy(chunk.token_ids.astype(np.int64))
        whole = known if known is not None else self._model.compressor.encode([ids])[0]
        # Rounded before it is scored, as the cache would return it: the first answer is no other than the next.
        whole = whole.quantized() if self._config.cache.quantize else whole
        if not scored or whole.importance is not None:
            return whole
        (importance,) = self._model.compressor.importance([ids], [whole])
        return replace(whole, importance=importance)

    def _kept(self, chunk: Chunk | SelectedChunk, whole: ChunkKV) -> ChunkKV | RaggedKV:
        """What the cache keeps of a chunk."""
        finest = self._config.cache.finest
        if finest == 1:
            return whole
        return whole.ragged(kept_rows(whole, [(chunk.lead_in, len(chunk.token_ids), finest)]))

    def shown(self, chunks: Sequence[SelectedChunk], rows: Rows) -> list[ShownChunk]:
        """What is shown of chunks.

        Where whole chunks would together take more memory than the cache may, there is nothing but what is shown.

        Args:
            chunks: the chunks with their cuts.
            rows: which of their rows grains above 1 keep.
        """
        shown = []
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        for chunk in chunks:
            even, spans = chunk.rows(rows), chunk.coarse_spans(rows)
            finest = 1 if even else min(ratio for _, _, ratio in spans)
            kv = self.encode(chunk, finest=finest, coarse=bool(spans))
            coarse = kv.ragged(kept_rows(kv, spans)) if spans else None
            whole, taken = None, torch.tensor(even, dtype=torch.int64)
            if even:
                fits = kv.nbytes / kv.tokens * tokens <= self._config.cache.memory_bytes
                whole, taken = (kv, taken) if fits else (kv.only(taken), torch.arange(len(even)))
            shown.append(ShownChunk(whole, taken, coarse))
        return shown

    def _names(self, chunks: Iterable[Chunk | SelectedChunk]) -> list[str]:
        """Keys of chunks in the KV cache: what they say, and then what else their encodings depend on."""
        identity = self._model.identity.encode()
        return [_content(chunk) + _digest(chunk.token_ids[: chunk.lead_in], identity)[:24] for chunk in chunks]


def kept_rows(kv: ChunkKV | RaggedKV, spans: Iterable[tuple[int, int, int]]) -> torch.Tensor:
    """The rows that coarse spans keep of an encoding whose importance is known, bool [layers, kv_heads, tokens].

    Args:
        kv: all of a chunk's rows, or the most important of them.
        spans: of each its first row of the whole encoding, the one behind its last, and its ratio.
    """
    spans = list(spans)
    scores = kv.importance if isinstance(kv, ChunkKV) else kv.scores(max(end for _, end, _ in spans))
    by_head = scores.flatten(0, 1).numpy()
    kept = np.zeros(by_head.shape, dtype=bool)
    for start, end, ratio in spans:
        kept |= important_rows(by_head, start, end, ratio)
    return torch.from_numpy(kept).view(scores.shape)


def _content(chunk: Chunk | SelectedChunk) -> str:
    """What the names of a chunk begin with: it is the same whatever it is encoded by and behind."""
    return _digest(chunk.token_ids[chunk.lead_in :])[:40]


def _digest(token_ids: np.ndarray, before: bytes = b"") -> str:
    return hashlib.sha256(before + token_ids.astype(np.int32).tobytes()).hexdigest()
