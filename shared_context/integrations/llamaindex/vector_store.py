"""SharedContextVectorStore: a context store where LlamaIndex expects a vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.simple import NAMESPACE_SEP, SimpleVectorStore, SimpleVectorStoreData
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from shared_context.errors import ConfigError, QueryError
from shared_context.integrations.llamaindex.copies import OverStore, Sharing
from shared_context.integrations.llamaindex.docstore import PERSISTED, SharedContextDocumentStore
from shared_context.integrations.llamaindex.documents import to_documents, to_llamaindex
from shared_context.integrations.llamaindex.filters import to_filters
from shared_context.integrations.llamaindex.nodes import to_nodes
from shared_context.store.embedder import SentenceTransformerEmbedder

if TYPE_CHECKING:
    from llama_index.core.storage.storage_context import StorageContext

    from shared_context import SharedLLMContextStore

_MODES = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID)


class SharedContextVectorStore(OverStore, BasePydanticVectorStore):
    """A context store behind ``VectorStoreIndex.from_vector_store`` and ``IngestionPipeline(vector_store=...)``.

    What is added is stored as it comes, one document for each node: leave splitters out and documents stay whole. The
    store scores a question's words itself, so the embeddings of nodes are not kept. A query returns passages, with
    their places in their documents. LlamaIndex asks for an embedding model all the same, and its pipelines pass only
    nodes on that have an embedding: :class:`SharedContextEmbedding` serves for both.

    >>> embedding = SharedContextEmbedding(store)
    >>> vectors = SharedContextVectorStore(store)
    >>> IngestionPipeline(transformations=[embedding], vector_store=vectors).run(documents=documents)
    >>> index = VectorStoreIndex.from_vector_store(vectors, embed_model=embedding, transformations=[embedding])

    An index over such a store pastes text; :meth:`SharedContextIndex.from_vector_store` injects.

    Args:
        store: the store.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    def __init__(self, store: SharedLLMContextStore):
        super().__init__()
        self._store = store

    @classmethod
    def class_name(cls) -> str:
        return "SharedContextVectorStore"

    @property
    def client(self) -> SharedLLMContextStore:
        """The store."""
        return self._store

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Store nodes; one whose id is stored already takes its place.

        Raises:
            DocumentError: nodes cannot be stored (BatchError for several, with ``failures``).
        """
        return self._store.add(to_documents(nodes), replace=True) if nodes else []

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """What was added, whole; of all ids, or of those given that are there."""
        return [to_llamaindex(self._store.get(id)) for id in self._ids(node_ids, filters)]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete what was added of a document; of an unknown one there is nothing to delete."""
        SharedContextDocumentStore(self._store).delete_ref_doc(ref_doc_id, raise_error=False)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by the ids they were added with, by a filter, or by both.

        Raises:
            ConfigError: neither is given; see :meth:`clear`.
        """
        if node_ids is None and filters is None:
            raise ConfigError("delete_nodes() was given neither node_ids nor filters: clear() deletes everything")
        self._store.delete(self._ids(node_ids, filters))

    def clear(self) -> None:
        """Delete everything that was added."""
        self._store.delete(self._store.ids())

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best passages for the words of a query.

        Args:
            query: ``query_str``, ``similarity_top_k``, ``filters``, ``doc_ids`` (of documents that were handed over)
                and ``node_ids`` (of what was added) are read. ``doc_ids=[]`` finds nothing.
            kwargs: further arguments of the store's ``retrieve``.

        Raises:
            QueryError: there is an embedding without the words it was made of.
            ConfigError: the mode is none that a context store has.
        """
        if not query.query_str:
            raise QueryError("the query has no query_str: a context store scores words, not embeddings; pass the text")
        if query.mode not in _MODES:
            known = ", ".join(mode.value for mode in _MODES)
            raise ConfigError(f"mode={query.mode.value!r}: a context store knows {known}")
        ids = None
        # No document at all may be all that a user may see; no node is what an index over such a store always asks for.
        if query.doc_ids is not None or query.node_ids:
            ids = self._store.ids() if query.doc_ids is None else self._of_documents(query.doc_ids)
            ids = [id for id in ids if not query.node_ids or id in set(query.node_ids)]
        passages = self._store.retrieve(
            query.query_str, query.similarity_top_k, filters=to_filters(query.filters), doc_ids=ids, **kwargs
        )
        nodes = to_nodes(passages)
        return VectorStoreQueryResult(
            nodes=[scored.node for scored in nodes],
            similarities=[scored.get_score() for scored in nodes],
            ids=[scored.node_id for scored in nodes],
        )

    def persist(self, persist_path: str, fs: AbstractFileSystem | None = None) -> None:
        """Write the store, without its KV, to the folder ``context_store`` beside ``persist_path``.

        As with LlamaIndex's own files, what was persisted there before is replaced, once the new is there whole.

        Raises:
            ConfigError: ``fs`` is not this machine's.
        """
        if fs is not None and not isinstance(fs, LocalFileSystem):
            raise ConfigError(f"fs={fs!r}: a context store is written to a folder of this machine; leave fs out")
        folder = Path(persist_path).resolve().parent / PERSISTED
        folder.parent.mkdir(parents=True, exist_ok=True)
        # LlamaIndex reads such a file into storage_context.vector_stores, which are all it passes on to an index.
        pointer = SimpleVectorStore(SimpleVectorStoreData(metadata_dict={PERSISTED: {"path": str(folder)}}))
        pointer.persist(str(folder.with_name(f"{PERSISTED}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}")))
        if self._store.path is not None and self._store.path.resolve() == folder:
            return
        with TemporaryDirectory(dir=folder.parent, prefix=f".{PERSISTED}-") as scratch:
            self._store.persist(Path(scratch) / "new")
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            (Path(scratch) / "new").rename(folder)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _ids(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[str]:
        wanted = None if node_ids is None else set(node_ids)
        return [id for id in self._store.ids(to_filters(filters)) if wanted is None or id in wanted]

    def _of_documents(self, ref_doc_ids: Sequence[str]) -> list[str]:
        documents = SharedContextDocumentStore(self._store)
        infos = map(documents.get_ref_doc_info, dict.fromkeys(ref_doc_ids))
        return [id for info in infos if info is not None for id in info.node_ids]


def persisted_store(storage_context: StorageContext) -> Path | None:
    """The folder of the context store that a storage context was persisted with; None where there was none."""
    pointer = storage_context.vector_stores.get(PERSISTED)
    if not isinstance(pointer, SimpleVectorStore) or PERSISTED not in pointer.data.metadata_dict:
        return None
    return Path(pointer.data.metadata_dict[PERSISTED]["path"])


class SharedContextEmbedding(Sharing, BaseEmbedding):
    """The embedder of a context store as a LlamaIndex embedding model.

    It reads as much of a text as its model does, of MiniLM's 256 tokens; a store without an embedder gives the same
    single number for every text, which is enough where a :class:`SharedContextVectorStore` is filled.

    Args:
        store: the store.
    """

    _embedder: Any = PrivateAttr()

    def __init__(self, store: SharedLLMContextStore, **fields: Any):
        name = store.embedder.name if store.embedder is not None else "none"
        super().__init__(**{"model_name": name, **fields})
        self._embedder = store.embedder

    def _elsewhere(self) -> Any:
        return self._embedder.name if isinstance(self._embedder, SentenceTransformerEmbedder) else self._embedder

    def _find_again(self, elsewhere: Any) -> None:
        """Load the embedder again by its name, unless it is one of somebody's own, which was pickled.

        Raises:
            ModelNotFoundError: there is none of this name.
        """
        self._embedder = SentenceTransformerEmbedder(elsewhere) if isinstance(elsewhere, str) else elsewhere

    @classmethod
    def class_name(cls) -> str:
        return "SharedContextEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode(texts).tolist() if self._embedder is not None else [[1.0]] * len(texts)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        if self._embedder is None:
            return [1.0]
        encode = getattr(self._embedder, "encode_query", self._embedder.encode)
        return encode([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)
