"""Indexing: chunked RAG of both frameworks as what takes texts in, for the time, bytes and memory of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

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

    def context(self, question: str, tokens: int) -> str:
        """The best chunks that have no more than so many tokens together, but one at least, as they are pasted."""
        ...


Indexer = Callable[[SharedLLMModel, Embedder, Mapping[str, str]], Index]
"""Splits, embeds and indexes documents, by id; the model's tokenizer counts the smaller chunks."""


def indexers(not_run: dict[str, str], *, default_chunks: bool = True) -> dict[str, Indexer]:
    """What indexes, by name: each framework with its default chunks and with smaller ones.

    Args:
        not_run: is told which framework cannot run, and why.
        default_chunks: with those, too.
    """
    made: dict[str, Callable[..., Any]] = {}
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
        f"{framework}, {chunks}": partial(rag, chunk_size=chunk_size, chunk_overlap=overlap)
        for framework, rag in made.items()
        for chunks, chunk_size in ((DEFAULT_CHUNKS[framework], None), (f"chunks of {size} tokens", size))
        if default_chunks or chunk_size
    }
