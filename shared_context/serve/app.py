"""The application: routes of OpenAI's protocol over stores."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI, Response
from opentelemetry.trace import TracerProvider

from shared_context.serve.access import Keys
from shared_context.serve.engine import Engine
from shared_context.serve.faults import Refusal, add_handlers
from shared_context.serve.ingestion import Ingestion
from shared_context.serve.makes import Makes
from shared_context.serve.metrics import Metrics
from shared_context.serve.middleware import BodyLimit, KnownHosts, RequestLine
from shared_context.serve.room import ByCaller, InRoom, Room
from shared_context.serve.routes import completions, files, start_page, vector_stores
from shared_context.serve.settings import ServeConfig
from shared_context.serve.stores import Stores
from shared_context.serve.tracing import Tracing
from shared_context.serve.uploads import Files
from shared_context.serve.vllm import VLLM
from shared_context.store.store import SharedLLMContextStore


def create_app(
    stores: Mapping[str, SharedLLMContextStore],
    *,
    config: ServeConfig | None = None,
    keys: Keys | None = None,
    data: Path | None = None,
    hosts: Collection[str] | None = None,
    vllm: VLLM | None = None,
    tracer_provider: TracerProvider | None = None,
    read_only: bool = False,
) -> FastAPI:
    """An application that answers from stores; whoever runs it opens and closes them.

    Args:
        stores: open ones, by the names that requests call them.
        config: None is the defaults.
        keys: of those who may ask; None lets everybody who reaches the application.
        data: folder of uploaded files and of stores that requests make, which are served again the next time; None
            makes no stores, and forgets files at the end.
        hosts: names under which it is asked; None asks for none.
        vllm: writes the answers; closed with the application. None has them written in the process.
        tracer_provider: of OpenTelemetry; None is the process's own.
        read_only: documents are changed by nobody, whatever the keys say.

    Raises:
        ConfigError: a store's name cannot stand in an address.
    """
    config, served = config or ServeConfig(), Stores(stores)
    engine = Engine(config.parallel, config.queue)
    metrics = Metrics(engine, served)

    passing: TemporaryDirectory[str] | None = None
    if data is not None:
        uploaded = Files(data / "files")
    else:
        passing = TemporaryDirectory(prefix="shared-context-")
        uploaded = Files(Path(passing.name))
    like = next((one.store for one in served), None)
    makes = Makes(served, data / "stores" if data is not None else None, like)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        makes.open_all()
        engine.start()
        if vllm is not None:
            vllm.start()
        yield
        await asyncio.to_thread(engine.close)
        if vllm is not None:
            await vllm.close()
        makes.close()
        if passing is not None:
            passing.cleanup()

    app = FastAPI(title="shared-context", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.room = Room(
        stores=served,
        engine=engine,
        config=config,
        metrics=metrics,
        tracing=Tracing(tracer_provider),
        keys=keys,
        files=uploaded,
        ingestion=Ingestion(engine, uploaded),
        makes=makes,
        vllm=vllm,
        read_only=read_only,
    )
    add_handlers(app)
    app.add_middleware(BodyLimit, limit=config.max_body_bytes, upload_limit=config.max_upload_bytes)
    if hosts is not None:
        app.add_middleware(KnownHosts, hosts=hosts)
    app.add_middleware(RequestLine, count=metrics.request)
    app.add_api_route("/health", _health)
    app.add_api_route("/ready", _ready)
    app.add_api_route("/metrics", _metrics)
    for routes in (start_page, completions, files, vector_stores):
        app.include_router(routes.router)
    return app


async def _health() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "ok"}


async def _ready(room: InRoom) -> dict[str, str]:
    """Whether a request would be taken now."""
    if room.engine.admitted >= room.engine.limit:
        raise Refusal(503, "The queue is full.", code="queue_full")
    if room.vllm is not None:
        for model in {id(served.store.model): served.store.model for served in room.stores}.values():
            await room.vllm.check(model)
    return {"status": "ready"}


async def _metrics(room: InRoom, caller: ByCaller) -> Response:
    """Figures for Prometheus, of the whole server."""
    caller.check_operates()
    text = await room.engine.beside(room.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
