"""Places, threads and deadlines of the requests that are being worked on."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.requests import HTTPConnection

from unimetric.cpu import available_cores
from unimetric.errors import UserError
from unimetric.service.connections import is_half_closed
from unimetric.service.failures import ServiceError, busy
from unimetric.service.options import ServiceConfig
from unimetric.service.telemetry import Telemetry

log = logging.getLogger(__name__)

T = TypeVar("T")

_SEARCHERS = 4
"""Threads that search the database, which has threads of its own for each query, and as many that look up items."""

MAX_ABANDONED = 16
"""Calls of one kind that may run on after their deadlines; no further call is started beyond them."""


class Lane:
    """Threads for one kind of work, so that slow work of one kind holds up no other.

    Python cannot end a thread. A call whose request has ended runs on, and is abandoned after so many ``seconds``: its
    thread no longer counts then, and another one takes its place. None is for work that ends by itself and needs much
    memory: it is never abandoned.
    """

    def __init__(self, name: str, threads: int, telemetry: Telemetry, seconds: float | None = None) -> None:
        self._name = name
        self._limiter = CapacityLimiter(threads)
        self._telemetry = telemetry
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running = 0

    @property
    def abandoned(self) -> int:
        """Calls that run on after their deadlines."""
        return max(0, self._running - int(self._limiter.borrowed_tokens))

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in a thread of this lane. When this is cancelled, a call that has not begun is dropped."""
        begun = threading.Event()

        def call() -> T:
            begun.set()
            with self._lock:
                self._running += 1
            try:
                return function()
            finally:
                with self._lock:
                    self._running -= 1

        if self.abandoned >= MAX_ABANDONED:
            raise busy(f"{MAX_ABANDONED} earlier requests of this kind have not ended; try again later", seconds=5)
        loop = asyncio.get_running_loop()
        deadline = None if self._seconds is None else loop.time() + self._seconds
        task = asyncio.ensure_future(to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter))
        try:
            with self._telemetry.timed(self._name):
                return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            if not begun.is_set():
                task.cancel()
            elif deadline is not None:
                loop.call_at(deadline, task.cancel)
            raise


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Log the failure of a call that no request waits for any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, UserError | ServiceError):
        log.error("a call failed after its request had ended", exc_info=error)


class Workers:
    """Lanes, and places for the requests that are worked on at a time, of one service."""

    def __init__(self, config: ServiceConfig, telemetry: Telemetry) -> None:
        self._places, self._seconds = config.queue_size, config.request_seconds
        self._held: dict[asyncio.Event, HTTPConnection] = {}
        self._telemetry = telemetry
        self.decoding = Lane("decode", available_cores(), telemetry)
        self.searching = Lane("store", _SEARCHERS, telemetry, self._seconds)
        self.reading = Lane("read", _SEARCHERS, telemetry, self._seconds)
        self.writing = Lane("write", 1, telemetry, self._seconds)
        self.opening = Lane("original", available_cores(), telemetry, self._seconds)

    @property
    def abandoned(self) -> int:
        """Calls that run on after their deadlines, in all lanes."""
        lanes = (self.decoding, self.searching, self.reading, self.writing, self.opening)
        return sum(lane.abandoned for lane in lanes)

    @contextmanager
    def place(self, request: Request) -> Iterator[asyncio.Event]:
        """Hold a place, and yield the event that it was given to another request.

        When all are taken, the oldest request whose client has finished sending, and has perhaps left, loses its place;
        a `ServiceError` if every client is connected.
        """
        if len(self._held) >= self._places:
            given_up = next((place for place, client in self._held.items() if is_half_closed(client)), None)
            if given_up is None:
                self._telemetry.refused.labels("busy").inc()
                raise busy(f"{self._places} requests are under way, which is the limit; try again in a second")
            given_up.set()
            del self._held[given_up]
        evicted = asyncio.Event()
        self._held[evicted] = request
        self._telemetry.under_way.set(len(self._held))
        try:
            yield evicted
        finally:
            self._held.pop(evicted, None)
            self._telemetry.under_way.set(len(self._held))

    async def answer(self, request: Request, working: Awaitable[T], evicted: asyncio.Event | None = None) -> T:
        """Wait for an answer, within the request's time and while its client waits; or raise a `ServiceError`."""
        work = asyncio.ensure_future(working)
        leaving = asyncio.ensure_future(_disconnection(request))
        giving_up = asyncio.ensure_future((evicted or asyncio.Event()).wait())
        tasks = {work, leaving, giving_up}
        try:
            await asyncio.wait(tasks, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if leaving.done():
                self._telemetry.refused.labels("client_left").inc()
                raise client_left()
            if giving_up.done():
                self._telemetry.refused.labels("busy").inc()
                raise busy("other requests took precedence over this one, whose client had finished sending")
            self._telemetry.refused.labels("timeout").inc()
            raise ServiceError(
                504,
                "timeout",
                f"there was no answer within {self._seconds:g} s; try again later, or with a smaller image",
                {"Retry-After": "1"},
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look_up(self, request: Request, function: Callable[[], T]) -> T:
        """Answer a request from the database, in a thread, within its time."""
        return await self.answer(request, self.reading.run(function))


def client_left() -> ServiceError:
    """The client has closed the connection, so no answer is sent."""
    return ServiceError(499, "client_left", "the client closed the connection")


def stopping() -> ServiceError:
    """The service accepts no further requests."""
    return busy("the service is being stopped; try again in a few seconds", "stopping", 5)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
