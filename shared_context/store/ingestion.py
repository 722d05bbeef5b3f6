"""Ingestion: what scoring needs of a document, computed once when it is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import quantize_codes
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.tokenization import TokenizedText
from shared_context.store.codec import Codec
from shared_context.store.database import NodeData
from shared_context.store.embedder import Embedder

BATCH_TOKENS = 8192
"""Tokens that pass the first layer together."""


@dataclass(frozen=True)
class Ingestion:
    """Turns texts into node data.

    Only the first layer runs, and the embedder over the leaves; keys and values wait until a query selects them.
    """

    model: SharedLLMModel
    codec: Codec
    embedder: Embedder | None
    tree: TreeConfig

    def __call__(
        self, documents: Sequence[tuple[str, TokenizedText]], advance: Callable[[int], None] = lambda tokens: None
    ) -> list[NodeData]:
        """Node data of documents.

        Args:
            documents: texts with their tokens.
            advance: called with the number of tokens done, as they are done.
        """
        pieces = [
            (document, start)
            for document, (_, tokens) in enumerate(documents)
            for start in range(0, len(tokens), self.tree.chunk_size)
        ]
        # Chunks of like length run together, so that little of a batch is padding.
        pieces.sort(key=lambda piece: min(len(documents[piece[0]][1]) - piece[1], self.tree.chunk_size))
        together = max(1, BATCH_TOKENS // self.tree.chunk_size)
        done: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for at in range(0, len(pieces), together):
            batch = pieces[at : at + together]
            ids = [documents[d][1].ids[start : start + self.tree.chunk_size] for d, start in batch]
            states = self.model.compressor.first_layer_states([torch.from_numpy(i.astype(np.int64)) for i in ids])
            for piece, chunk_states in zip(batch, states, strict=True):
                done[piece] = self._encode(chunk_states)
            advance(sum(map(len, ids)))
        embeddings = self._embed(documents)
        nodes = []
        for document, (_, tokens) in enumerate(documents):
            parts = [done[document, start] for start in range(0, len(tokens), self.tree.chunk_size)]
            codes, scales, last = (np.concatenate(part) for part in zip(*parts, strict=True))
            nodes.append(NodeData(codes, scales, last, embeddings[document]))
        return nodes

    def extend(
        self, text: str, tokens: TokenizedText, nodes: NodeData, more: str
    ) -> tuple[str, TokenizedText, NodeData]:
        """A document with text added at its end; only its last, unfinished chunk is computed again."""
        whole, joined = text + more, tokens.followed_by(self.model.tokenize(more))
        first = len(tokens) // self.tree.chunk_size * self.tree.chunk_size
        leaf = first // self.tree.leaf_size
        begin = int(joined.bounds[first])
        tail = TokenizedText(joined.ids[first:], joined.bounds[first:] - begin)
        (new,) = self([(whole[begin:], tail)])
        return (
            whole,
            joined,
            NodeData(
                np.concatenate([nodes.codes[:first], new.codes]),
                np.concatenate([nodes.scales[:first], new.scales]),
                np.concatenate([nodes.states[:leaf], new.states]),
                np.concatenate([nodes.embeddings[:leaf], new.embeddings]),
            ),
        )

    def _encode(self, states: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes, their scales, and the states at the last token of each leaf, of one chunk."""
        codes, scales = quantize_codes(self.codec.encode(states))
        size = self.tree.leaf_size
        ends = torch.arange(size, len(states) + size, size).clamp(max=len(states)) - 1
        last = states[ends.to(states.device)].to("cpu", torch.float16)
        return codes.numpy(), scales.numpy(), last.numpy()

    def _embed(self, documents: Sequence[tuple[str, TokenizedText]]) -> list[np.ndarray]:
        """Embeddings [leaves, dimension] of each document's leaves."""
        size = self.tree.leaf_size
        leaves = [
            [text[slice(*tokens.characters(s, min(s + size, len(tokens))))] for s in range(0, len(tokens), size)]
            for text, tokens in documents
        ]
        if self.embedder is None:
            return [np.zeros((len(texts), 0), dtype=np.float32) for texts in leaves]
        every = self.embedder.encode([text for texts in leaves for text in texts])
        return np.split(every, np.cumsum([len(texts) for texts in leaves])[:-1])
