"""Uploaded files, before they are documents of a store."""

import errno
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from shared_context.serve.access import Caller
from shared_context.serve.faults import Refusal

ID = re.compile(r"file-[0-9a-f]{32}")
LONGEST_NAME = 255
CONTENT, ABOUT = "content", "about.json"


class Files:
    """Files in a folder, each in one of its own named by its id; nobody sees those of another key.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, source: Any, filename: str, purpose: str, caller: Caller) -> dict[str, Any]:
        """Keep what an open file holds; returns the file as OpenAI's protocol describes it.

        Raises:
            Refusal: there is no room for it, or it cannot be written.
        """
        id = f"file-{uuid4().hex}"
        # It is somebody else's name: nothing is ever stored under it, and its ending alone says how it is read.
        filename = re.sub(r"[\x00-\x1f\x7f/\\]", "_", filename)[-LONGEST_NAME:] or "unnamed"
        folder = self._folder / f"{id}.new"
        try:
            folder.mkdir(parents=True)
            with (folder / CONTENT).open("wb") as file:
                shutil.copyfileobj(source, file)
            about = {
                "id": id,
                "object": "file",
                "bytes": (folder / CONTENT).stat().st_size,
                "created_at": int(time.time()),
                "filename": filename,
                "purpose": purpose,
                "status": "processed",
            }
            (folder / ABOUT).write_text(json.dumps({"owner": caller.name, "file": about}), encoding="utf-8")
            folder.rename(self._folder / id)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise Refusal(
                507 if full else 503, "The file cannot be kept here now; the server's log has the reason.",
                code="no_space" if full else "files_unavailable", reason=str(error),
            ) from error  # fmt: skip
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return about

    def all(self, caller: Caller) -> list[dict[str, Any]]:
        """The caller's files, the newest first."""
        ids = (folder.name for folder in self._folder.glob("file-*"))
        found = (self._about(id, caller) for id in ids if ID.fullmatch(id))
        return sorted((about for about in found if about), key=lambda about: (-about["created_at"], about["id"]))

    def get(self, id: str, caller: Caller) -> dict[str, Any]:
        """One of the caller's files.

        Raises:
            Refusal: there is none of this id.
        """
        about = self._about(id, caller) if ID.fullmatch(id) else None
        if about is None:
            raise Refusal(404, f"There is no file {id[:64]!r}; upload one.", code="not_found", param="file_id")
        return about

    def content(self, id: str, caller: Caller) -> Path:
        """Where what was uploaded lies."""
        return self._folder / self.get(id, caller)["id"] / CONTENT

    def delete(self, id: str, caller: Caller) -> None:
        """Forget a file; a document that was made of it stays."""
        shutil.rmtree(self.content(id, caller).parent)

    def _about(self, id: str, caller: Caller) -> dict[str, Any] | None:
        try:
            kept = json.loads((self._folder / id / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept["file"] if kept["owner"] == caller.name else None
