"""What all requests of a server share, and how a route asks for it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from shared_context.serve.access import ANYONE, Caller, Keys
from shared_context.serve.engine import Engine
from shared_context.serve.ingestion import Ingestion
from shared_context.serve.makes import Makes
from shared_context.serve.metrics import Metrics
from shared_context.serve.settings import ServeConfig
from shared_context.serve.stores import Stores
from shared_context.serve.tracing import Tracing
from shared_context.serve.uploads import Files


@dataclass(frozen=True)
class Room:
    """What all requests of a server share.

    Attributes:
        stores: what is asked.
        engine: who answers.
        config: the limits.
        metrics: who counts.
        tracing: who makes spans.
        keys: of those who may ask; None lets everybody.
        files: those that were uploaded.
        ingestion: who makes documents of them.
        makes: who makes stores.
    """

    stores: Stores
    engine: Engine
    config: ServeConfig
    metrics: Metrics
    tracing: Tracing
    keys: Keys | None
    files: Files
    ingestion: Ingestion
    makes: Makes


def _room(request: Request) -> Room:
    return request.app.state.room


InRoom = Annotated[Room, Depends(_room)]


def _caller(request: Request, room: InRoom) -> Caller:
    return ANYONE if room.keys is None else room.keys.caller(request.headers.get("authorization"))


ByCaller = Annotated[Caller, Depends(_caller)]
