"""MiniLM for LangChain, from the weights that a context store uses: what the chunked RAG examples retrieve with."""

from langchain_core.embeddings import Embeddings

from shared_context.store.embedder import load_default_embedder


class MiniLMEmbeddings(Embeddings):
    """all-MiniLM-L6-v2, 384 dimensions."""

    def __init__(self) -> None:
        self._embedder = load_default_embedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]
