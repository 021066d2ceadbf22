"""Searching, embedding, and the catalogues that can be searched."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from unimetric.search.columns import ColumnSummary
from unimetric.search.guarantee import Guarantee
from unimetric.search.items import Match
from unimetric.search.query import MAX_K
from unimetric.search.sorting import Order, sorted_matches
from unimetric.service import catalogue_schemas as catalogue
from unimetric.service import schemas
from unimetric.service.routes.responses import KNOWN_QUERY, READ_ERRORS, UPLOAD_ERRORS, checked_id, errors, match_of
from unimetric.service.state import EMBED, SEARCH, ParsedRequest, Service

_LARGEST = float(np.finfo(np.float32).max)


def router(service: Service) -> APIRouter:
    """Return the routes under ``/v1`` that search."""
    routes = APIRouter(prefix="/v1", tags=["search"], dependencies=[*service.access.reading(), KNOWN_QUERY])

    @routes.post(
        "/search",
        response_model=schemas.SearchAnswer | schemas.SearchAnswers,
        responses=errors(404, *UPLOAD_ERRORS),
        openapi_extra=schemas.body_of(schemas.SearchRequest, ("image", "id", "vector"), without=["vector"]),
        summary="Find images that look like an image, a vector, or an item",
    )
    async def search(request: Request) -> Any:
        return await service.take(request, SEARCH, lambda parsed: _search(service, parsed))

    @routes.post(
        "/embed",
        response_model=schemas.Embedding,
        responses=errors(*UPLOAD_ERRORS),
        openapi_extra=schemas.body_of(schemas.EmbedRequest),
        summary="Turn an image into a vector",
    )
    async def embed(request: Request) -> Any:
        async def answer(parsed: ParsedRequest) -> schemas.Embedding:
            vector = [] if parsed.vectors is None else parsed.vectors[0].tolist()
            return schemas.Embedding(embedding=vector, size=len(vector), model=parsed.index.fingerprint)

        return await service.take(request, EMBED, answer)

    @routes.get(
        "/datasets",
        response_model=catalogue.Datasets,
        responses=errors(*READ_ERRORS),
        summary="List the datasets, the columns and the limits",
    )
    async def datasets(request: Request) -> Any:
        return await service.workers.look_up(request, lambda: _describe(service))

    @routes.get(
        "/columns",
        response_model=catalogue.Columns,
        responses=errors(*READ_ERRORS),
        summary="Get the ranges and choices of the columns",
    )
    async def columns(request: Request) -> Any:
        found = await service.workers.look_up(request, service.index.columns)
        return catalogue.Columns(columns=[_column(column) for column in found])

    @routes.get(
        "/status",
        response_model=catalogue.Status,
        responses=errors(*READ_ERRORS),
        summary="Get the number of images, and the progress of indexing and of an upgrade",
    )
    async def status(request: Request) -> Any:
        return await _status(service, request)

    return routes


async def _status(service: Service, request: Request) -> catalogue.Status:
    items = await service.workers.look_up(request, service.index.count)
    indexing = None if service.folder is None else service.folder.state
    follower = service.follower
    upgrade = None if follower is None else await service.workers.look_up(request, lambda: follower.state)
    return catalogue.Status(ready=service.batcher.ready, items=items, indexing=indexing, upgrade=upgrade)


async def _search(service: Service, parsed: ParsedRequest) -> schemas.SearchAnswer | schemas.SearchAnswers:
    fields = parsed.fields
    filters = {
        "datasets": fields.datasets,
        "where": fields.where,
        "exact": fields.exact,
        "group_copies": service.group_copies if fields.group_copies is None else fields.group_copies,
    }

    guarantee = Guarantee.of(fields.guarantee, fields.guarantee_delta)
    order = None if fields.sort is None else Order(fields.sort, fields.descending)
    k = fields.k if order is None else MAX_K
    most = fields.k if guarantee is None else None

    def find() -> list[list[Match]]:
        if (fields.images or fields.ids) and not fields.each:
            ids = [checked_id(id) for id in fields.ids or ()]
            return [parsed.index.search_together(parsed.vectors, ids, k, **filters)]
        if "id" in fields.model_fields_set:
            return [parsed.index.search_item(checked_id(fields.id), k, **filters)]
        vectors = parsed.vectors
        if vectors is None:
            vectors = np.array(fields.vector, np.float64).clip(-_LARGEST, _LARGEST).astype(np.float32)
        return parsed.index.search_vectors(vectors, k, guarantee=guarantee, **filters)

    def answer() -> schemas.SearchAnswer | schemas.SearchAnswers:
        parsed.index.check(order=order)
        threshold = parsed.index.threshold_of(fields.datasets)
        answers = [
            schemas.SearchAnswer(
                no_match=_no_match(found) if guarantee is None else not found,
                threshold=threshold,
                matches=[match_of(match) for match in found[:most]],
            )
            for found in (sorted_matches(found, order) for found in find())
        ]
        return schemas.SearchAnswers(answers=answers) if fields.each else answers[0]

    return await service.workers.searching.run(answer)


def _no_match(found: list[Match]) -> bool | None:
    judged = [match.is_match for match in found if match.is_match is not None]
    return not any(judged) if judged or not found else None


def _describe(service: Service) -> catalogue.Datasets:
    index, config = service.index, service.config
    counts = index.datasets()
    return catalogue.Datasets(
        datasets=[
            catalogue.Dataset(name=name, items=count, threshold=index.threshold_of([name]))
            for name, count in counts.items()
        ],
        items=sum(counts.values()),
        threshold=index.threshold_of(),
        columns=index.metadata_columns,
        model=index.fingerprint,
        max_k=MAX_K,
        max_upload_bytes=config.max_upload_bytes,
        max_pixels=config.max_pixels,
        writable=config.writable,
        group_copies=service.group_copies,
    )


def _column(column: ColumnSummary) -> catalogue.Column:
    choices = [catalogue.Choice(value=value, items=items) for value, items in column.choices]
    return catalogue.Column(**{**vars(column), "choices": choices})
