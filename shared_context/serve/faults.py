"""What goes wrong, in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}`` under the status that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shared_context.errors import (
    BudgetError,
    ConfigError,
    DocumentChangedError,
    DocumentError,
    DocumentNotFoundError,
    DuplicateDocumentError,
    FilterError,
    QueryError,
    SharedContextError,
    StoreClosedError,
    StoreFormatError,
    StoreUnavailableError,
    WindowExceededError,
)

INVALID = "invalid_request_error"
UPLOADS = "/v1/files"
STATE = "shared_context"
"""Under this name the scope's state holds what a request's line in the log says besides."""
_STATUS: tuple[tuple[type[SharedContextError], int, str | None], ...] = (
    (WindowExceededError, 400, "context_length_exceeded"),
    (BudgetError, 400, "budget"),
    (FilterError, 400, "filters"),
    (QueryError, 400, None),
    (DuplicateDocumentError, 409, "duplicate_document"),
    (DocumentError, 400, "document_refused"),
    (DocumentNotFoundError, 404, "document_not_found"),
    (DocumentChangedError, 409, "document_changed"),
    (ConfigError, 400, None),
    (StoreClosedError, 503, "store_unavailable"),
    (StoreUnavailableError, 503, "store_unavailable"),
    (StoreFormatError, 503, "store_unavailable"),
)
"""The first that fits holds; what the server's owner has to mend is 500."""
BEHIND = "The store cannot be used now; the server's log has the reason under this request's id."
"""What a caller is told of what the owner has to mend: the library's own words name folders and files."""


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: names the thing, the value and the mend.
        code: OpenAI's, or one of its kind.
        param: the field of the request that is at fault.
        headers: of the response.
        reason: for the log; None where the message says it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers
        self.reason = reason

    @classmethod
    def of(cls, error: SharedContextError) -> Refusal:
        """What the library refused: in its own words, where the request is at fault."""
        status, code = next(((status, code) for kind, status, code in _STATUS if isinstance(error, kind)), (500, None))
        if status >= 500:
            return cls(status, BEHIND, code=code, reason=f"{type(error).__name__}: {error}")
        return cls(status, str(error), code=code)

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, INVALID if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The same as a response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def add_handlers(app: FastAPI) -> None:
    """Let every error of the application leave it in OpenAI's form."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        if error.reason is not None:
            getattr(request.state, STATE)["reason"] = error.reason
        return error.response()

    @app.exception_handler(SharedContextError)
    async def refused_by_the_library(request: Request, error: SharedContextError) -> JSONResponse:
        return await refused(request, Refusal.of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _refusal_of(error).response()

    @app.exception_handler(HTTPException)
    async def refused_by_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"There is no {request.method} {request.url.path} here."
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}."
        elif error.status_code == 400:
            json = "JSON, not nested deeper than a few hundred levels and without numbers of thousands of digits"
            form = "multipart/form-data with a file and its purpose"
            message = f"The body cannot be read: it must be {form if request.url.path == UPLOADS else json}."
        return Refusal(error.status_code, message, headers=error.headers).response()


def _refusal_of(error: RequestValidationError) -> Refusal:
    """The first fault of a request's fields. Values are not repeated: they may be long, or somebody's text."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be read")
        return Refusal(400, f"The body is no JSON: {reason}.", code="invalid_json")
    path = [str(part) for part in first["loc"][1:]]
    param = ".".join(path) or None
    if first["type"] == "string_unicode":
        text = "The body" if param is None else param
        return Refusal(
            400, f"{text} has a lone surrogate, which no encoding can hold; decode the text properly or replace it.",
            code="invalid_value", param=param,
        )  # fmt: skip
    if first["type"] == "extra_forbidden":
        return Refusal(
            400, f"Unknown field {param!r}; leave it out or correct its name.", code="unknown_parameter", param=param
        )
    message = first["msg"].removeprefix("Value error, ")
    if param is None:
        whole = first["type"] == "value_error"
        mend = "The body is missing or no JSON object; send one, with Content-Type: application/json."
        return Refusal(400, f"{message}." if whole else mend)
    return Refusal(400, f"{param}: {message}.", code="invalid_value", param=param)
