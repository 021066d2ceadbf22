"""What the routes share, and how a request with an image goes through it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel

from unimetric.config import ServiceConfig
from unimetric.search.index import SearchIndex
from unimetric.service import schemas
from unimetric.service.batching import Batcher
from unimetric.service.failures import busy
from unimetric.service.pictures import decode
from unimetric.service.telemetry import Telemetry
from unimetric.service.uploads import Body, parse, read_body
from unimetric.service.work import Workers, stopping

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Taken:
    """A request that was read.

    Attributes:
        sent: What it says.
        image: The bytes of its image, which can be decoded; None where it names an item instead.
        vector: The image's, float32 [E]; None where there is no image, or none is wanted.
    """

    sent: Any
    image: bytes | None
    vector: NDArray[np.float32] | None


@dataclass(frozen=True)
class Kind:
    """A kind of request: what it says as JSON and as a form, and whether its image is to be embedded."""

    json_model: type[BaseModel]
    form_model: type[BaseModel]
    embeds: bool = True


SEARCH = Kind(schemas.SearchRequest, schemas.SearchForm)
EMBED = Kind(schemas.EmbedRequest, schemas.EmbedForm)
ADD = Kind(schemas.AddRequest, schemas.AddForm, embeds=False)


@dataclass
class Service:
    """The database, the model, and the threads that work with them."""

    index: SearchIndex
    config: ServiceConfig
    token: str | None
    batcher: Batcher
    workers: Workers
    telemetry: Telemetry
    stopping: bool = False

    def check_ready(self) -> None:
        """Make sure that images are embedded now.

        Raises:
            ServiceError: they are not yet, or not any more.
        """
        if self.stopping:
            raise stopping()
        if not self.batcher.ready:
            raise busy("the model is still being loaded; try again in a few seconds", "starting", 5)

    async def take(self, request: Request, kind: Kind, answer: Callable[[Taken], Awaitable[Any]]) -> Any:
        """Read a request, embed its image, and answer it, within its time.

        Raises:
            ServiceError: there is no place for it, it is not as it should be, or it takes too long.
        """
        self.check_ready()
        until = self.workers.deadline()
        with self.workers.place():
            reading = read_body(request.headers, request.stream(), self.config.max_upload_bytes)
            body = await self.workers.read(reading, until)
            return await self.workers.answer(request, self._work(body, kind, answer), until)

    async def _work(self, body: Body, kind: Kind, answer: Callable[[Taken], Awaitable[Any]]) -> Any:
        with self.batcher.expecting():
            sent, image, pixels = await self.workers.decode(lambda: self._read(body, kind))
            embedding = self.batcher.submit(pixels) if pixels is not None and kind.embeds else None
        if embedding is None:
            return await answer(Taken(sent, image, None))
        with self.workers.timed("model"):
            vector = await asyncio.wrap_future(embedding)
        return await answer(Taken(sent, image, vector))

    def _read(self, body: Body, kind: Kind) -> tuple[BaseModel, bytes | None, Tensor | None]:
        """In a thread: what a body says, its image's bytes and pixels."""
        sent, image = parse(body, kind.json_model, kind.form_model, self.config.max_upload_bytes)
        if image is None:
            return sent, None, None
        embedder = self.batcher.embedder
        if embedder is None:
            raise stopping()
        return sent, image, embedder.transform.crop(decode(image, self.config.max_pixels))
