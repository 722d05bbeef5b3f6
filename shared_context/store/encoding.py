"""The chunks of documents, and their keys and values: from the cache, or computed now."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from shared_context.config import Rows, StoreConfig
from shared_context.kernels import ChunkKV, RaggedKV
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.header import header
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.line_rows import Entry
from shared_context.store.part_rows import DIGEST_BYTES
from shared_context.store.selected_chunk import SelectedChunk, ShownChunk
from shared_context.tree import important_rows, kv_entries

logger = logging.getLogger(__name__)


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
        salt: of the namespace whose chunks these are.
        is_there: whether a document has a chunk of this digest now, whatever process deletes documents.
        score: how the importance of rows is known, see :class:`~shared_context.model.importance.ImportanceScorer`.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        cache: TieredKVCache,
        config: StoreConfig,
        salt: bytes,
        is_there: Callable[[bytes], bool],
        score: Callable[[Sequence[torch.Tensor], Sequence[ChunkKV], int], list[torch.Tensor]],
    ):
        self._model, self._cache, self._config, self._salt, self._is_there = model, cache, config, salt, is_there
        self._score = score

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
        ids = header_ids(self._model, self._config, entry)
        return None if ids is None else Chunk(ids, 0)

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
        return self._encode(name, chunk, finest, coarse)

    def _encode(self, name: str, chunk: Chunk | SelectedChunk, finest: int, coarse: bool) -> ChunkKV | RaggedKV:
        """As :meth:`encode`, of a chunk by its name in the cache."""
        found = self._found(name, chunk)
        if isinstance(found, RaggedKV) and coarse and finest > 1 and _holds(found, chunk, finest):
            return found
        known = found if isinstance(found, ChunkKV) else None
        if known is not None and (known.importance is not None or not coarse):
            return known
        whole = self._complete(chunk, known, coarse or self._config.cache.finest > 1)
        self._put(name, chunk, whole)
        return whole

    def encode_for(self, chunk: SelectedChunk, rows: Rows) -> ChunkKV | RaggedKV:
        """Keys and values of all that a chunk's cut shows, and the importance that its coarse nodes need.

        Args:
            chunk: with its cut.
            rows: which of its rows grains above 1 keep.
        """
        (name,) = self._names([chunk])
        return self._encode_for(name, chunk, rows)

    def _encode_for(self, name: str, chunk: SelectedChunk, rows: Rows) -> ChunkKV | RaggedKV:
        spans = chunk.coarse_spans(rows)
        finest = 1 if chunk.rows(rows) else min(ratio for _, _, ratio in spans)
        return self._encode(name, chunk, finest, bool(spans))

    def _found(self, name: str, chunk: Chunk | SelectedChunk) -> ChunkKV | RaggedKV | None:
        """What the cache has of a chunk. A file that another program made may have any shape."""
        found = self._cache.get(name)
        if found is None:
            return None
        config, tokens = self._model.hf_model.config, len(chunk.token_ids)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        expected = self._model.compressor.layers, config.num_key_value_heads, tokens, head_dim
        if isinstance(found, RaggedKV):
            inside = not len(found.tokens) or (int(found.tokens.min()) >= 0 and int(found.tokens.max()) < tokens)
            inside = inside and int(found.counts.max()) <= tokens
            shape = *found.counts.shape, tokens if inside else -1, found.data.shape[-1]
        else:
            shape = tuple(found.data.shape[1:])
        if shape == expected and found.data.dtype in (torch.int8, self._model.dtype):
            return found
        logger.warning(
            "removing a chunk from the KV cache, it will be computed again: it is %s of shape %s, expected %s of %s",
            found.data.dtype, shape, self._model.dtype, expected,
        )  # fmt: skip
        self._cache.discard([name])
        return None

    def _put(self, name: str, chunk: Chunk | SelectedChunk, whole: ChunkKV) -> None:
        """Keep what was encoded, if the chunk is still there: a selection outlives its documents."""
        self._if_there(chunk, lambda: self._cache.put(name, self._kept(chunk, whole)))

    def _if_there(self, chunk: Chunk | SelectedChunk, write: Callable[[], None]) -> None:
        """Write to the cache what is of a chunk, unless no document has it any more."""
        digest = chunk_digest(self._salt, chunk.token_ids[chunk.lead_in :])
        if not self._is_there(digest):
            return
        write()
        if not self._is_there(digest):  # deleted between the look and the writing
            self._cache.discard([digest.hex()])

    def _complete(self, chunk: Chunk | SelectedChunk, known: ChunkKV | None, scored: bool) -> ChunkKV:
        """All of a chunk's rows, computed where they are not known, and their importance where it is asked for."""
        ids = torch.from_numpy(chunk.token_ids.astype(np.int64))
        whole = known if known is not None else self._model.compressor.encode([ids])[0]
        # Rounded before it is scored, as the cache would return it: the first answer is no other than the next.
        whole = whole.quantized() if self._config.cache.quantize else whole
        if not scored or whole.importance is not None:
            return whole
        (importance,) = self._score([ids], [whole], chunk.lead_in)
        return replace(whole, importance=importance)

    def _kept(self, chunk: Chunk | SelectedChunk, whole: ChunkKV) -> ChunkKV | RaggedKV:
        """What the cache keeps of a chunk."""
        finest = self._config.cache.finest
        if finest == 1:
            return whole
        return whole.ragged(kept_rows(whole, [(chunk.lead_in, len(chunk.token_ids), finest)]))

    def shown(self, chunks: Sequence[SelectedChunk], rows: Rows) -> list[ShownChunk]:
        """What is shown of chunks.

        Where whole chunks would together take more memory than the cache may, there is nothing but what is shown. What
        is coarse from end to end stays in memory as it is shown, so that the next question finds it without the rest.

        Args:
            chunks: the chunks with their cuts.
            rows: which of their rows grains above 1 keep.
        """
        shown = []
        names = self._names(chunks)
        self._cache.prefetch(names)
        tokens = sum(len(chunk.token_ids) for chunk in chunks)
        for name, chunk in zip(names, chunks, strict=True):
            even, spans = chunk.rows(rows), chunk.coarse_spans(rows)
            if not even:
                shown.append(
                    ShownChunk(None, torch.zeros(0, dtype=torch.int64), self._coarse(name, chunk, rows, spans))
                )
                continue
            kv = self._encode_for(name, chunk, rows)
            assert isinstance(kv, ChunkKV)  # as there are rows that every head is shown
            coarse = kv.ragged(kept_rows(kv, spans)) if spans else None
            whole, taken = kv, torch.tensor(even, dtype=torch.int64)
            if kv.nbytes / kv.tokens * tokens > self._config.cache.memory_bytes:
                whole, taken = kv.only(taken), torch.arange(len(even))
            shown.append(ShownChunk(whole, taken, coarse))
        return shown

    def _coarse(self, name: str, chunk: SelectedChunk, rows: Rows, spans: Sequence[tuple[int, int, int]]) -> RaggedKV:
        """What is shown of a chunk of which nothing is whole."""
        part = hashlib.sha256(repr(spans).encode()).hexdigest()[:16]
        known = self._cache.part(name, part)
        if known is not None:
            return known
        kv = self._encode_for(name, chunk, rows)
        coarse = kv.ragged(kept_rows(kv, spans))
        self._if_there(chunk, lambda: self._cache.keep_part(name, part, coarse))
        return coarse

    def _names(self, chunks: Iterable[Chunk | SelectedChunk]) -> list[str]:
        """Keys of chunks in the KV cache: what they say, and then what else their encodings depend on."""
        identity = self._model.identity.encode()
        return [
            chunk_digest(self._salt, chunk.token_ids[chunk.lead_in :]).hex() + _lead_in_digest(chunk, identity)[:24]
            for chunk in chunks
        ]


