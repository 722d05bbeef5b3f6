"""The chunks of documents, and their keys and values: from the cache, or computed now."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shared_context.config import StoreConfig
from shared_context.kernels import ChunkKV
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.database import Entry
from shared_context.store.header import header
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.selection import SelectedChunk

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

    def encode(self, chunks: Sequence[Chunk | SelectedChunk]) -> list[ChunkKV]:
        """Keys and values of chunks."""
        names = self._names(chunks)
        found = {name: self._cache.get(name) for name in dict.fromkeys(names)}
        for name, chunk in zip(names, chunks, strict=True):
            if found[name] is None:
                ids = torch.from_numpy(chunk.token_ids.astype(np.int64))
                (chunk_kv,) = self._model.compressor.encode([ids])
                # As the cache would return it, so that the first answer is no other than the next.
                found[name] = chunk_kv.quantized() if self._config.cache.quantize else chunk_kv
                self._cache.put(name, found[name])
                # A selection outlives its documents, and they may be deleted while it is encoded.
                self._cache.discard({_content(chunk)} & self._discarded.keys())
        return [found[name] for name in names]

    def encode_shown(
        self, chunks: Sequence[SelectedChunk], rows: Sequence[torch.Tensor]
    ) -> tuple[list[ChunkKV], Sequence[torch.Tensor]]:
        """Keys and values of chunks, and where ``rows`` lie in them.

        Where whole chunks would together take more memory than the cache may, there is nothing but those rows.
        """
        found: list[ChunkKV] = []
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        for chunk, shown in zip(chunks, rows, strict=True):
            (whole,) = self.encode([chunk])
            if whole.nbytes / whole.tokens * tokens <= self._config.cache.memory_bytes:
                return self.encode(chunks), rows
            found.append(whole.only(shown))
        return found, [torch.arange(len(shown)) for shown in rows]

    def _names(self, chunks: Iterable[Chunk | SelectedChunk]) -> list[str]:
        """Keys of chunks in the KV cache: what they say, and then what else their encodings depend on."""
        identity = self._model.identity.encode()
        return [_content(chunk) + _digest(chunk.token_ids[: chunk.lead_in], identity)[:24] for chunk in chunks]


def _content(chunk: Chunk | SelectedChunk) -> str:
    """What the names of a chunk begin with: it is the same whatever it is encoded by and behind."""
    return _digest(chunk.token_ids[chunk.lead_in :])[:40]


def _digest(token_ids: np.ndarray, before: bytes = b"") -> str:
    return hashlib.sha256(before + token_ids.astype(np.int32).tobytes()).hexdigest()
