"""The routes of models and completions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import APIRouter, Request

from shared_context.serve.access import Caller
from shared_context.serve.answering import Answer
from shared_context.serve.faults import STATE, Refusal
from shared_context.serve.protocol import ChatRequest, CompletionRequest
from shared_context.serve.responses import EventStream, chat_completion, events, text_completion
from shared_context.serve.room import ByCaller, InRoom, Room
from shared_context.serve.stores import ServedStore

T = TypeVar("T")
CLIENT_GONE = 499
"""Nobody reads this status; logs and figures do."""

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """The stores that the caller may ask."""
    return {"object": "list", "data": [_model(served) for served in room.stores.seen_by(caller)]}


@router.get("/models/{name:path}")
async def model(name: str, room: InRoom, caller: ByCaller) -> dict[str, Any]:
    """One of them."""
    return _model(room.stores.get(name, caller))


@router.post("/chat/completions")
async def chat_completions(body: ChatRequest, request: Request, room: InRoom, caller: ByCaller) -> Any:
    """The answer to a conversation."""
    return await _answered(body, request, room, caller)


@router.post("/completions")
async def completions(body: CompletionRequest, request: Request, room: InRoom, caller: ByCaller) -> Any:
    """The answer to a text."""
    return await _answered(body, request, room, caller)


async def _answered(body: ChatRequest | CompletionRequest, request: Request, room: Room, caller: Caller) -> Any:
    served, told = await room.store(body.model, caller), getattr(request.state, STATE)
    told |= {"store": served.name, "key": caller.name}
    answer = Answer(room, served, body, caller, told)
    pieces = answer.pieces()
    # What is wrong with a request is known before its first piece, and so in time for a status of its own.
    await _unless_gone(request, anext(pieces))
    if body.stream:
        return EventStream(events(answer, pieces))
    await _unless_gone(request, _read(pieces))
    return chat_completion(answer) if isinstance(body, ChatRequest) else text_completion(answer)


def _model(served: ServedStore) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "shared-context"}


async def _read(pieces: AsyncIterator[str]) -> None:
    async for _ in pieces:
        pass


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What comes of the work; it is cancelled when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refusal(CLIENT_GONE, "The client has gone.")
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await working
