"""Errors in one shape, ``{"error": {"code": ..., "message": ...}}``, with a status that depends on their type."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from unimetric.errors import ArgumentError, UserError, WriteError, escaped
from unimetric.search.errors import DatabaseError, ModelMismatchError, NoOriginalError, ReplacedError
from unimetric.search.items import ItemNotFoundError

log = logging.getLogger(__name__)

_SHOWN = 80
"""Characters of a wrong value that an error message repeats."""

_LONGEST = 500
"""Characters of a message."""

ANSWER_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every answer: the page loads nothing from elsewhere, and no other page may embed it or its pictures."""


class ServiceError(Exception):
    """A request that cannot be answered.

    ``code`` is one word for programs, which stays when the message changes; ``message`` is a sentence with the remedy.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


def busy(message: str, code: str = "busy", seconds: int = 1) -> ServiceError:
    """The service cannot take a request now; ``seconds`` is when the client should try again."""
    return ServiceError(503, code, message, {"Retry-After": str(seconds)})


def response_of(error: ServiceError) -> JSONResponse:
    """Return the HTTP answer for an error."""
    message = escaped(error.message)
    shown = message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…"
    content = {"error": {"code": error.code, "message": shown}}
    return JSONResponse(content, error.status, headers={"Cache-Control": "no-store", **error.headers})


def invalid(message: str) -> ServiceError:
    """A field of the request is wrong."""
    return ServiceError(422, "invalid_request", message)


STATUSES: dict[type[UserError], int] = {
    UserError: 500,
    ArgumentError: 422,
    DatabaseError: 409,
    ModelMismatchError: 409,
    ItemNotFoundError: 404,
    NoOriginalError: 404,
    WriteError: 507,
}
"""The status for a type of error and its subtypes."""

_LOGGED = "the service cannot do this; its log has the reason"


def from_user_error(error: UserError) -> ServiceError:
    """Return the answer for an error of the library, by its type.

    Only an `ArgumentError` is about the request. Other messages may name files of this machine, so they go to the log.
    """
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if isinstance(error, ReplacedError):
        return busy("the database is being upgraded to another model; try again in a few seconds", error.code, 5)
    if isinstance(error, ArgumentError):
        return ServiceError(status, error.code, " ".join(str(error).split()))
    log.error("%s: %s", error.code, escaped(str(error)[: 10 * _LONGEST]))
    return ServiceError(status, error.code, _LOGGED)


def from_validation(error: ValidationError) -> ServiceError:
    """Return the answer for the first of the faults that pydantic found."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return ServiceError(400, "invalid_json", f"the body is not JSON: {reason}")
    return invalid(_in_words(first))


def _in_words(error: Mapping[str, object]) -> str:
    location = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]  # type: ignore[attr-defined]
    field = ".".join(location)[:_SHOWN]
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{field or 'the body'} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown field {field!r}"
    if error["type"] == "value_error":
        return message
    value = error.get("input")
    shown = f" is {value!r}"[:_SHOWN] if isinstance(value, str | int | float | None) else ""
    return f"{field or 'the body'}{shown}: {message[:1].lower()}{message[1:]}"


def _allowed(request: Request) -> str:
    """Return the methods of all routes of a path; the router names those of the first one only."""
    candidates = ("DELETE", "GET", "PATCH", "POST", "PUT")
    methods = [
        method
        for method in candidates
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in request.app.routes)
    ]
    return ", ".join([*methods, "HEAD"] if "GET" in methods else methods)


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the routes in the one shape."""

    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> JSONResponse:
        return response_of(error)

    @app.exception_handler(UserError)
    async def bad_input(request: Request, error: UserError) -> JSONResponse:
        return response_of(from_user_error(error))

    @app.exception_handler(RequestValidationError)
    async def unlike_its_description(request: Request, error: RequestValidationError) -> JSONResponse:
        return response_of(invalid(_in_words(error.errors()[0])))

    @app.exception_handler(HTTPException)
    async def refused_by_the_router(request: Request, error: HTTPException) -> JSONResponse:
        path = escaped(request.url.path)[:_SHOWN]
        code, message = {
            404: ("not_found", f"there is nothing at {path}; see /openapi.json for what there is"),
            405: ("method_not_allowed", f"{request.method[:20]} is not possible here; see /openapi.json"),
        }.get(error.status_code, ("refused", str(error.detail)))
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        return response_of(ServiceError(error.status_code, code, message, headers))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        # The server writes the traceback to its log.
        return response_of(
            ServiceError(500, "internal", "something went wrong in the service; its log has the details")
        )
