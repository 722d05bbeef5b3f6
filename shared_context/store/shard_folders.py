"""How a store of shards lies in a folder: each shard a store in a folder of its own, and a file that says how many."""

from __future__ import annotations

import json
from pathlib import Path

from shared_context.config import require_count
from shared_context.errors import StoreFormatError, StoreUnavailableError

SHARDS_FILE = "shards.json"


def folders_of(folder: Path, shards: int) -> list[Path]:
    """Where the shards of a store lie."""
    return [folder / f"shard-{number:03}" for number in range(shards)]


def is_sharded(folder: Path) -> bool:
    """Whether a folder holds a store of shards."""
    return (folder / SHARDS_FILE).is_file()


def note_shards(folder: Path, shards: int) -> None:
    """Say how many shards a folder holds, which makes it a store of shards: done last."""
    (folder / SHARDS_FILE).write_text(json.dumps({"shards": shards}), encoding="utf-8")


def shard_folders(folder: Path) -> list[Path]:
    """The folders of a store's shards.

    Raises:
        StoreFormatError: it is no store of shards, or one of them is missing.
        StoreUnavailableError: it cannot be read.
    """
    try:
        count = json.loads((folder / SHARDS_FILE).read_text(encoding="utf-8"))["shards"]
        require_count("shards", count, "shards")
    except FileNotFoundError as error:
        raise StoreFormatError(
            f"{folder} holds no {SHARDS_FILE}, so it is no store of shards. Check the path, or make one with "
            "ShardedContextStore.create."
        ) from error
    except OSError as error:
        raise StoreUnavailableError(f"{folder / SHARDS_FILE} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError) as error:
        raise StoreFormatError(f"{folder / SHARDS_FILE} is damaged ({error}). Restore it from a copy.") from error
    folders = folders_of(folder, count)
    missing = [shard.name for shard in folders if not shard.is_dir()]
    others = sorted({path.name for path in folder.glob("shard-*")} - {shard.name for shard in folders})
    if missing or others:
        raise StoreFormatError(
            f"{folder} is a store of {count} shards: {', '.join(missing) or 'none'} missing, "
            f"{', '.join(others) or 'none'} too many. Restore them from a copy; to have another number of shards, "
            "ingest the documents into a new store."
        )
    return folders
