"""The application and its routes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from unimetric import __version__
from unimetric.config import ServiceConfig
from unimetric.search.index import MAX_K, SearchIndex
from unimetric.search.items import ItemNotFoundError, NewItem, StoredItem
from unimetric.search.items import Match as Found
from unimetric.service import schemas
from unimetric.service.batching import Batcher
from unimetric.service.failures import ServiceError, add_handlers
from unimetric.service.guard import Guard, is_loopback
from unimetric.service.state import ADD, EMBED, SEARCH, Service, Taken
from unimetric.service.telemetry import CONTENT_TYPE, Telemetry
from unimetric.service.work import Workers

TOKEN_VARIABLE = "UNIMETRIC_TOKEN"  # noqa: S105 - the variable's name
"""The environment variable with the token that writing takes."""

_SEARCHERS = 4
"""Threads that ask the database, which has threads of its own for each query."""

_PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
}

_WORDS = {
    400: "The body is no JSON, or no form.",
    401: "The bearer token is missing or wrong.",
    403: "The service takes no changes, or the request came from a page of another site.",
    404: "There is no such item.",
    408: "The upload took too long.",
    409: "The database cannot be used: it is damaged, or of another model.",
    413: "Too many bytes, or too many pixels.",
    415: "The body is neither a form nor JSON.",
    421: "The service does not answer to the name it was asked by.",
    422: "A field or the image is not as it should be.",
    500: "Something went wrong in the service.",
    503: "Too much to do, not ready yet, or being stopped; Retry-After says when to come again.",
    504: "There was no answer in time.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": schemas.ErrorAnswer, "description": _WORDS[status]}
        for status in sorted({*statuses, 421, 500})
    }


_UPLOAD_ERRORS = (400, 403, 408, 409, 413, 415, 422, 503, 504)
_bearer = HTTPBearer(auto_error=False, description=f"The token in the service's {TOKEN_VARIABLE}.")


def create_app(
    index: SearchIndex,
    config: ServiceConfig | None = None,
    *,
    token: str | None = None,
    precision: str = "auto",
    on_failure: Callable[[BaseException], None] = lambda error: None,
    on_ready: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The ASGI application around an open index. It loads the model when it starts, and leaves the index open.

    Args:
        index: The database.
        config: Limits, and whether items may be changed; ``host`` and ``allowed_hosts`` decide which names it answers
            to.
        token: What writing takes, where ``config.writable`` is set.
        precision: Of the model's arithmetic, as in `Embedder.encode`.
        on_failure: Is told, in another thread, that the model could not be loaded.
        on_ready: Is told, in another thread, that searches are answered from now on.

    Raises:
        ValueError: writable without a token.
    """
    config = config or ServiceConfig()
    if config.writable and not token:
        raise ValueError("token is empty: without one, everybody could write")
    telemetry = Telemetry()

    def now_ready() -> None:
        telemetry.ready.set(1)
        on_ready()

    batcher = Batcher(
        lambda: index.embedder,
        precision=precision,
        batch_size=config.batch_size,
        on_batch=telemetry.on_batch,
        on_failure=on_failure,
        on_ready=now_ready,
    )
    decoders = max(1, os.cpu_count() or 1)
    workers = Workers(config.queue_size, config.request_seconds, decoders, _SEARCHERS, telemetry)
    service = Service(index, config, token, batcher, workers, telemetry)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        service.stopping = True
        telemetry.ready.set(0)
        batcher.stop()
        workers.close()

    app = FastAPI(
        title="unimetric search",
        version=__version__,
        summary="Search in image collections by an image.",
        description='Every error has one shape: `{"error": {"code": ..., "message": ...}}`.',
        # These pages would load their scripts from another host.
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.service = service
    add_handlers(app)
    app.include_router(_search_routes(service))
    app.include_router(_item_routes(service))
    app.include_router(_health_routes(service))
    _add_page(app)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, hosts=_hosts(config), telemetry=telemetry)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description without the errors of a shape that FastAPI would give, and this service does not."""
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


def _hosts(config: ServiceConfig) -> list[str] | None:
    if config.allowed_hosts or is_loopback(config.host):
        return [config.host, *config.allowed_hosts]
    return None


def _search_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["search"])

    @router.post(
        "/search",
        response_model=schemas.SearchAnswer,
        responses=_errors(404, *_UPLOAD_ERRORS),
        openapi_extra=schemas.body_of(schemas.SearchRequest, schemas.SearchForm),
        summary="Find what looks like an image, or like an item",
    )
    async def search(request: Request) -> Any:
        return await service.take(request, SEARCH, lambda taken: _search(service, taken))

    @router.post(
        "/embed",
        response_model=schemas.Embedding,
        responses=_errors(*_UPLOAD_ERRORS),
        openapi_extra=schemas.body_of(schemas.EmbedRequest, schemas.EmbedForm),
        summary="Turn an image into a vector",
    )
    async def embed(request: Request) -> Any:
        async def answer(taken: Taken) -> schemas.Embedding:
            vector = [] if taken.vector is None else taken.vector.tolist()
            return schemas.Embedding(embedding=vector, size=len(vector), model=service.index.fingerprint)

        return await service.take(request, EMBED, answer)

    @router.get(
        "/datasets",
        response_model=schemas.Datasets,
        responses=_errors(409, 503),
        summary="What can be searched, and the limits",
    )
    async def datasets() -> Any:
        return await service.workers.search(lambda: _describe(service))

    return router


async def _search(service: Service, taken: Taken) -> schemas.SearchAnswer:
    sent = taken.sent
    filters = {"datasets": sent.datasets, "where": sent.where, "exact": sent.exact}

    def find() -> schemas.SearchAnswer:
        if taken.vector is None:
            found = service.index.search_item(_checked_id(sent.id), sent.k, **filters)
        else:
            found = service.index.search_vectors(taken.vector[None], sent.k, **filters)[0]
        threshold = service.index.threshold_of(sent.datasets)
        return schemas.SearchAnswer(
            no_match=_no_match(found, threshold), threshold=threshold, matches=[_match(match) for match in found]
        )

    return await service.workers.search(find)


def _no_match(found: list[Found], threshold: float | None) -> bool | None:
    if not found:
        return True
    return None if threshold is None else not any(match.is_match for match in found)


def _describe(service: Service) -> schemas.Datasets:
    index, config = service.index, service.config
    counts = index.datasets()
    return schemas.Datasets(
        datasets=[
            schemas.Dataset(name=name, items=count, threshold=index.threshold_of([name]))
            for name, count in counts.items()
        ],
        items=sum(counts.values()),
        threshold=index.threshold,
        columns=index.metadata_columns,
        model=index.fingerprint,
        max_k=MAX_K,
        max_upload_bytes=config.max_upload_bytes,
        max_pixels=config.max_pixels,
        writable=config.writable,
    )


def _item_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/items", tags=["items"])

    async def may_write(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
    ) -> None:
        writable = service.config.writable and service.token is not None
        if not writable and credentials is not None:
            raise ServiceError(403, "read_only", "this service takes no changes; start it with --writable")
        given = "" if credentials is None else credentials.credentials
        if not writable or not hmac.compare_digest(given.encode(), str(service.token).encode()):
            message = "the bearer token is missing or wrong; send the header Authorization: Bearer TOKEN"
            raise ServiceError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

    @router.get("", response_model=schemas.Items, responses=_errors(409, 422, 503), summary="Some items, as examples")
    async def sample(
        n: Annotated[int, Query(ge=1, le=100, description="How many, at most.")] = 12,
        seed: Annotated[int, Query(ge=0, le=2**31 - 1, description="With another seed come others.")] = 0,
    ) -> Any:
        items = await service.workers.search(lambda: service.index.sample(n, seed))
        return schemas.Items(items=[_item(item) for item in items])

    @router.post(
        "",
        response_model=schemas.AddedItem,
        status_code=201,
        responses={
            200: {"model": schemas.AddedItem, "description": "The database held it just so."},
            **_errors(401, *_UPLOAD_ERRORS),
        },
        openapi_extra=schemas.body_of(schemas.AddRequest, schemas.AddForm),
        dependencies=[Depends(may_write)],
        summary="Add an image, or replace it",
    )
    async def add(request: Request, response: Response) -> Any:
        added = await service.take(request, ADD, lambda taken: _add(service, taken))
        response.status_code = 201 if added.status == "written" else 200
        return added

    @router.get("/{id}", response_model=schemas.Item, responses=_errors(404, 409, 503), summary="One item")
    async def item(id: str) -> Any:
        checked = _checked_id(id)
        return _item(await service.workers.search(lambda: service.index.item(checked)))

    @router.delete(
        "/{id}",
        status_code=204,
        response_class=Response,
        responses=_errors(401, 403, 404, 409, 503),
        dependencies=[Depends(may_write)],
        summary="Delete an item",
    )
    async def delete(id: str) -> Response:
        checked = _checked_id(id)
        if not await service.workers.search(lambda: service.index.delete(ids=[checked])):
            raise _not_found(checked)
        return Response(status_code=204)

    @router.get(
        "/{id}/image",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
            304: {"description": "The picture is still what the client has."},
            **_errors(404, 409, 503),
        },
        summary="An item's picture, small",
    )
    async def image(id: str, request: Request) -> Response:
        checked = _checked_id(id)
        picture = await service.workers.search(lambda: service.index.thumbnail(checked))
        headers = {"ETag": f'"{hashlib.sha256(picture).hexdigest()[:32]}"', "Cache-Control": "private, max-age=300"}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(picture, media_type="image/jpeg", headers=headers)

    return router


async def _add(service: Service, taken: Taken) -> schemas.AddedItem:
    sent = taken.sent
    metadata = _metadata(sent.metadata) if isinstance(sent.metadata, str) else sent.metadata
    item = NewItem(taken.image or b"", sent.dataset, sent.label, sent.path, metadata)

    def write() -> schemas.AddedItem:
        # Embedding is the index's own here, so that what it writes is what it would write anywhere.
        added = service.index.add([item])
        if added.refused:
            raise ServiceError(422, "unreadable_image", f"the image cannot be read ({added.refused[0].reason})")
        return schemas.AddedItem(id=str(added.ids[0]), status="written" if added.written else "unchanged")

    return await service.workers.search(write)


def _metadata(text: str) -> dict[str, Any]:
    """Metadata from a form, checked as if it had come as JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServiceError(422, "invalid_request", f"metadata is no JSON ({error})") from error
    if not isinstance(values, dict) or not all(isinstance(v, str | int | float | None) for v in values.values()):
        raise ServiceError(
            422, "invalid_request", 'metadata has to be a JSON object of texts and numbers, such as {"price": 89.5}'
        )
    return values


