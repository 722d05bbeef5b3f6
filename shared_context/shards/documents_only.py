"""What a store of shards has not: conversations and namespaces."""

from __future__ import annotations

from typing import Any

from shared_context.errors import ConfigError
from shared_context.store.store import SharedLLMContextStore


class DocumentsOnly(SharedLLMContextStore):
    """A store of documents alone; what else a store keeps is refused."""

    def conversation(self, id: str, *, recent_tokens: int = 1024) -> Any:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"conversation {id!r}: a store of shards keeps documents only; use a store of its own.")

    def conversations(self) -> list[str]:
        """None."""
        return []

    def namespace(self, name: str) -> SharedLLMContextStore:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"namespace {name!r}: a store of shards has none; make a store of shards for each tenant.")

    def namespaces(self) -> list[str]:
        """None."""
        return []
