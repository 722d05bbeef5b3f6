"""Ingestion: what scoring needs of a document, computed once when it is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import quantize_codes
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.tokenization import TokenizedText
from shared_context.store.codec import Codec
from shared_context.store.database import NodeData, StoredText
from shared_context.store.embedder import Embedder, embed

BATCH_TOKENS = 4096
"""Tokens that pass the first layer together, prefixes and padding included."""

EMBEDDED_TOGETHER = 128
"""Spans that an embedder is given at a time: progress is told between them."""


@dataclass(frozen=True)
class Ingestion:
    """Turns texts into node data.

    Only the first layer runs, and the embedder over spans of leaves; keys and values wait until a query selects them.
    """

    model: SharedLLMModel
    codec: Codec
    embedder: Embedder | None
    tree: TreeConfig

    @property
    def passes(self) -> int:
        """How often every token is read: by the first layer, and by the embedder where there is one."""
        return 1 if self.embedder is None else 2

    def __call__(
        self, documents: Sequence[StoredText], advance: Callable[[int], None] = lambda tokens: None
    ) -> list[NodeData]:
        """Node data of documents, each of at least one token.

        Args:
            documents: texts with their tokens.
            advance: called with the number of tokens done, as they are done; in each of the passes.

        Raises:
            ConfigError: the embedder gives something else than embeddings.
        """
        size = self.tree.chunk_size
        chunks = {
            (number, start): document.tokens.ids[start : start + size]
            for number, document in enumerate(documents)
            for start in range(0, len(document.tokens), size)
        }
        # Their memory is taken before the passes, whose own can then be used again and again.
        nodes = [self._empty(len(document.tokens)) for document in documents]
        for batch in self._batches(chunks):
            ids = [torch.from_numpy(chunks[place].astype(np.int64)) for place in batch]
            for (number, start), states in zip(batch, self.model.compressor.first_layer_states(ids), strict=True):
                self._encode(states, start, *nodes[number])
            advance(sum(map(len, ids)))
        embeddings = self._embed(documents, advance)
        return [NodeData(*parts, of_spans) for parts, of_spans in zip(nodes, embeddings, strict=True)]

    def extend(self, document: StoredText, nodes: NodeData, more: StoredText) -> tuple[StoredText, NodeData]:
        """A document with text added at its end; only its last, unfinished chunk is computed again."""
        text, tokens = document.text + more.text, document.tokens.followed_by(more.tokens)
        first = len(document.tokens) // self.tree.chunk_size * self.tree.chunk_size
        leaf = first // self.tree.leaf_size
        span = leaf // self.tree.embedded_leaves
        begin = int(tokens.bounds[first])
        tail = StoredText(text[begin:], TokenizedText(tokens.ids[first:], tokens.bounds[first:] - begin))
        (new,) = self([tail])
        whole = NodeData(
            np.concatenate([nodes.codes[:first], new.codes]),
            np.concatenate([nodes.scales[:first], new.scales]),
            np.concatenate([nodes.states[:leaf], new.states]),
            np.concatenate([nodes.embeddings[:span], new.embeddings]),
        )
        return StoredText(text, tokens), whole

    def nbytes(self, document: StoredText) -> int:
        """Bytes that a document takes with its node data."""
        tokens = len(document.tokens)
        leaves = -(-tokens // self.tree.leaf_size)
        spans = -(-leaves // self.tree.embedded_leaves)
        dimension = self.embedder.dimension if self.embedder is not None else 0
        of_leaf, of_span = 2 * self.model.hf_model.config.hidden_size, 4 * dimension
        of_token = self.codec.size + 2 + 4 + 4  # a code and its scale, the id, the bound
        return len(document.text.encode()) + tokens * of_token + leaves * of_leaf + spans * of_span

    def _batches(self, chunks: Mapping[tuple[int, int], np.ndarray]) -> Iterator[list[tuple[int, int]]]:
        """Places of chunks that run together: those of like length, so that little of a batch is padding."""
        prefix = len(self.model.prompt_format.prefix)
        batch: list[tuple[int, int]] = []
        for place in sorted(chunks, key=lambda place: len(chunks[place])):
            if batch and (len(batch) + 1) * (prefix + len(chunks[place])) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _empty(self, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Room for the codes, their scales, and the states at the last token of each leaf, of one document."""
        leaves, hidden = -(-tokens // self.tree.leaf_size), self.model.hf_model.config.hidden_size
        return (
            np.empty((tokens, self.codec.size), np.int8),
            np.empty(tokens, np.float16),
            np.empty((leaves, hidden), np.float16),
        )

    def _encode(
        self, states: torch.Tensor, start: int, codes: np.ndarray, scales: np.ndarray, last: np.ndarray
    ) -> None:
        """Fill in what is made of the states of the chunk that begins at token ``start``."""
        own, size = slice(start, start + len(states)), self.tree.leaf_size
        codes[own], scales[own] = (part.numpy() for part in quantize_codes(self.codec.encode(states)))
        ends = torch.arange(size, len(states) + size, size).clamp(max=len(states)) - 1
        # Only their direction counts, and at unit length float16 holds the states of any model.
        unit = torch.nn.functional.normalize(states[ends.to(states.device)].float(), dim=-1)
        last[start // size : start // size + len(ends)] = unit.to("cpu", torch.float16).numpy()

    def _embed(self, documents: Sequence[StoredText], advance: Callable[[int], None]) -> list[np.ndarray]:
        """Embeddings [spans, dimension] of each document's spans of leaves."""
        size = self.tree.leaf_size * self.tree.embedded_leaves
        spans = [
            (document, start, min(start + size, len(document.tokens)))
            for document in documents
            for start in range(0, len(document.tokens), size)
        ]
        counts = [-(-len(document.tokens) // size) for document in documents]
        if self.embedder is None:
            return [np.zeros((count, 0), dtype=np.float32) for count in counts]
        embeddings = []
        for at in range(0, len(spans), EMBEDDED_TOGETHER):
            together = spans[at : at + EMBEDDED_TOGETHER]
            texts = [document.text[slice(*document.tokens.characters(*span))] for document, *span in together]
            embeddings.append(embed(self.embedder, texts))
            advance(sum(end - start for _, start, end in together))
        return np.split(np.concatenate(embeddings), np.cumsum(counts)[:-1])
