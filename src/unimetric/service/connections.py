"""One client's connection: uvicorn's HTTP/1.1 protocol with time limits, a cap and errors in the service's shape."""

from __future__ import annotations

import asyncio
import http
import sys
from typing import Any

import h11
from starlette.requests import HTTPConnection
from uvicorn.protocols.http.h11_impl import H11Protocol

from unimetric.errors import cause
from unimetric.service.failures import ANSWER_HEADERS, ServiceError, busy, response_of

_HEAD_SECONDS = 10.0
"""Time for a request's head to arrive, at most."""

_CHECK_SECONDS = 0.5


class Connection(H11Protocol):
    """A connection that closes when its client is too slow, and stays open for an answer after a half-close.

    uvicorn itself waits for ever for a head, and for a client to read. When more than `limit` connections are open, the
    one that has kept the service waiting longest for a complete request is dropped; a new one is refused only where
    all others have sent theirs.
    """

    limit = sys.maxsize
    """Open connections."""
    seconds = 30.0
    """Time for a client to read an answer, and to send a head where that is less than ten seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app_state = {**self.app_state, "connection": self}
        self.half_closed = False
        """True when the client has finished sending; it may still read."""
        self._waiting_since: float | None = None
        # Counted in checks, not in seconds: a client is not slow while the event loop is held up.
        self._waited = self._sent = 0
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def with_limits(cls, limit: int, seconds: float) -> type[Connection]:
        """Return the class for a server with these limits."""
        return type(cls.__name__, (cls,), {"limit": limit, "seconds": seconds})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; make room, or refuse, when too many connections are open."""
        super().connection_made(transport)
        self._wait()
        self._timer = self.loop.call_later(_CHECK_SECONDS, self._check)
        if len(self.connections) <= self.limit:
            return
        others = [other for other in self.connections if other is not self and isinstance(other, Connection)]
        waiting = [(c._waiting_since, id(c), c) for c in others if c._waiting_since is not None]
        if waiting:
            slowest = min(waiting)[2]
            slowest.transport.abort()
            self.connections.discard(slowest)
        else:
            self._refuse(busy(f"{self.limit} connections are open, which is the limit; try again in a second"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Record when a request begins and when it is complete."""
        if not self._under_way and not self.conn.trailing_data[0]:
            self._wait()
        super().data_received(data)
        self._note_complete_request()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection open for the answer when the client has sent its whole request and then half-closed."""
        self.half_closed = self._under_way and not self.cycle.more_body
        return self.half_closed or None

    def on_response_complete(self) -> None:
        """Wait for the next request, unless the client has finished sending."""
        self._wait()
        super().on_response_complete()
        self._note_complete_request()
        if self.half_closed and not self._under_way:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with an error in the service's format and the status that h11 suggests."""
        error = sys.exc_info()[1]
        status, reason = 400, msg
        if isinstance(error, h11.RemoteProtocolError):
            status, reason = error.error_status_hint, cause(error)
        self._refuse(ServiceError(status, "malformed_http", f"this is not a valid HTTP/1.1 request ({reason})"))

    def _should_upgrade(self) -> bool:
        return False

    @property
    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting_since = self.loop.time()
        self._waited = 0

    def _note_complete_request(self) -> None:
        if self._under_way and not self.cycle.more_body:
            self._waiting_since = None

    def _check(self) -> None:
        self._timer = self.loop.call_later(_CHECK_SECONDS, self._check)
        self._sent = self._sent + 1 if self.transport.get_write_buffer_size() else 0
        if self._sent * _CHECK_SECONDS > self.seconds:
            self.transport.abort()
            return
        self._waited += 1
        allowed = min(self.seconds, _HEAD_SECONDS)
        late = self._waiting_since is not None and self._waited * _CHECK_SECONDS > allowed
        if late and not self._under_way and not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                message = f"the request's head took longer than {allowed:g} s; send it at once"
                self._refuse(ServiceError(408, "slow_request", message))
            else:
                self.transport.close()

    def _refuse(self, error: ServiceError) -> None:
        """Answer and close, whatever the client is still sending."""
        if self._under_way:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            response = response_of(error)
            headers = [*response.raw_headers, *((n.encode(), v.encode()) for n, v in ANSWER_HEADERS.items())]
            reason = http.HTTPStatus(error.status).phrase.encode()
            events: tuple[h11.Event, ...] = (
                h11.Response(status_code=error.status, headers=[*headers, (b"connection", b"close")], reason=reason),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def is_half_closed(connection: HTTPConnection) -> bool:
    """Return True when a request's client has finished sending, and may have left; False under another server."""
    return getattr(connection.scope.get("state", {}).get("connection"), "half_closed", False)
