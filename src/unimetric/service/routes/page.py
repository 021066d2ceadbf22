"""The web page."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter, Request, Response

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("favicon.svg", "image/svg+xml"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
"""Files of the page, and their media types, by path."""


def router() -> APIRouter:
    """Return a route for each file of the page."""
    routes = APIRouter(include_in_schema=False)
    folder = resources.files("unimetric.service") / "page"
    for path, (name, kind) in FILES.items():
        routes.add_api_route(path, _file((folder / name).read_bytes(), kind), methods=["GET", "HEAD"])
    return routes


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
