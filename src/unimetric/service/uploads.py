"""Request bodies: received within limits of time and memory, then parsed as a form or as JSON."""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import ClientDisconnect

from unimetric.errors import cause, nearest_names
from unimetric.service.failures import ServiceError, busy, from_validation, invalid
from unimetric.service.options import ServiceConfig
from unimetric.service.telemetry import Telemetry
from unimetric.service.work import client_left, stopping

_BESIDES = 100_000
"""Maximum bytes of a body in addition to the image."""

_MAX_PARTS = 1_200
"""Parts of a form."""

_BOM = b"\xef\xbb\xbf"

FORM, JSON = "multipart/form-data", "application/json"


@dataclass(frozen=True)
class Body:
    """A complete body, its media type, and the boundary of a form."""

    content: bytes
    kind: str
    boundary: bytes


class Uploads:
    """Receives bodies, with one budget of memory for those on their way and those being worked on.

    Beyond it, the body that has been on its way longest is given up.
    """

    def __init__(self, config: ServiceConfig, telemetry: Telemetry) -> None:
        self._max_upload_bytes, self._seconds = config.max_upload_bytes, config.request_seconds
        self._total_bytes = max(config.queue_size * config.max_upload_bytes, 2 * (config.max_upload_bytes + _BESIDES))
        self._telemetry = telemetry
        self._held = 0
        self._receiving: dict[_Upload, None] = {}

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Body]:
        """Receive a request's body, and keep it within the budget until the block ends; or raise a `ServiceError`."""
        kind, boundary, limit = self._announced(request)
        upload = _Upload(anyio.move_on_after(self._seconds))
        self._receiving[upload] = None
        try:
            with upload.scope:
                await self._collect(upload, request, limit)
            self._receiving.pop(upload, None)
            if upload.refusal is not None:
                raise upload.refusal
            if upload.scope.cancelled_caught:
                self._telemetry.refused.labels("slow_upload").inc()
                message = f"the upload took longer than {self._seconds:g} s; send a smaller image"
                raise ServiceError(408, "slow_upload", message)
            content = b"".join(upload.chunks)
            upload.chunks.clear()
            yield Body(content, kind, boundary)
        finally:
            self._receiving.pop(upload, None)
            self._held -= upload.length

    def stop(self) -> None:
        """Refuse the bodies that have not arrived; the service is being stopped."""
        for upload in list(self._receiving):
            self._give_up(upload, stopping())

    def _announced(self, request: Request) -> tuple[str, bytes, int]:
        """Return a body's media type, boundary and greatest length, judged by the head alone."""
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        name = kind.decode("latin-1").lower()
        if name not in (FORM, JSON):
            given = f"the content type is {name[:80]!r}" if name else "the content type is missing"
            raise ServiceError(415, "unsupported_media_type", f"{given}; send {FORM} or {JSON}")
        boundary = options.get(b"boundary", b"")
        if name == FORM and not 1 <= len(boundary) <= 200:
            message = "the content type has no boundary; let the HTTP client set this header"
            raise ServiceError(400, "invalid_form", message)
        # Base64 takes four bytes for three.
        limit = _BESIDES + (self._max_upload_bytes if name == FORM else -(-self._max_upload_bytes // 3) * 4)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large(self._max_upload_bytes)
        return name, boundary, limit

    async def _collect(self, upload: _Upload, request: Request, limit: int) -> None:
        try:
            async for chunk in request.stream():
                upload.length += len(chunk)
                self._held += len(chunk)
                if upload.length > limit:
                    raise too_large(self._max_upload_bytes)
                upload.chunks.append(chunk)
                if self._held > self._total_bytes:
                    self._make_room(upload)
        except ClientDisconnect:
            self._telemetry.refused.labels("client_left").inc()
            raise client_left() from None

    def _make_room(self, upload: _Upload) -> None:
        for other in [other for other in self._receiving if other is not upload]:
            self._give_up(other, busy("the service receives more than it can hold; try again in a second"))
            self._held -= other.length
            other.length = 0
            other.chunks.clear()
            if self._held <= self._total_bytes:
                return
        raise busy("the service holds as many images as it can; try again in a second")

    def _give_up(self, upload: _Upload, refusal: ServiceError) -> None:
        self._telemetry.refused.labels(refusal.code).inc()
        upload.refusal = refusal
        del self._receiving[upload]
        upload.scope.cancel()


@dataclass(eq=False)
class _Upload:
    """A body on its way."""

    scope: anyio.CancelScope
    chunks: list[bytes] = field(default_factory=list)
    length: int = 0
    refusal: ServiceError | None = None


def too_large(max_upload_bytes: int) -> ServiceError:
    """The body, or the image in it, is longer than allowed."""
    return ServiceError(
        413, "too_large", f"the upload is too large; send an image of at most {max_upload_bytes:,} bytes"
    )


def parse(body: Body, model: type[BaseModel], max_upload_bytes: int) -> tuple[BaseModel, list[bytes]]:
    """Return a body's validated fields, and the bytes of its images, none where it names items; or a `ServiceError`.

    A UTF-8 byte order mark before JSON is skipped.
    """
    try:
        if body.kind == FORM:
            values, images = _read_form(body, model)
            request = model.model_validate(values, strict=False)
        else:
            request = model.model_validate_json(body.content.removeprefix(_BOM))
            texts = [request.image] if "image" in request.model_fields_set else []  # type: ignore[attr-defined]
            texts += getattr(request, "images", None) or []
            images = [_from_base64(text) for text in texts]
    except ValidationError as error:
        raise from_validation(error) from error
    if any(len(image) > max_upload_bytes for image in images):
        raise too_large(max_upload_bytes)
    return request, images


def _from_base64(text: str) -> bytes:
    """Decode base64, which may be broken into lines or be a ``data:`` URI."""
    text = re.sub(r"^data:[^,]{0,200};base64,", "", text)
    try:
        return b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(
            422, "invalid_base64", f"image is not base64 ({error}); encode the whole file, or send a form"
        ) from error


def _read_form(body: Body, model: type[BaseModel]) -> tuple[dict[str, Any], list[bytes]]:
    values: dict[str, Any] = {}
    images = []
    for name, content in _parts(body):
        if name not in model.model_fields:
            shown = name[:80]
            raise invalid(f"unknown field {shown!r}; {nearest_names(shown, model.model_fields)}")
        is_list = name in ("images", "datasets", "ids")
        if name in values and not is_list:
            remedy = "; send images, a part each, to search by several together" if name == "image" else ""
            raise invalid(f"{name} is given more than once{remedy}")
        text = ""
        if name in ("image", "images"):
            images.append(content)
        else:
            try:
                text = content.removeprefix(_BOM).decode()
            except UnicodeDecodeError as error:
                raise invalid(f"{name} is not UTF-8 text") from error
        if is_list:
            values.setdefault(name, []).append(text)
        else:
            values[name] = _from_json(text) if name == "metadata" else text
    return values, images


def _from_json(metadata: str) -> Any:
    try:
        return json.loads(metadata)
    except (ValueError, RecursionError) as error:
        raise invalid(f"metadata is not JSON ({error})") from error


def _parts(body: Body) -> list[tuple[str, bytes]]:
    """Return the name and content of every part of a form, or raise a `ServiceError`."""
    parts: list[tuple[str, bytes]] = []
    ended = []

    def take(part: Field | File) -> None:
        if len(parts) >= _MAX_PARTS:
            raise ServiceError(400, "invalid_form", f"the form has more than {_MAX_PARTS} parts")
        content = part.file_object.getvalue() if isinstance(part, File) else part.value or b""  # type: ignore[union-attr]
        parts.append(((part.field_name or b"").decode("utf-8", "replace"), content))

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body.content) + 1}
    try:
        parser = FormParser(FORM, take, take, lambda: ended.append(True), boundary=body.boundary, config=in_memory)
        parser.write(body.content)
        parser.finalize()
    except FormParserError as error:
        raise ServiceError(400, "invalid_form", f"the form cannot be read ({cause(error)})") from error
    if not ended:
        raise ServiceError(400, "invalid_form", "the form is cut off before its end; send it again")
    return parts
