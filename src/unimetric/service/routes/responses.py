"""Descriptions of errors for OpenAPI, and answers made from the library's objects."""

import re
from typing import Any

from fastapi import Depends, Request

from unimetric.errors import nearest_names, shown
from unimetric.search.items import Match, StoredItem, no_item
from unimetric.service import schemas
from unimetric.service.failures import invalid

_DESCRIPTIONS = {
    400: "The body is not JSON, or not a form.",
    401: "The bearer token is missing or wrong.",
    403: "The service accepts no changes, or the request came from a page of another site.",
    404: "There is no such item.",
    408: "The upload took too long.",
    409: "The database cannot be used: it is damaged, or belongs to another model.",
    413: "Too many bytes, or too many pixels.",
    415: "The body is neither a form nor JSON.",
    421: "The service does not answer to the name in the Host header.",
    422: "A field or the image is invalid.",
    431: "The head of the request is too long.",
    500: "Something went wrong in the service.",
    503: "Overloaded, not ready yet, or being stopped; Retry-After gives the seconds to wait.",
    504: "There was no answer in time.",
    507: "The database cannot be written: the disk is full, or read-only.",
}

UPLOAD_ERRORS = (400, 401, 403, 408, 409, 413, 415, 422, 503, 504)
READ_ERRORS = (401, 409, 422, 503, 504)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of a route; those that every route can have are added."""
    return {
        status: {"model": schemas.ErrorAnswer, "description": _DESCRIPTIONS[status]}
        for status in sorted({*statuses, 421, 431, 500})
    }


def _check_query(request: Request) -> None:
    """Refuse a parameter of the address that the route would ignore, with an answer that was not asked for."""
    known = {field.alias: field for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            remedy = nearest_names(name, known) if known else "the address takes none here"
            raise invalid(f"unknown parameter {shown(name)}; {remedy}")
        if len(request.query_params.getlist(name)) > 1 and not isinstance(known[name].default, list):
            raise invalid(f"{name} is given more than once")


KNOWN_QUERY = Depends(_check_query)


def checked_id(id: str) -> str:
    """Return an item's id, or raise an `ItemNotFoundError` if no item can have it."""
    if not re.fullmatch(r"[0-9a-f]{32}", id):
        raise no_item(id)
    return id


def match_of(match: Match) -> schemas.Match:
    """Return a match as the API gives it."""
    copies = [schemas.FoldedCopy(**vars(copy), image=_picture(copy.id)) for copy in match.copies]
    return schemas.Match(**{**vars(match), "copies": copies}, image=_picture(match.id))


def item_of(item: StoredItem) -> schemas.Item:
    """Return an item as the API gives it."""
    return schemas.Item(**vars(item), image=_picture(item.id))


def _picture(id: str) -> str:
    return f"v1/items/{id}/image"
