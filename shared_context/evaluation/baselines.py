"""What this library is measured against: retrieval over chunks as LlamaIndex does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from shared_context import SharedLLMModel
from shared_context.evaluation.questions import Span
from shared_context.integrations.llamaindex import SharedLLM
from shared_context.store.embedder import Embedder

CHUNK_SIZE = 256
"""Tokens of a chunk at most, counted by the model's own tokenizer."""

CHUNK_OVERLAP = 20

Ranking = Literal["vector", "bm25", "fusion by rank", "fusion by score"]


class StoreEmbedding(BaseEmbedding):
    """A store's embedder as a LlamaIndex embedding, so that both sides embed with the same model."""

    _embedder: Any = PrivateAttr()

    def __init__(self, embedder: Embedder):
        super().__init__(model_name=embedder.name)
        self._embedder = embedder

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode(texts).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class ChunkedRAG:
    """A VectorStoreIndex over chunks from a SentenceSplitter.

    Args:
        model: whose tokenizer counts, and which answers.
        embedder: embeds chunks and questions.
        documents: texts by id.
        chunk_size, chunk_overlap: tokens; without a size the splitter's own defaults hold for both, 1,024 and 200
            tokens of LlamaIndex's own tokenizer.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        embedder: Embedder,
        documents: Mapping[str, str],
        *,
        chunk_size: int | None = CHUNK_SIZE,
        chunk_overlap: int = CHUNK_OVERLAP,
    ):
        self._model = model
        splitter = (
            SentenceSplitter()
            if chunk_size is None
            else SentenceSplitter(
                chunk_size=chunk_size,
                chunk_overlap=chunk_overlap,
                tokenizer=lambda text: model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
            )
        )
        self.index = VectorStoreIndex.from_documents(
            [Document(text=text, id_=id) for id, text in documents.items()],
            embed_model=StoreEmbedding(embedder),
            transformations=[splitter],
        )

    @cached_property
    def _tokens(self) -> dict[str, int]:
        # Counted when first asked for: it is no part of indexing, which is timed.
        texts = {id: node.get_content(MetadataMode.NONE) for id, node in self.index.docstore.docs.items()}
        return {id: self._model.count_tokens(text) for id, text in texts.items()}

    def __len__(self) -> int:
        return len(self._tokens)

    def save(self, folder: Path) -> None:
        """Write the index as LlamaIndex persists it."""
        self.index.storage_context.persist(persist_dir=folder)

    def top(self, question: str, k: int) -> list[NodeWithScore]:
        """The ``k`` best chunks, best first."""
        return self.index.as_retriever(similarity_top_k=k).retrieve(question)

    def retriever(self, ranking: Ranking, fused: int | None = None) -> BaseRetriever:
        """A retriever of all chunks that the ranking has.

        Args:
            ranking: by embedding, by BM25, or by a fusion of both, which takes the question as it is.
            fused: chunks that each side of a fusion brings; None is all.

        Raises:
            ImportError: BM25 is not installed.
        """
        depth = len(self) if fused is None else min(fused, len(self))
        if ranking == "vector":
            return self.index.as_retriever(similarity_top_k=depth)
        if ranking == "bm25":
            from llama_index.retrievers.bm25 import BM25Retriever  # an extra that the other baselines do without

            return BM25Retriever.from_defaults(docstore=self.index.docstore, similarity_top_k=depth)
        return QueryFusionRetriever(
            [self.retriever("vector", fused), self.retriever("bm25", fused)],
            llm=MockLLM(),  # never asked: the one query is the question itself
            mode=FUSION_MODES.RECIPROCAL_RANK if ranking == "fusion by rank" else FUSION_MODES.RELATIVE_SCORE,
            similarity_top_k=2 * depth,
            num_queries=1,
            use_async=False,
        )

    def within(self, ranked: Iterable[NodeWithScore], tokens: int) -> list[NodeWithScore]:
        """The best of ranked chunks, best first, that have no more than so many tokens together.

        As in a store's selection, a chunk that does not fit any more is passed over for the next best that does.
        """
        chosen = []
        for chunk in ranked:
            if self._tokens[chunk.node_id] <= tokens:
                chosen.append(chunk)
                tokens -= self._tokens[chunk.node_id]
        return chosen

    def most_within(self, question: str, tokens: int) -> int:
        """The largest k for which the ``k`` best chunks have no more than so many tokens together, at least 1."""
        ends = accumulate(self._tokens[chunk.node_id] for chunk in self.top(question, len(self)))
        return max(1, sum(end <= tokens for end in ends))

    def context(self, question: str, tokens: int) -> str:
        """The best chunks that have no more than so many tokens together, but one at least, as they are pasted."""
        return pasted(self.top(question, self.most_within(question, tokens)))

    @staticmethod
    def span(chunk: NodeWithScore) -> Span:
        """Where in its document a chunk stands."""
        node = chunk.node
        assert isinstance(node, TextNode) and node.ref_doc_id is not None
        assert node.start_char_idx is not None and node.end_char_idx is not None
        return Span(node.ref_doc_id, node.start_char_idx, node.end_char_idx)

    def count_tokens(self, chunks: Iterable[NodeWithScore]) -> int:
        """Tokens of chunks; what two of them overlap by is in the prompt twice and counts twice."""
        return sum(self._tokens[chunk.node_id] for chunk in chunks)

    def query_engine(self, llm: SharedLLM, k: int) -> BaseQueryEngine:
        """A streaming query engine that pastes the ``k`` best chunks, in LlamaIndex's default response mode.

        That mode, "compact", makes one call as long as the chunks fit the model's window.
        """
        return self.index.as_query_engine(llm=llm, similarity_top_k=k, streaming=True)


def retrieval_from(
    chunks: Iterable[tuple[str, np.ndarray]], embedder: Embedder
) -> Callable[[str], Sequence[NodeWithScore]]:
    """LlamaIndex's default retrieval from chunks that are embedded already; the embedder is for the questions."""
    nodes = [TextNode(text=text, embedding=embedding.tolist()) for text, embedding in chunks]
    return VectorStoreIndex(nodes, embed_model=StoreEmbedding(embedder)).as_retriever().retrieve


def pasted(chunks: Iterable[NodeWithScore]) -> str:
    """Chunks as the text of a context, a blank line between them."""
    return "\n\n".join(chunk.text for chunk in chunks)
