"""Uploaded files on their way into stores."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared_context.errors import SharedContextError, UnreadableError
from shared_context.serve.access import Caller
from shared_context.serve.engine import Engine
from shared_context.serve.faults import Refusal
from shared_context.serve.stores import ServedStore
from shared_context.serve.uploads import Files
from shared_context.store.documents import Document
from shared_context.store.files import read_text
from shared_context.store.store import SharedLLMContextStore

log = logging.getLogger("shared_context.serve")

MOST_PENDING = 256
"""Files that may wait to be read."""


@dataclass
class Attached:
    """A file that is, or was to be, a document of a store.

    Attributes:
        id: of the file, and of the document.
        filename: under which it was uploaded.
        owner: name of the key that attached it.
        metadata: of the document.
        status: in_progress, completed or failed.
        error: why it failed, in OpenAI's form.
        created: seconds since 1970.
    """

    id: str
    filename: str
    owner: str | None
    metadata: Mapping[str, Any]
    status: Literal["in_progress", "completed", "failed"] = "in_progress"
    error: dict[str, str] | None = None
    created: int = field(default_factory=lambda: int(time.time()))


class Ingestion:
    """Makes documents of files, one after the other and beside the answers.

    Args:
        engine: who does it.
        files: those that were uploaded.
    """

    def __init__(self, engine: Engine, files: Files):
        self._engine, self._files = engine, files
        self._attached: dict[tuple[str, str], Attached] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(self, served: ServedStore, id: str, metadata: Mapping[str, Any], caller: Caller) -> Attached:
        """Begin to make a document of a file; one that is attached already is read again where that had failed.

        Raises:
            Refusal: too many wait.
        """
        known = self._attached.get((served.name, id))
        if known is not None and known.status != "failed":
            return known
        if len(self._tasks) >= MOST_PENDING:
            raise Refusal(
                429, f"{MOST_PENDING} files wait to be read; come back in a minute.", code="queue_full",
                headers={"Retry-After": "60"},
            )  # fmt: skip
        filename = self._files.get(id, caller)["filename"]
        attached = self._attached[served.name, id] = Attached(id, filename, caller.name, metadata)
        task = asyncio.ensure_future(self._read(served, attached, caller))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return attached

    def get(self, served: ServedStore, id: str, caller: Caller) -> Attached | None:
        """What was attached under this id by this caller; None where nothing was."""
        attached = self._attached.get((served.name, id))
        return attached if attached is not None and attached.owner == caller.name else None

    def unfinished(self, served: ServedStore, caller: Caller) -> list[Attached]:
        """What a caller attached to a store and is no document of it."""
        mine = [one for (name, _), one in self._attached.items() if name == served.name and one.owner == caller.name]
        return [one for one in mine if one.status != "completed"]

    def forget(self, served: ServedStore, id: str, caller: Caller) -> bool:
        """Forget what was attached; whether that is all that has to be done, for it had failed."""
        attached = self.get(served, id, caller)
        if attached is None:
            return False
        if attached.status == "in_progress":
            raise Refusal(409, f"The file {id!r} is being read; delete it when that is done.", param="file_id")
        del self._attached[served.name, id]
        return attached.status == "failed"

    async def _read(self, served: ServedStore, attached: Attached, caller: Caller) -> None:
        try:
            await self._engine.change(self._add, served.store, attached, caller)
            attached.status = "completed"
        except (SharedContextError, Refusal) as error:
            kind = "unsupported_file" if isinstance(error, UnreadableError) else "invalid_file"
            refusal = error if isinstance(error, Refusal) else Refusal.of(error)
            if refusal.reason is not None:
                kind = "server_error"
                log.error("ingestion", extra={"fields": {"store": served.name, "reason": refusal.reason}})
            attached.status = "failed"
            attached.error = {"code": kind, "message": f"{attached.filename}: {refusal.message}"}
        except Exception as error:
            attached.status = "failed"
            attached.error = {"code": "server_error", "message": "The server failed; its log has the reason."}
            log.error("ingestion", exc_info=error)

    def _add(self, store: SharedLLMContextStore, attached: Attached, caller: Caller) -> None:
        about, path = self._files.get(attached.id, caller), self._files.content(attached.id, caller)
        # How a file is read hangs on its ending, which the name that it was uploaded under has.
        named = path.with_name(f"content{_ending(about['filename'])}")
        if named != path:
            shutil.copyfile(path, named)
        try:
            text = read_text(named, store.config.max_document_bytes, "the file")
        finally:
            if named != path:
                named.unlink()
        store.add(Document(text, id=attached.id, metadata={**attached.metadata, "file_name": about["filename"]}))


def _ending(filename: str) -> str:
    ending = Path(filename).suffix
    return ending if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", ending) else ""


def equalities(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata that a filter asks for by plain equality: what a caller's own documents have."""
    found: dict[str, Any] = {}
    for key, value in (filters or {}).items():
        if key == "$and" and isinstance(value, list):
            for part in value:
                found |= equalities(part)
        elif not key.startswith("$") and not isinstance(value, Mapping):
            found[key] = value
    return found
