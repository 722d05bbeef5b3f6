"""Indexing: chunked RAG of both frameworks as what takes texts in, for the time, bytes and memory of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from shared_context import SharedLLMModel
from shared_context.evaluation.contexts import CHUNKS
from shared_context.store.embedder import Embedder

LLAMAINDEX, LANGCHAIN = "LlamaIndex's VectorStoreIndex", "LangChain's InMemoryVectorStore"


class Framework(NamedTuple):
    """A framework's chunked RAG: a module of this package, a class in it that is an :class:`Index`, and what to call
    the chunks that the framework makes by default.
    """

    module: str
    index_class: str
    default_chunks: str


FRAMEWORKS = {
    LLAMAINDEX: Framework("baselines", "ChunkedRAG", "default chunks (1,024 tokens)"),
    LANGCHAIN: Framework("langchain_rag", "LangChainRAG", "default chunks (4,000 characters)"),
}

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

RetrievalFrom = Callable[[Iterable[tuple[str, np.ndarray]], Embedder], Callable[[str], Sequence[object]]]
"""Indexes chunks that are embedded already, and gives what retrieves from them."""


def indexers(not_run: dict[str, str], *, default_chunks: bool = True) -> dict[str, Indexer]:
    """What indexes, by name: each framework with its default chunks and with smaller ones.

    Args:
        not_run: is told which framework cannot run, and why.
        default_chunks: with those, too.
    """
    size, overlap = CHUNKS
    return {
        f"{name}, {chunks}": partial(
            getattr(module, FRAMEWORKS[name].index_class), chunk_size=chunk_size, chunk_overlap=overlap
        )
        for name, module in _modules(not_run).items()
        for chunks, chunk_size in ((FRAMEWORKS[name].default_chunks, None), (f"chunks of {size} tokens", size))
        if default_chunks or chunk_size
    }


def retrievals(not_run: dict[str, str]) -> dict[str, RetrievalFrom]:
    """What retrieves, by framework, each as it does by default.

    Args:
        not_run: is told which framework cannot run, and why.
    """
    return {name: module.retrieval_from for name, module in _modules(not_run).items()}


def _modules(not_run: dict[str, str]) -> dict[str, ModuleType]:
    """The module of each framework that is installed."""
    found = {}
    for name, framework in FRAMEWORKS.items():
        try:
            found[name] = import_module(f"shared_context.evaluation.{framework.module}")
        except ImportError as error:
            not_run[name] = f"{error}: pip install 'sharedllm[eval]'"
    return found
