"""Chunked RAG as LangChain does it, for what it takes in time and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter

from shared_context import SharedLLMModel
from shared_context.integrations.langchain import ChatSharedLLM
from shared_context.store.embedder import Embedder

PROMPT = "Answer from the context.\n\n{context}\n\nQuestion: {input}"


class StoreEmbeddings(Embeddings):
    """A store's embedder as LangChain embeddings."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class LangChainRAG:
    """An InMemoryVectorStore over chunks from a RecursiveCharacterTextSplitter.

    Args:
        model: whose tokenizer counts, and which answers.
        embedder: embeds chunks and questions.
        documents: texts by id.
        chunk_size, chunk_overlap: tokens; without a size the splitter's own defaults hold for both, 4,000 and 200
            characters.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        embedder: Embedder,
        documents: Mapping[str, str],
        *,
        chunk_size: int | None,
        chunk_overlap: int,
    ):
        splitter = (
            RecursiveCharacterTextSplitter()
            if chunk_size is None
            else RecursiveCharacterTextSplitter(
                chunk_size=chunk_size, chunk_overlap=chunk_overlap, length_function=model.count_tokens
            )
        )
        self._model = model
        self._chunks = splitter.split_documents([Document(text, id=id) for id, text in documents.items()])
        self._store = InMemoryVectorStore.from_documents(self._chunks, StoreEmbeddings(embedder))

    def save(self, folder: Path) -> None:
        """Write the chunks as LangChain dumps them: one JSON file."""
        self._store.dump(str(folder / "chunks.json"))

    def most_within(self, question: str, tokens: int) -> tuple[int, int]:
        """The largest k for which the ``k`` best chunks have no more than so many tokens together, and their tokens."""
        best = self._store.similarity_search(question, k=len(self._chunks))
        ends = list(accumulate(self._model.count_tokens(chunk.page_content) for chunk in best))
        k = max(1, sum(end <= tokens for end in ends))
        return k, ends[k - 1]

    def context(self, question: str, tokens: int) -> str:
        """The best chunks that have no more than so many tokens together, but one at least, as they are pasted."""
        return _pasted(self._store.similarity_search(question, k=self.most_within(question, tokens)[0]))

    def stream(self, question: str, k: int) -> Iterator[str]:
        """The answer from the ``k`` best chunks, pasted, cut after one token."""
        retriever = self._store.as_retriever(search_kwargs={"k": k})
        chain = (
            {"context": retriever | _pasted, "input": RunnablePassthrough()}
            | ChatPromptTemplate.from_template(PROMPT)
            | ChatSharedLLM(model=self._model, max_new_tokens=1)
            | StrOutputParser()
        )
        return chain.stream(question)


class KnownEmbeddings(StoreEmbeddings):
    """Embeddings of chunks that are embedded already; the embedder is for the questions."""

    def __init__(self, embedder: Embedder, known: Sequence[np.ndarray]):
        super().__init__(embedder)
        self._known = known

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [embedding.tolist() for embedding in self._known]

    def embed_query(self, text: str) -> list[float]:
        return super().embed_documents([text])[0]


def retrieval_from(chunks: Iterable[tuple[str, np.ndarray]], embedder: Embedder) -> Callable[[str], Sequence[Document]]:
    """LangChain's default retrieval from chunks that are embedded already; the embedder is for the questions."""
    texts, embeddings = zip(*chunks, strict=True)
    return InMemoryVectorStore.from_texts(list(texts), KnownEmbeddings(embedder, embeddings)).as_retriever().invoke


def _pasted(chunks: list[Document]) -> str:
    return "\n\n".join(chunk.page_content for chunk in chunks)
