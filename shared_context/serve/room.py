"""What all requests of a server share, and how a route asks for it."""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request

from shared_context.serve.access import ANYONE, Caller, Keys
from shared_context.serve.engine import Engine
from shared_context.serve.ingestion import Ingestion
from shared_context.serve.makes import Makes
from shared_context.serve.metrics import Metrics
from shared_context.serve.settings import ServeConfig
from shared_context.serve.stores import ServedStore, Stores
from shared_context.serve.tracing import Tracing
from shared_context.serve.uploads import Files
from shared_context.serve.vllm import VLLM


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
        vllm: who writes answers in the engine's place; None leaves them to the process.
        read_only: documents are changed by nobody.
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
    vllm: VLLM | None
    read_only: bool = False

    async def store(self, name: str, caller: Caller, *, param: str = "model") -> ServedStore:
        """A store as a caller has it: where his key is of a namespace, that and nothing else.

        Raises:
            Refusal: there is none that the caller may use.
            ConfigError: it has no namespaces, and the caller's key is of one.
        """
        return await self.own(self.stores.get(name, caller, param=param), caller)

    async def own(self, served: ServedStore, caller: Caller) -> ServedStore:
        """What of a store is the caller's."""
        if caller.namespace is None:
            return served
        return replace(served, store=await self.engine.beside(served.store.namespace, caller.namespace))


def _room(request: Request) -> Room:
    return request.app.state.room


InRoom = Annotated[Room, Depends(_room)]


def _caller(request: Request, room: InRoom) -> Caller:
    caller = ANYONE if room.keys is None else room.keys.caller(request.headers.get("authorization"))
    return replace(caller, writes=False) if room.read_only else caller


ByCaller = Annotated[Caller, Depends(_caller)]
