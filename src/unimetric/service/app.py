"""The ASGI application."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from unimetric import __version__
from unimetric.search.index import SearchIndex
from unimetric.service.access import READ_TOKEN_VARIABLE, TOKEN_VARIABLE, access_of
from unimetric.service.batching import Batcher
from unimetric.service.failures import add_handlers
from unimetric.service.folder import FolderIndexer
from unimetric.service.guard import Guard, hosts_of
from unimetric.service.options import ServiceConfig
from unimetric.service.routes import routers
from unimetric.service.state import Service
from unimetric.service.upgrading import Follower

__all__ = ["READ_TOKEN_VARIABLE", "TOKEN_VARIABLE", "create_app"]


def create_app(
    index: SearchIndex,
    config: ServiceConfig | None = None,
    *,
    token: str | None = None,
    read_token: str | None = None,
    folder: FolderIndexer | None = None,
    follow: Callable[[Callable[..., Batcher]], Follower] | None = None,
    precision: str = "auto",
    on_failure: Callable[[BaseException], None] = lambda error: None,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the ASGI application around an open index. It loads the model when it starts, and leaves the index open.

    Limits on connections and on slow heads belong to the server; `unimetric.service.run` has them.

    Args:
        index: The database.
        config: Limits, and whether items may be changed; ``host`` and ``allowed_hosts`` decide which names it answers
            to.
        token: The bearer token for changes, where ``config.writable`` is set.
        read_token: The bearer token for reading, where ``config.read_token`` is set.
        folder: Brings the database up to date with a folder as soon as the model is loaded.
        follow: Makes what follows an upgrade of the database, given what makes a thread that embeds queries.
        precision: Precision of the model's arithmetic, as in `Embedder.encode`.
        on_failure: Called in another thread when the model cannot be loaded.
        on_ready: Called in another thread when searches are answered.

    Raises:
        ValueError: ``writable`` or ``read_token`` without a token, or the same token for both.
    """
    config = config or ServiceConfig()
    access = access_of(config, token, read_token)
    service = Service(index, config, access, folder, follow, precision, on_failure, on_ready)
    app = FastAPI(
        title="unimetric search",
        version=__version__,
        summary="Search in image collections by an image.",
        description='Every error has one shape: `{"error": {"code": ..., "message": ...}}`.',
        # These pages would load their scripts from another host.
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.state.service = service
    add_handlers(app)
    for router in routers(service):
        app.include_router(router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, hosts=hosts_of(config), telemetry=service.telemetry)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, without FastAPI's own shape of errors, which this service does not use."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
        )
        for operations in described["paths"].values():
            for operation in operations.values():
                if "HTTPValidationError" in json.dumps(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        app.openapi_schema = described
    return app.openapi_schema
