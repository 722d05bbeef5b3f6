"""MiniLM for LlamaIndex, from the weights that a context store uses: what the chunked RAG examples retrieve with."""

from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding

from shared_context.store.embedder import load_default_embedder


class MiniLMEmbedding(BaseEmbedding):
    """all-MiniLM-L6-v2, 384 dimensions."""

    _embedder: Any = PrivateAttr(default_factory=load_default_embedder)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode(texts).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)
