"""LangChain: whole documents in the place of chunks, injected instead of pasted.

``SharedContextChain.from_documents(documents, model=model)`` stands where a retrieval chain over a vector store stood.
Everything here translates; the computing is the store's and the model's.
"""

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "langchain_core":
        raise
    raise ImportError(
        "shared_context.integrations.langchain needs langchain-core, which is not installed: "
        "pip install sharedllm[langchain]"
    ) from missing

from shared_context.integrations.langchain.chain import SharedContextChain
from shared_context.integrations.langchain.chat_model import ChatSharedLLM
from shared_context.integrations.langchain.history import SharedContextChatMessageHistory
from shared_context.integrations.langchain.llm import SharedLLM
from shared_context.integrations.langchain.retriever import SharedContextRetriever

__all__ = [
    "ChatSharedLLM",
    "SharedContextChain",
    "SharedContextChatMessageHistory",
    "SharedContextRetriever",
    "SharedLLM",
]
