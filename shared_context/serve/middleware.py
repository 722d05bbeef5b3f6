"""What every request passes: its id, the limit of its body, its line in the log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared_context.serve.faults import STATE, UPLOADS, Refusal
from shared_context.serve.logs import failure as told_of

log = logging.getLogger("shared_context.serve")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestLine:
    """Gives each request an id, counts it and logs it: addresses by their pattern only, and no text.

    Args:
        app: what answers.
        count: called with the route and the status of each request.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]):
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        told = scope.setdefault("state", {}).setdefault(STATE, {})
        started, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        failure: Exception | None = None
        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            failure = error
            if status == 0:
                await Refusal(500, "The server failed; its log has the reason under this request's id.").response()(
                    scope, receive, sending
                )
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            line = {
                "request_id": id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(time.monotonic() - started, 4),
                **told,
            }
            if failure is not None:
                line["failure"] = told_of(failure)
            self._count(route, status)
            log.log(logging.ERROR if status >= 500 or failure else logging.INFO, "request", extra={"fields": line})


class KnownHosts:
    """Refuses requests under a name that the server was not given, and those of pages from elsewhere.

    Without keys a server trusts whoever reaches it, and a page in a browser on the same machine can reach it under a
    name of its own that leads here; what it would read is then none of that page's. A form of such a page may send a
    file without asking first.

    Args:
        app: what answers.
        hosts: the names, without ports.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]):
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        host, origin = (_host_of(headers.get(name, b"").decode("latin-1")) for name in (b"host", b"origin"))
        if scope["type"] != "http" or (host in self._hosts and (not origin or origin in self._hosts)):
            await self._app(scope, receive, send)
            return
        known = ", ".join(sorted(self._hosts))
        if host in self._hosts:
            refusal = Refusal(
                403, f"A page of {origin[:64]!r} asks, and only pages of {known} may.", code="unknown_origin"
            )
        else:
            refusal = Refusal(
                421, f"This server is called {known}, and was asked as {host[:64]!r}.", code="unknown_host"
            )
        await refusal.response()(scope, receive, send)


def _host_of(address: str) -> str:
    """The name in a Host or an Origin, without scheme and port."""
    return re.sub(r":\d*$", "", address.rpartition("/")[2]).strip("[]").lower()


class BodyLimit:
    """Refuses bodies that are larger than allowed with 413, as soon as that is known.

    Args:
        app: what answers.
        limit: bytes of any body but an upload's.
        upload_limit: bytes of an upload's.
    """

    def __init__(self, app: ASGIApp, limit: int, upload_limit: int):
        self._app, self._limit, self._upload_limit = app, limit, upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._upload_limit if scope["path"] == UPLOADS else self._limit
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        message = f"The body is larger than the {limit:,} bytes that are taken here; send less, or in several requests."
        if declared.isdigit() and int(declared) > limit:
            refusal = Refusal(413, message, code="body_too_large", headers={"Connection": "close"})
            await refusal.response()(scope, receive, send)
            return
        received = 0

        async def receiving() -> Message:
            nonlocal received
            part = await receive()
            received += len(part.get("body", b""))
            if received > limit:
                # The framework lets its own exception through while a body is read, and no other one.
                raise HTTPException(413, message)
            return part

        await self._app(scope, receiving, send)
