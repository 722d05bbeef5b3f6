"""Ingestion: what scoring needs of a document, computed once when it is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import quantize_codes
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.tokenization import TokenizedText
from shared_context.store.codec import Codec
from shared_context.store.embedder import Embedder, embed
from shared_context.store.leaf_words import BEFORE_CHARACTERS, LeafWords
from shared_context.store.node_data import NodeData, Part, StoredText, joined_text

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
        # Their memory is taken before the passes, whose own can then be used again and again.
        nodes = [self._empty(len(document.tokens)) for document in documents]
        token_ids = [document.tokens.ids for document in documents]
        for batch in first_layer(self.model, token_ids, self.tree.chunk_size):
            for number, start, states in batch:
                codes, scales = nodes[number]
                own = slice(start, start + len(states))
                codes[own], scales[own] = (part.numpy() for part in quantize_codes(self.codec.encode(states)))
            advance(sum(len(states) for *_, states in batch))
        embeddings = self._embed(documents, advance)
        sizes = self.tree.leaf_size, self.tree.chunk_size
        words = [LeafWords.by_chunk(document.text, document.tokens, *sizes) for document in documents]
        return [NodeData(*n, e, w) for n, e, w in zip(nodes, embeddings, words, strict=True)]

    def tail(self, last: Part, more: StoredText) -> StoredText:
        """What has to be computed when text is added to a document: its last chunk, if that is not full, and more.

        Args:
            last: the document's last chunk.
            more: the text that is added, tokenized on its own.
        """
        whole = joined_text([last.stored, more])
        size = self.tree.chunk_size
        first = 0 if len(last.stored.tokens) < size else size
        begin = int(whole.tokens.bounds[first])
        tokens = TokenizedText(whole.tokens.ids[first:], whole.tokens.bounds[first:] - begin)
        return StoredText(whole.text[begin:], tokens)

    def extend(self, last: Part, more: StoredText) -> tuple[StoredText, NodeData]:
        """The :meth:`tail` with its node data; its words are of the language of the document."""
        tail = self.tail(last, more)
        (nodes,) = self([tail])
        assert last.nodes.words is not None  # what was read back to be extended has them
        before, language = last.before, last.nodes.words.language
        if len(last.stored.tokens) == self.tree.chunk_size:
            before = (before + last.stored.text)[-BEFORE_CHARACTERS:]
        words = LeafWords.by_chunk(tail.text, tail.tokens, self.tree.leaf_size, self.tree.chunk_size, language, before)
        return tail, replace(nodes, words=words)

    def nbytes(self, document: StoredText) -> int:
        """Bytes that a document takes with its node data."""
        tokens = len(document.tokens)
        leaves = -(-tokens // self.tree.leaf_size)
        spans = -(-leaves // self.tree.embedded_leaves)
        dimension = self.embedder.dimension if self.embedder is not None else 0
        of_token = self.codec.size + 2 + 4 + 4  # a code and its scale, the id, the bound
        return len(document.text.encode()) + tokens * of_token + spans * 4 * dimension

    def _empty(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for the codes of one document and their scales."""
        return np.empty((tokens, self.codec.size), np.int8), np.empty(tokens, np.float16)

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


def first_layer(
    model: SharedLLMModel, documents: Sequence[np.ndarray], chunk_size: int
) -> Iterator[list[tuple[int, int, torch.Tensor]]]:
    """One-layer states of documents, batch by batch, in no order.

    Args:
        model: encodes.
        documents: token ids of each.
        chunk_size: tokens that see each other.

    Yields:
        For each chunk of a batch the number of its document, its first token there and states [tokens, hidden].
    """
    chunks = {
        (number, start): ids[start : start + chunk_size]
        for number, ids in enumerate(documents)
        for start in range(0, len(ids), chunk_size)
    }
    for batch in _batches(chunks, len(model.prompt_format.prefix)):
        ids = [torch.from_numpy(chunks[place].astype(np.int64)) for place in batch]
        states = model.compressor.first_layer_states(ids)
        yield [(*place, of_chunk) for place, of_chunk in zip(batch, states, strict=True)]


def _batches(chunks: Mapping[tuple[int, int], np.ndarray], prefix: int) -> Iterator[list[tuple[int, int]]]:
    """Places of chunks that run together behind a prefix: of like length, so that little of a batch is padding."""
    batch: list[tuple[int, int]] = []
    for place in sorted(chunks, key=lambda place: len(chunks[place])):
        if batch and (len(batch) + 1) * (prefix + len(chunks[place])) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
