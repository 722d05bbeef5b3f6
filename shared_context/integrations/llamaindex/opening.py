"""What a :class:`SharedContextIndex` is made of: store, LLM, record; and what is refused of other indexes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.llms.llm import LLM
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.settings import Settings
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, StoreFormatError
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.vector_store import SharedContextVectorStore, persisted_store


class ContextStoreStruct(IndexDict):
    """LlamaIndex's record of a :class:`SharedContextIndex`; its type is how ``load_index_from_storage`` knows it."""

    @classmethod
    def get_type(cls) -> Any:  # LlamaIndex's enumeration is closed, and what looks a type up takes any name
        return "shared_context"


class Whole(TransformComponent):
    """Leaves documents as they are, where LlamaIndex would split them by default."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return nodes


_REPLACED = {
    "embed_model": "documents are scored by the store's own embedder; give embedder=, or embedder=None for none",
    "objects": "a context store holds text; keep index nodes in a VectorStoreIndex and this index behind one of them",
    "vector_store": "use SharedContextIndex.from_vector_store(SharedContextVectorStore(store))",
    "use_async": "await ainsert(), or run from_documents() in a thread",
    "insert_batch_size": "documents are batched by their tokens; leave it out",
    "store_nodes_override": "the store keeps all text; leave it out",
    "service_context": "give llm=, transformations= and callback_manager= themselves",
}


def refuse(options: dict[str, Any], nodes: Any) -> None:
    """Refuse what only other indexes have, by the name of what stands here in its place."""
    for name in options:
        if name not in _REPLACED:
            raise TypeError(f"SharedContextIndex() got an unexpected keyword argument {name!r}")
        raise ConfigError(f"{name}= is not of a SharedContextIndex: {_REPLACED[name]}")
    if isinstance(nodes, SharedLLMContextStore):
        raise ConfigError("nodes is a SharedLLMContextStore: use SharedContextIndex.from_store(store)")


def store_in(storage_context: StorageContext | None) -> SharedLLMContextStore | None:
    """The store that a storage context brings; None where it brings none."""
    if storage_context is None:
        return None
    vectors = storage_context.vector_stores.get(DEFAULT_VECTOR_STORE, SimpleVectorStore())  # none of a persisted one
    if isinstance(vectors, SharedContextVectorStore):
        return vectors.client
    if not isinstance(vectors, SimpleVectorStore):
        raise ConfigError(other_vector_store(vectors))
    if vectors.data.embedding_dict:
        raise ConfigError(
            "storage_context= holds the vectors of another index: give this one a StorageContext of its own, or none"
        )
    return None


def persisted_with(storage_context: StorageContext) -> Path | None:
    """The folder of the store that a storage context was persisted with; None where it is a new one."""
    folder = persisted_store(storage_context)
    if folder is not None and not folder.is_dir():
        raise StoreFormatError(
            f"the store that this storage context was persisted with is not in {folder}, perhaps because it "
            "was moved: use SharedContextIndex.load(persist_dir)"
        )
    return folder


def other_vector_store(vector_store: Any) -> str:
    """What is said of a vector store that is none of a context store."""
    return (
        f"a SharedContextIndex keeps documents in a context store, not in a {type(vector_store).__name__}: give path= "
        "or store=, or StorageContext.from_defaults(vector_store=SharedContextVectorStore(store))"
    )


def shared_llm(llm: LLM | None, store: SharedLLMContextStore | None) -> SharedLLM:
    """``llm``, or where it is None the one of LlamaIndex's settings, or else one over the store's model."""
    if llm is None:
        if isinstance(Settings._llm, SharedLLM):  # Settings.llm would make an OpenAI client where nothing is set
            return Settings._llm
        return SharedLLM(model=store.model) if store is not None else SharedLLM()
    if not isinstance(llm, SharedLLM):
        raise ConfigError(
            f"llm is a {type(llm).__name__}: an index compresses with a SharedLLM; give this one to "
            "as_query_engine(llm=...) or as_chat_engine(llm=...), which then paste what is retrieved"
        )
    return llm


# What load_index_from_storage looks up.
INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[ContextStoreStruct.get_type()] = ContextStoreStruct
