"""Indexing: chunked RAG of both frameworks as what takes a text in, for the seconds and bytes of that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from shared_context import SharedLLMModel
from shared_context.evaluation.contexts import CHUNKS
from shared_context.store.embedder import Embedder

LLAMAINDEX, LANGCHAIN = "LlamaIndex's VectorStoreIndex", "LangChain's InMemoryVectorStore"

DEFAULT_CHUNKS = {LLAMAINDEX: "default chunks (1,024 tokens)", LANGCHAIN: "default chunks (4,000 characters)"}

NOTE = (
    "The frameworks split the text and embed the chunks with the same MiniLM, LlamaIndex ten at a time, which is its "
    "default. MiniLM reads the first 256 word pieces of a chunk: of default chunks it embeds the beginning only, of "
    f"chunks of {CHUNKS[0]} tokens nearly all."
)


class Index(Protocol):
    """Chunks and their embeddings."""

    def save(self, folder: Path) -> None:
        """Write them to a folder."""
        ...


def indexers(model: SharedLLMModel, embedder: Embedder, not_run: dict[str, str]) -> dict[str, Callable[[str], Index]]:
    """What splits, embeds and indexes a text, by name: each framework with its default chunks and with smaller ones.

    Args:
        model: whose tokenizer counts the smaller chunks.
        embedder: embeds the chunks.
        not_run: is told which framework cannot run, and why.
    """
    made: dict[str, Callable[..., Index]] = {}
    try:
        from shared_context.evaluation.baselines import ChunkedRAG

        made[LLAMAINDEX] = ChunkedRAG
    except ImportError as error:
        not_run[LLAMAINDEX] = f"{error}: pip install 'shared-context[eval]'"
    try:
        from shared_context.evaluation.langchain_rag import LangChainRAG

        made[LANGCHAIN] = LangChainRAG
    except ImportError as error:
        not_run[LANGCHAIN] = f"{error}: pip install 'shared-context[eval]'"
    size, overlap = CHUNKS
    return {
        f"{framework}, {chunks}": partial(_index, rag, model, embedder, chunk_size, overlap)
        for framework, rag in made.items()
        for chunks, chunk_size in ((DEFAULT_CHUNKS[framework], None), (f"chunks of {size} tokens", size))
    }


def _index(
    rag: Callable[..., Index],
    model: SharedLLMModel,
    embedder: Embedder,
    chunk_size: int | None,
    chunk_overlap: int,
    text: str,
) -> Index:
    return rag(model, embedder, {"document": text}, chunk_size=chunk_size, chunk_overlap=chunk_overlap)
