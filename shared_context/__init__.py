"""shared-context: whole documents as compressed context for short-context language models (SharedLLM).

>>> from shared_context import SharedLLMContextStore, SharedLLMModel
>>> model = SharedLLMModel.from_pretrained("smollm2-135m-instruct")
>>> store = SharedLLMContextStore(model, path="handbook.ctx")
>>> store.add("handbook.md")
>>> selection = store.select("How warm is the drying room kept?", budget=1024)
>>> model.generate("How warm is the drying room kept?", context=selection)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shared_context import errors

if TYPE_CHECKING:
    from shared_context.config import CacheConfig, StoreConfig, TreeConfig
    from shared_context.model.generation import Completion
    from shared_context.model.shared_llm import SharedLLMModel
    from shared_context.store.conversation_memory import ConversationMemory
    from shared_context.store.documents import Document
    from shared_context.store.selected import Passage, SelectedNode
    from shared_context.store.selection import Selection
    from shared_context.store.store import SharedLLMContextStore

__version__ = "0.1.0"

# Loaded when they are first asked for, so that importing the package is quick and needs neither torch nor a network.
_HOMES = {
    "CacheConfig": "config",
    "Completion": "model.generation",
    "ConversationMemory": "store.conversation_memory",
    "Document": "store.documents",
    "Passage": "store.selected",
    "SelectedNode": "store.selected",
    "Selection": "store.selection",
    "SharedLLMContextStore": "store.store",
    "SharedLLMModel": "model.shared_llm",
    "StoreConfig": "config",
    "TreeConfig": "config",
}

__all__ = [
    "CacheConfig",
    "Completion",
    "ConversationMemory",
    "Document",
    "Passage",
    "SelectedNode",
    "Selection",
    "SharedLLMContextStore",
    "SharedLLMModel",
    "StoreConfig",
    "TreeConfig",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