def _holds(kept: RaggedKV, chunk: Chunk | SelectedChunk, ratio: int) -> bool:
    """Whether what was kept of a chunk, by whatever setting, has the rows of a ratio."""
    return kv_entries(len(chunk.token_ids) - chunk.lead_in, ratio) <= kept.entries


def kept_rows(kv: ChunkKV | RaggedKV, spans: Iterable[tuple[int, int, int]]) -> torch.Tensor:
    """The rows that coarse spans keep of an encoding whose importance is known, bool [layers, kv_heads, tokens].

    Args:
        kv: all of a chunk's rows, or the most important of them.
        spans: of each its first row of the whole encoding, the one behind its last, and its ratio.
    """
    spans = list(spans)
    scores = kv.importance if isinstance(kv, ChunkKV) else kv.scores(max(end for _, end, _ in spans))
    assert scores is not None  # it was asked for with the encoding
    kept = important_rows(scores.flatten(0, 1).numpy(), spans)
    return torch.from_numpy(np.ascontiguousarray(kept)).view(scores.shape)


def header_ids(model: SharedLLMModel, config: StoreConfig, entry: Entry) -> np.ndarray | None:
    """Token ids of the part of a document's header that a model may be shown; None where nothing is."""
    text = header(entry.metadata, entry.hidden_keys)
    ids = model.tokenize(f"{text}\n").ids[: config.tree.chunk_size] if text else None
    return ids if ids is not None and len(ids) else None


def chunk_digest(salt: bytes, token_ids: np.ndarray) -> bytes:
    """What the names of a chunk begin with: it is the same whatever the chunk is encoded by and behind.

    Args:
        salt: of the chunk's namespace, so that no other one can tell from the cache that the chunk is there.
        token_ids: of the chunk without its lead-in.
    """
    return hashlib.sha256(salt + token_ids.astype(np.int32).tobytes()).digest()[:DIGEST_BYTES]


def _lead_in_digest(chunk: Chunk | SelectedChunk, identity: bytes) -> str:
    return hashlib.sha256(identity + chunk.token_ids[: chunk.lead_in].astype(np.int32).tobytes()).hexdigest()
