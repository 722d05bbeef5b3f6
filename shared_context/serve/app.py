"""The application: routes of OpenAI's protocol over stores."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from opentelemetry.trace import TracerProvider

from shared_context.serve import completions
from shared_context.serve.access import Keys
from shared_context.serve.engine import Engine
from shared_context.serve.faults import Refusal, add_handlers
from shared_context.serve.metrics import Metrics
from shared_context.serve.middleware import BodyLimit, RequestLine
from shared_context.serve.room import ByCaller, InRoom, Room
from shared_context.serve.settings import ServeConfig
from shared_context.serve.stores import Stores
from shared_context.serve.tracing import Tracing
from shared_context.store.store import SharedLLMContextStore


def create_app(
    stores: Mapping[str, SharedLLMContextStore],
    *,
    config: ServeConfig | None = None,
    keys: Keys | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """An application that answers from stores; whoever runs it opens and closes them.

    Args:
        stores: open ones, by the names that requests call them.
        config: None is the defaults.
        keys: of those who may ask; None lets everybody who reaches the application.
        tracer_provider: of OpenTelemetry; None is the process's own.

    Raises:
        ConfigError: a store's name cannot stand in an address.
    """
    config, served = config or ServeConfig(), Stores(stores)
    engine = Engine(config.parallel, config.queue)
    metrics = Metrics(engine, served)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="shared-context", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.room = Room(served, engine, config, metrics, Tracing(tracer_provider), keys)
    add_handlers(app)
    app.add_middleware(BodyLimit, limit=config.max_body_bytes, upload_limit=config.max_upload_bytes)
    app.add_middleware(RequestLine, count=metrics.request)
    app.add_api_route("/health", _health)
    app.add_api_route("/ready", _ready)
    app.add_api_route("/metrics", _metrics)
    app.include_router(completions.router)
    return app


async def _health() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "ok"}


async def _ready(room: InRoom) -> dict[str, str]:
    """Whether a request would be taken now."""
    if room.engine.admitted >= room.engine.limit:
        raise Refusal(503, "The queue is full.", code="queue_full")
    return {"status": "ready"}


async def _metrics(room: InRoom, caller: ByCaller) -> Response:
    """Figures for Prometheus, of the whole server."""
    caller.check_operates()
    text = await room.engine.beside(room.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
