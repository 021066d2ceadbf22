"""Items: samples, one item, its picture, adding and deleting."""

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from unimetric.data.labels import clean_label
from unimetric.search.errors import NoOriginalError
from unimetric.search.items import NewItem, no_item
from unimetric.search.originals import ORIGINAL_SIDE, read_original
from unimetric.search.sorting import Order
from unimetric.service import schemas
from unimetric.service.failures import ServiceError
from unimetric.service.routes.responses import KNOWN_QUERY, READ_ERRORS, UPLOAD_ERRORS, checked_id, errors, item_of
from unimetric.service.state import ADD, ParsedRequest, Service

_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client's copy of the picture is up to date."},
    **errors(404, *READ_ERRORS),
}


def router(service: Service) -> APIRouter:
    """Return the routes under ``/v1/items``."""
    routes = APIRouter(prefix="/v1/items", tags=["items"], dependencies=[*service.access.reading(), KNOWN_QUERY])
    _add_reading(routes, service)
    _add_writing(routes, service)
    return routes


def _add_reading(routes: APIRouter, service: Service) -> None:
    @routes.get("", response_model=schemas.Items, responses=errors(422, *READ_ERRORS), summary="Get some items")
    async def sample(
        request: Request,
        n: Annotated[int, Query(ge=1, le=100, description="Number of items, at most.")] = 12,
        seed: Annotated[int, Query(ge=0, le=2**31 - 1, description="Another seed gives other items.")] = 0,
        dataset: Annotated[
            list[schemas.Name], Query(max_length=100, description="The only datasets to take items from.")
        ] = [],  # noqa: B006 - FastAPI copies it
        where: Annotated[str | None, Query(max_length=10_000, description="A condition on the columns.")] = None,
        sort: Annotated[
            schemas.Name | None, Query(description="A column to sort by, instead of a random order.")
        ] = None,
        descending: Annotated[
            Literal["true", "false"], Query(description="Sort from the highest value down.")
        ] = "false",
        offset: Annotated[int, Query(ge=0, le=2**31 - 1, description="Items to skip.")] = 0,
    ) -> Any:
        order = None if sort is None else Order(sort, descending == "true")
        items = await service.workers.look_up(
            request, lambda: service.index.sample(n, seed, dataset, where=where, order=order, offset=offset)
        )
        return schemas.Items(items=[item_of(item) for item in items])

    @routes.get("/{id}", response_model=schemas.Item, responses=errors(404, *READ_ERRORS), summary="Get an item")
    async def item(request: Request, id: str) -> Any:
        checked = checked_id(id)
        return item_of(await service.workers.look_up(request, lambda: service.index.item(checked)))

    @routes.get(
        "/{id}/image",
        response_class=Response,
        responses=_PICTURE,
        summary="Get an item's picture, at most 256 pixels a side",
    )
    async def image(request: Request, id: str) -> Response:
        checked = checked_id(id)
        picture = await service.workers.look_up(request, lambda: service.index.thumbnail(checked))
        headers = _cacheable(hashlib.sha256(picture).hexdigest()[:32])
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(picture, media_type="image/jpeg", headers=headers)

    @routes.get(
        "/{id}/original",
        response_class=Response,
        responses=_PICTURE,
        summary=f"Get an item's whole picture from its file, at most {ORIGINAL_SIDE:,} pixels a side",
    )
    async def original(request: Request, id: str) -> Response:
        checked = checked_id(id)
        if not service.config.originals:
            raise NoOriginalError("this service shows no larger ones")
        item = await service.workers.look_up(request, lambda: service.index.item(checked))
        headers = _cacheable(f"original-{item.content_hash[:32]}")
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        opening = service.workers.opening.run(lambda: read_original(item, service.config.max_pixels))
        picture = await service.workers.answer(request, opening)
        return Response(picture, media_type="image/jpeg", headers=headers)


def _cacheable(tag: str) -> dict[str, str]:
    return {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=300"}


def _add_writing(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "",
        response_model=schemas.AddedItem,
        status_code=201,
        responses={
            200: {"model": schemas.AddedItem, "description": "The database held exactly this item already."},
            **errors(507, *UPLOAD_ERRORS),
        },
        openapi_extra=schemas.body_of(schemas.AddRequest),
        dependencies=service.access.writing(),
        summary="Add an image, or replace it",
    )
    async def add(request: Request, response: Response) -> Any:
        added = await service.take(request, ADD, lambda parsed: _add(service, parsed))
        response.status_code = 201 if added.status == "written" else 200
        return added

    @routes.delete(
        "/{id}",
        status_code=204,
        response_class=Response,
        responses=errors(403, 404, 507, *READ_ERRORS),
        dependencies=service.access.writing(),
        summary="Delete an item",
    )
    async def delete(request: Request, id: str) -> Response:
        checked = checked_id(id)
        deleting = service.workers.writing.run(lambda: service.index.delete(ids=[checked]))
        if not await service.workers.answer(request, deleting):
            raise no_item(checked)
        return Response(status_code=204)


async def _add(service: Service, parsed: ParsedRequest) -> schemas.AddedItem:
    fields = parsed.fields
    dataset, label = clean_label(fields.dataset), clean_label(fields.label)
    item = NewItem(parsed.images[0], dataset, label, fields.path, fields.metadata)

    def write() -> schemas.AddedItem:
        # The index embeds the image itself, so that the row is the same as from `unimetric index`.
        added = service.index.add([item])
        if added.refused:
            raise ServiceError(422, "unreadable_image", f"the image cannot be read ({added.refused[0].reason})")
        return schemas.AddedItem(id=str(added.ids[0]), status="written" if added.written else "unchanged")

    return await service.workers.writing.run(write)
