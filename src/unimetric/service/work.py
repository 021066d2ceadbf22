"""A request's way through threads: within its time, and for as long as its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from fastapi import Request

from unimetric.service.failures import ServiceError, busy
from unimetric.service.telemetry import Telemetry

T = TypeVar("T")


class Workers:
    """Places for requests that need more than a look, and the threads that do their work.

    Args:
        places: Requests under way at a time.
        seconds: How long a request may take altogether.
        decoders: Threads that read uploads.
        searchers: Threads that ask the database.
        telemetry: Where it is counted.
    """

    def __init__(self, places: int, seconds: float, decoders: int, searchers: int, telemetry: Telemetry) -> None:
        self._places = places
        self._taken = 0
        self._seconds = seconds
        self._telemetry = telemetry
        self._decoding = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._searching = ThreadPoolExecutor(searchers, thread_name_prefix="search")

    def close(self) -> None:
        """End the threads after what they are doing."""
        self._decoding.shutdown(cancel_futures=True)
        self._searching.shutdown(cancel_futures=True)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            ServiceError: none is left.
        """
        if self._taken >= self._places:
            self._telemetry.refused.labels("busy").inc()
            raise busy(f"{self._places} requests are under way, which is the limit; try again in a second")
        self._take(1)
        try:
            yield
        finally:
            self._take(-1)

    def _take(self, step: int) -> None:
        self._taken += step
        self._telemetry.under_way.set(self._taken)

    async def decode(self, function: Callable[[], T]) -> T:
        """Run a function in one of the threads that read uploads."""
        with self.timed("decode"):
            return await self._in(self._decoding, function)

    async def search(self, function: Callable[[], T]) -> T:
        """Run a function in one of the threads that ask the database."""
        with self.timed("store"):
            return await self._in(self._searching, function)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count how long a stage takes."""
        started = time.perf_counter()
        yield
        self._telemetry.stage.labels(stage).observe(time.perf_counter() - started)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        try:
            future = pool.submit(function)
        except RuntimeError as error:
            raise stopping() from error
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # Nothing stops a thread: its place stays taken, so that work which nobody waits for cannot pile up.
            self._keep_place_until(future)
            raise

    def _keep_place_until(self, future: Future[T]) -> None:
        if future.cancel() or future.done():
            return
        loop = asyncio.get_running_loop()
        self._take(1)

        def give_back(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody counts any more
                loop.call_soon_threadsafe(self._take, -1)

        future.add_done_callback(give_back)

    async def read(self, reading: Awaitable[T], until: float) -> T:
        """Wait for a body.

        Raises:
            ServiceError: it takes too long.
        """
        try:
            return await asyncio.wait_for(reading, max(0.001, until - time.monotonic()))
        except asyncio.TimeoutError as error:
            self._telemetry.refused.labels("slow_upload").inc()
            message = f"the upload took longer than {self._seconds:g} s; send a smaller image"
            raise ServiceError(408, "slow_upload", message) from error

    async def answer(self, request: Request, working: Awaitable[T], until: float) -> T:
        """Wait for an answer, unless its client leaves. The body has to have been read.

        Raises:
            ServiceError: it takes too long, or nobody waits for it any more.
        """
        work = asyncio.ensure_future(working)
        leaving = asyncio.ensure_future(_disconnection(request))
        try:
            left = max(0.001, until - time.monotonic())
            await asyncio.wait({work, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if leaving.done():
                self._telemetry.refused.labels("client_left").inc()
                raise ServiceError(499, "client_left", "the client closed the connection")
            self._telemetry.refused.labels("timeout").inc()
            raise ServiceError(
                504,
                "timeout",
                f"there was no answer within {self._seconds:g} s; try again later, or with a smaller image",
                {"Retry-After": "1"},
            )
        finally:
            for task in (work, leaving):
                task.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    def deadline(self) -> float:
        """When a request that begins now has to be answered, on the monotonic clock."""
        return time.monotonic() + self._seconds


def stopping() -> ServiceError:
    """The service takes nothing any more."""
    return busy("the service is being stopped; try again in a few seconds", "stopping", 5)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
