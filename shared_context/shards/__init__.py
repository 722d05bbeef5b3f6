"""Stores that are parts of one: each searches what it holds, and the selection is the one of them all."""

from __future__ import annotations

from shared_context.shards.opening import open_store
from shared_context.shards.store import ShardedContextStore

__all__ = ["ShardedContextStore", "open_store"]
