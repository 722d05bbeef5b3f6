"""The routes of uploaded files."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import FileResponse

from shared_context.serve.room import ByCaller, InRoom
from shared_context.serve.routes.pages import page

router = APIRouter(prefix="/v1/files")


@router.post("")
async def upload(
    file: UploadFile, purpose: Annotated[str, Form(max_length=64)], room: InRoom, caller: ByCaller
) -> dict[str, Any]:
    """Keep a file."""
    caller.check_writes()
    return await room.engine.beside(room.files.put, file.file, file.filename or "", purpose, caller)


@router.get("")
async def list_files(
    room: InRoom,
    caller: ByCaller,
    after: str | None = None,
    limit: int = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The caller's files."""
    found = await room.engine.beside(room.files.all, caller)
    return page(found if order == "desc" else found[::-1], after, limit)


@router.get("/{id}")
async def one(id: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """One file."""
    return room.files.get(id, caller)


@router.get("/{id}/content")
async def content(id: str, room: InRoom, caller: ByCaller) -> FileResponse:
    """What was uploaded, as it was."""
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    return FileResponse(room.files.content(id, caller), media_type="application/octet-stream", headers=headers)


@router.delete("/{id}")
async def delete(id: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """Forget a file."""
    caller.check_writes()
    await room.engine.beside(room.files.delete, id, caller)
    return {"id": id, "object": "file", "deleted": True}
