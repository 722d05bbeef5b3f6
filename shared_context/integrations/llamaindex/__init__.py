"""LlamaIndex: whole documents in, injected context instead of pasted chunks.

``SharedContextIndex.from_documents(documents, llm=SharedLLM(model=model))`` stands where
``VectorStoreIndex.from_documents(documents)`` stood; query engines, chat engines, postprocessors, filters, streaming,
async, callbacks and instrumentation stay as they are. Everything here translates; the computing is the store's and the
model's.
"""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "llama_index":
        raise
    raise ImportError(
        "shared_context.integrations.llamaindex needs llama-index-core, which is not installed: "
        "pip install sharedllm[llamaindex]"
    ) from missing

from shared_context.integrations.llamaindex.chat_engine import SharedContextChatEngine
from shared_context.integrations.llamaindex.chat_store import SharedContextChatStore
from shared_context.integrations.llamaindex.docstore import SharedContextDocumentStore
from shared_context.integrations.llamaindex.index import SharedContextIndex
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.memory import SharedContextMemory, SharedContextMemoryBlock
from shared_context.integrations.llamaindex.retriever import SharedContextRetriever
from shared_context.integrations.llamaindex.synthesizer import SharedContextSynthesizer
from shared_context.integrations.llamaindex.vector_store import SharedContextEmbedding, SharedContextVectorStore

__all__ = [
    "SharedContextChatEngine",
    "SharedContextChatStore",
    "SharedContextDocumentStore",
    "SharedContextEmbedding",
    "SharedContextIndex",
    "SharedContextMemory",
    "SharedContextMemoryBlock",
    "SharedContextRetriever",
    "SharedContextSynthesizer",
    "SharedContextVectorStore",
    "SharedLLM",
]
