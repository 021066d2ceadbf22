"""Objects that the routes share, and the path of an uploaded image through them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from anyio import to_thread
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from pydantic import BaseModel

from unimetric.errors import UserError
from unimetric.search.index import SearchIndex
from unimetric.service import schemas
from unimetric.service.access import Access
from unimetric.service.batching import Batcher
from unimetric.service.connections import is_half_closed
from unimetric.service.failures import ServiceError, busy
from unimetric.service.folder import FolderIndexer
from unimetric.service.options import ServiceConfig
from unimetric.service.pictures import decode
from unimetric.service.telemetry import Telemetry
from unimetric.service.upgrading import Follower, Model
from unimetric.service.uploads import Body, Uploads, parse
from unimetric.service.work import Workers, stopping

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose body has been read: its validated fields, and its images, none where it names items.

    Vectors are the images' embeddings, float32 [M, E], by the model of ``index``; None where none are needed.
    """

    fields: Any
    images: list[bytes]
    vectors: NDArray[np.float32] | None
    index: SearchIndex


@dataclass(frozen=True)
class Kind:
    """A kind of request: its fields, and whether its image is embedded."""

    fields: type[BaseModel]
    embeds: bool = True


SEARCH, EMBED = Kind(schemas.SearchRequest), Kind(schemas.EmbedRequest)
ADD = Kind(schemas.AddRequest, embeds=False)


class Service:
    """The database, the model, and the threads that work with them; `create_app` describes the arguments."""

    def __init__(
        self,
        index: SearchIndex,
        config: ServiceConfig,
        access: Access,
        folder: FolderIndexer | None,
        follow: Callable[[Callable[..., Batcher]], Follower] | None,
        precision: str,
        on_failure: Callable[[BaseException], None],
        on_ready: Callable[[], None],
    ) -> None:
        self.config, self.access, self.folder, self._on_ready = config, access, folder, on_ready
        self.stopping = False
        self.telemetry = Telemetry()
        self.uploads = Uploads(config, self.telemetry)
        self.workers = Workers(config, self.telemetry)
        make_batcher = partial(
            Batcher, precision=precision, batch_size=config.batch_size, on_batch=self.telemetry.on_batch
        )
        self.model = Model(index, make_batcher(lambda: index.embedder, on_ready=self._ready, on_failure=on_failure))
        self.follower = None if follow is None else follow(make_batcher)

    def _ready(self) -> None:
        self.telemetry.ready.set(1)
        self._on_ready()
        if self.folder is not None:
            self.folder.start()
        if self.follower is not None:
            self.follower.start(lambda: self.model, self.use)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the threads, and stop them in good order."""
        self.batcher.start()
        # A daemon, since reading or a graph may take minutes; searches are answered meanwhile.
        threading.Thread(target=_prepare, args=(self.index,), name="prepare", daemon=True).start()
        yield
        self.stop()
        self.telemetry.ready.set(0)
        for part in (self.follower, self.folder, self.batcher):
            if part is not None:
                await to_thread.run_sync(part.stop, self.config.request_seconds)

    @property
    def group_copies(self) -> bool:
        """Copies of a picture are one match, unless a search asks for all."""
        wanted = self.config.group_copies
        return self.index.group_copies if wanted is None else wanted

    @property
    def index(self) -> SearchIndex:
        """The vectors that are searched now."""
        return self.model.index

    @property
    def batcher(self) -> Batcher:
        """The thread that embeds queries now."""
        return self.model.batcher

    def use(self, model: Model) -> None:
        """Answer requests that come from now on by another model."""
        self.model = model

    def stop(self) -> None:
        """Accept no further requests; those that have arrived are finished. Called in the event loop."""
        self.stopping = True
        self.uploads.stop()

    @property
    def unfinished(self) -> str:
        """Work that has not ended within its time, for a message; empty if all has."""
        if self.workers.abandoned:
            return "the database has not answered all requests"
        parts = (self.folder, self.follower, self.batcher)
        return "not all work in the background has ended" if any(part and part.is_running for part in parts) else ""

    def check_ready(self) -> None:
        """Raise a `ServiceError` unless images are embedded now."""
        self._check_running()
        if not self.batcher.ready:
            raise _starting()

    def _check_running(self) -> None:
        if self.stopping:
            raise stopping()

    async def take(self, request: Request, kind: Kind, answer: Callable[[ParsedRequest], Awaitable[Any]]) -> Any:
        """Receive a request's body, then take a place, embed its image, and answer; or raise a `ServiceError`."""
        self._check_running()
        async with self.uploads.receive(request) as body:
            self._check_running()
            with self.workers.place(request) as evicted:
                return await self.workers.answer(request, self._work(request, body, kind, answer), evicted)

    async def _work(
        self, request: Request, body: Body, kind: Kind, answer: Callable[[ParsedRequest], Awaitable[Any]]
    ) -> Any:
        # To the end, even if another model takes over meanwhile.
        index, batcher = self.model.index, self.model.batcher
        with batcher.expecting():
            fields, images, pixels = await self.workers.decoding.run(lambda: self._parse(body, kind, batcher))
            embeddings = (
                [batcher.submit(one, partial(is_half_closed, request)) for one in pixels] if kind.embeds else []
            )
        if not embeddings:
            return await answer(ParsedRequest(fields, images, None, index))
        with self.telemetry.timed("model"):
            vectors = await asyncio.gather(*map(asyncio.wrap_future, embeddings))
        return await answer(ParsedRequest(fields, images, np.stack(vectors), index))

    def _parse(self, body: Body, kind: Kind, batcher: Batcher) -> tuple[BaseModel, list[bytes], list[Tensor]]:
        """In a thread: a body's fields, and its images' bytes and pixels."""
        fields, images = parse(body, kind.fields, self.config.max_upload_bytes)
        if not images:
            return fields, [], []
        # Items and vectors are searched for without the model. A request that has its place is finished while the
        # service is being stopped.
        embedder = batcher.embedder
        if embedder is None:
            raise stopping() if self.stopping else _starting()
        crops = [embedder.transform.crop(decode(image, self.config.max_pixels)) for image in images]
        return fields, images, crops


def _starting() -> ServiceError:
    return busy("the model is still being loaded; try again in a few seconds", "starting", 5)


def _prepare(index: SearchIndex) -> None:
    """Read the vectors into memory before the first search."""
    try:
        index.prepare()
    except UserError as error:
        log.warning("vectors are not read into memory yet: %s", error)
