"""What went wrong with a request, always in one shape: ``{"error": {"code": ..., "message": ...}}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from unimetric.errors import UserError
from unimetric.search.items import ItemNotFoundError

log = logging.getLogger(__name__)

_SHOWN = 80
"""Characters of a wrong value that an error message repeats."""


class ServiceError(Exception):
    """A request that cannot be answered.

    Args:
        status: The HTTP status.
        code: One word for programs; it stays the same when the message changes.
        message: One sentence for people, with the remedy.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


def busy(message: str, code: str = "busy", seconds: int = 1) -> ServiceError:
    """The service cannot take a request now, and says when to come again."""
    return ServiceError(503, code, message, {"Retry-After": str(seconds)})


def response_of(error: ServiceError) -> JSONResponse:
    """The answer that says so."""
    content = {"error": {"code": error.code, "message": error.message}}
    return JSONResponse(content, error.status, headers={"Cache-Control": "no-store", **error.headers})


def from_user_error(error: UserError) -> ServiceError:
    """What the index refused: an unknown item, a condition or name that does not fit, or files that are damaged."""
    message = " ".join(str(error).split())
    if isinstance(error, ItemNotFoundError):
        return ServiceError(404, "item_not_found", message)
    if "search database" in message:
        # Not this request's fault alone, but no other request will mend it either.
        return ServiceError(409, "database_unusable", message)
    if message.startswith(("where", "the condition")):
        return ServiceError(422, "invalid_where", message)
    return ServiceError(422, "invalid_request", message)


def from_validation(error: ValidationError) -> ServiceError:
    """What pydantic found wrong, the first of it in words."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return ServiceError(400, "invalid_json", f"the body is no JSON: {reason}")
    return ServiceError(422, "invalid_request", _in_words(first))


def _in_words(error: Mapping[str, object]) -> str:
    location = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]  # type: ignore[attr-defined]
    field = ".".join(location)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{field or 'the body'} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown field {field[:_SHOWN]!r}"
    if error["type"] == "value_error":
        return message
    value = error.get("input")
    shown = f" is {value!r}"[:_SHOWN] if isinstance(value, str | int | float | None) else ""
    return f"{field or 'the body'}{shown}: {message[:1].lower()}{message[1:]}"


def _allowed(request: Request) -> str:
    """The methods of all routes of a path; the router names those of the first one only."""
    candidates = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    return ", ".join(
        method
        for method in candidates
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in request.app.routes)
    )


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the routes in this shape."""

    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> JSONResponse:
        return response_of(error)

    @app.exception_handler(UserError)
    async def bad_input(request: Request, error: UserError) -> JSONResponse:
        return response_of(from_user_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return response_of(ServiceError(422, "invalid_request", _in_words(error.errors()[0])))

    @app.exception_handler(HTTPException)
    async def refused_by_the_router(request: Request, error: HTTPException) -> JSONResponse:
        code, message = {
            404: ("not_found", f"there is nothing at {request.url.path[:_SHOWN]}; see /openapi.json for what there is"),
            405: ("method_not_allowed", f"{request.method} is not possible here; see /openapi.json"),
        }.get(error.status_code, ("refused", str(error.detail)))
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        return response_of(ServiceError(error.status_code, code, message, headers))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        # The server writes the traceback to its log.
        return response_of(ServiceError(500, "internal", "something went wrong in the service; its log says what"))
