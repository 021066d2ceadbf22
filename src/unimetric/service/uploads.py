"""A request's body: read within limits, then taken apart as a form or as JSON."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from unimetric.errors import nearest_names
from unimetric.service.failures import ServiceError, from_validation

M = TypeVar("M", bound=BaseModel)

_BESIDES = 100_000
"""Bytes of a body beside the image."""

_MAX_PARTS = 1_200
"""Parts of a form."""

FORM, JSON = "multipart/form-data", "application/json"


@dataclass(frozen=True)
class Body:
    """What was sent, and as what."""

    content: bytes
    kind: str
    boundary: bytes


async def read_body(headers: Mapping[str, str], stream: AsyncIterator[bytes], max_upload_bytes: int) -> Body:
    """Read a body of a kind that is understood, and no more of it than it may have.

    Raises:
        ServiceError: another kind, or too long; where the length is announced, before anything is read.
    """
    kind, options = parse_options_header(headers.get("content-type", ""))
    name = kind.decode("latin-1").lower()
    if name not in (FORM, JSON):
        said = f"the content type is {name[:80]!r}" if name else "the content type is missing"
        raise ServiceError(415, "unsupported_media_type", f"{said}; send {FORM} or {JSON}")
    boundary = options.get(b"boundary", b"")
    if name == FORM and not 1 <= len(boundary) <= 200:
        raise ServiceError(400, "invalid_form", "the content type has no boundary; let the HTTP client set this header")
    # Base64 is four bytes for three.
    limit = _BESIDES + (max_upload_bytes if name == FORM else -(-max_upload_bytes // 3) * 4)
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large(max_upload_bytes)
    parts, length = [], 0
    async for chunk in stream:
        length += len(chunk)
        if length > limit:
            raise too_large(max_upload_bytes)
        parts.append(chunk)
    return Body(b"".join(parts), name, boundary)


def too_large(max_upload_bytes: int) -> ServiceError:
    """The body or the image in it is longer than allowed."""
    return ServiceError(
        413, "too_large", f"the upload is too large; send an image of at most {max_upload_bytes:,} bytes"
    )


def parse(
    body: Body, json_model: type[M], form_model: type[BaseModel], max_upload_bytes: int
) -> tuple[BaseModel, bytes | None]:
    """What a body says, and the image's bytes; None where it says which item instead.

    Raises:
        ServiceError: it does not hold what it should, or too much of it.
    """
    try:
        if body.kind == FORM:
            values, image = _read_form(body, form_model)
            if image is not None:
                values["image"] = ""
            request: BaseModel = form_model.model_validate(values, strict=False)
        else:
            request = json_model.model_validate_json(body.content)
            image = _from_base64(request.image) if "image" in request.model_fields_set else None  # type: ignore[attr-defined]
    except ValidationError as error:
        raise from_validation(error) from error
    if image is not None and len(image) > max_upload_bytes:
        raise too_large(max_upload_bytes)
    return request, image


def _from_base64(text: str) -> bytes:
    """The bytes of a text in base64, which may be broken into lines or be a ``data:`` URI."""
    text = re.sub(r"^data:[^,]{0,200};base64,", "", text)
    try:
        return b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(
            422, "invalid_base64", f"image is not base64 ({error}); encode the whole file, or send a form"
        ) from error


def _read_form(body: Body, model: type[BaseModel]) -> tuple[dict[str, Any], bytes | None]:
    values: dict[str, Any] = {}
    image = None
    for name, content in _parts(body):
        if name not in model.model_fields:
            raise ServiceError(
                422, "invalid_request", f"unknown field {name[:80]!r}; {nearest_names(name[:80], model.model_fields)}"
            )
        if name == "image":
            if image is not None:
                raise ServiceError(422, "invalid_request", "image is given more than once; send one image a request")
            image = content
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ServiceError(422, "invalid_request", f"{name} is no UTF-8 text") from error
        if name == "datasets":
            values.setdefault(name, []).append(text)
        elif name in values:
            raise ServiceError(422, "invalid_request", f"{name} is given more than once")
        else:
            values[name] = text
    return values, image


def _parts(body: Body) -> list[tuple[str, bytes]]:
    """Name and content of every part of a form.

    Raises:
        ServiceError: it is no whole form, or has too many parts.
    """
    collector = _Collector()
    try:
        parser = MultipartParser(body.boundary, collector.callbacks())  # type: ignore[arg-type]
        parser.write(body.content)
        parser.finalize()
    except FormParserError as error:
        raise ServiceError(400, "invalid_form", f"the form cannot be read ({error})") from error
    if not collector.ended:
        raise ServiceError(400, "invalid_form", "the form is cut off before its end; send it again")
    return collector.parts


class _Collector:
    """Takes what the parser finds."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._header, self._value = b"", b""
        self._name: str | None = None
        self._content: list[bytes] = []

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_part_data": lambda data, start, end: self._content.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= _MAX_PARTS:
            raise ServiceError(400, "invalid_form", f"the form has more than {_MAX_PARTS} parts")
        self._header, self._value, self._name, self._content = b"", b"", None, []

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._header, self._value = b"", b""

    def _end(self) -> None:
        if not self._name:
            raise ServiceError(400, "invalid_form", "a part of the form has no name")
        self.parts.append((self._name, b"".join(self._content)))

    def _on_end(self) -> None:
        self.ended = True