def _health_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", response_model=schemas.State, responses=_errors(), summary="Whether the process lives")
    async def alive() -> Any:
        return schemas.State(status="ok")

    @router.get(
        "/readyz", response_model=schemas.State, responses=_errors(503), summary="Whether searches are answered now"
    )
    async def ready() -> Any:
        service.check_ready()
        return schemas.State(status="ready")

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_errors()},
        summary="Numbers for Prometheus",
    )
    async def metrics() -> Response:
        return Response(service.telemetry.text(), media_type=CONTENT_TYPE)

    return router


def _add_page(app: FastAPI) -> None:
    folder = resources.files("unimetric.service") / "page"
    for path, (name, kind) in _PAGE.items():
        app.add_api_route(
            path, _file((folder / name).read_bytes(), kind), methods=["GET", "HEAD"], include_in_schema=False
        )


def _file(content: bytes, kind: str) -> Callable[[Request], Any]:
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)

    return answer


def _checked_id(id: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", id):
        raise _not_found(id)
    return id


def _not_found(id: str) -> ItemNotFoundError:
    shown = id if len(id) <= 40 else id[:37] + "..."
    return ItemNotFoundError(f"no item {shown!r}; take the id of a match")


def _picture(id: str) -> str:
    return f"v1/items/{id}/image"


def _match(match: Found) -> schemas.Match:
    return schemas.Match(
        id=match.id,
        score=match.score,
        dataset=match.dataset,
        label=match.label,
        path=match.path,
        metadata=dict(match.metadata),
        is_match=match.is_match,
        confidence=match.confidence,
        image=_picture(match.id),
    )


def _item(item: StoredItem) -> schemas.Item:
    return schemas.Item(
        id=item.id,
        dataset=item.dataset,
        label=item.label,
        path=item.path,
        metadata=dict(item.metadata),
        content_hash=item.content_hash,
        image=_picture(item.id),
    )
