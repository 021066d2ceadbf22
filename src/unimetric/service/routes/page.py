"""The web page."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, Request, Response

_ALIASES = {"index.html": ("/",), "favicon.svg": ("/favicon.ico",)}
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def router() -> APIRouter:
    """Return a route for each file of the page."""
    routes = APIRouter(include_in_schema=False)
    for file in (resources.files("unimetric.service") / "page").iterdir():
        answer = _file(file.read_bytes(), _TYPES[Path(file.name).suffix])
        for path in (*_ALIASES.get(file.name, ()), f"/{file.name}"):
            routes.add_api_route(path, answer, methods=["GET"])
    return routes


def _file(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
