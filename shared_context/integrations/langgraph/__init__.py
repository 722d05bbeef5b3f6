"""LangGraph: threads that a store keeps, whose old turns are injected, and items that it finds again.

``graph.compile(checkpointer=SharedContextSaver(store))`` stands where another checkpointer stood, and so does
``store=SharedContextMemoryStore(...)`` for long-term memory. Everything here translates; the computing is the store's
and the model's.
"""

try:
    import langgraph.checkpoint.sqlite  # noqa: F401
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "langgraph":
        raise
    raise ImportError(
        "shared_context.integrations.langgraph needs langgraph-checkpoint-sqlite, which is not installed: "
        "pip install sharedllm[langgraph]"
    ) from missing

from shared_context.integrations.langgraph.memory_store import SharedContextMemoryStore
from shared_context.integrations.langgraph.saver import SharedContextSaver

__all__ = ["SharedContextMemoryStore", "SharedContextSaver"]
