"""Stores wherever and however they lie: of one file or of shards, in a folder or published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.address import Address, is_address
from shared_context.remote.snapshot import find
from shared_context.shards.store import ShardedContextStore
from shared_context.store.database import Database
from shared_context.store.shard_folders import is_sharded, shard_folders
from shared_context.store.store import SharedLLMContextStore


def open_store(model: SharedLLMModel, path: str | Path | None, **options: Any) -> SharedLLMContextStore:
    """The store at a place, of one file or of shards; options are those of the two classes."""
    if path is not None and number_of_shards(path) is not None:
        return ShardedContextStore(model, path, **options)
    return SharedLLMContextStore(model, path, **options)


def number_of_shards(path: str | Path) -> int | None:
    """How many shards a store has; None where it is of one file, or not yet there."""
    if is_address(path):
        stores = len(find(Address(path)).stores)
        return stores if stores > 1 else None
    return len(shard_folders(Path(path))) if is_sharded(Path(path)) else None


def made_with(path: str | Path) -> dict[str, Any]:
    """What a store was made with: the names of its model and embedder, its config.

    Raises:
        StoreFormatError: there is no store, or what it was made with cannot be read.
    """
    if is_address(path):
        return dict(find(Address(path)).about)
    folder = Path(path)
    database = Database(shard_folders(folder)[0] if is_sharded(folder) else folder)
    try:
        with database.decoding():
            return json.loads(database.get_meta("about"))
    finally:
        database.close()
