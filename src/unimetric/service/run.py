"""Start of the server, and its graceful shutdown."""

import contextlib
import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from unimetric.errors import UserError
from unimetric.service.connections import Connection
from unimetric.service.options import ServiceConfig

_BACKLOG = 1024


class _Server(uvicorn.Server):
    """Server that stops in good order at the first signal, and keeps the signal instead of raising it again."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self.signals: list[int] = []
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            try:
                yield
            finally:
                self.signals, self._captured_signals = self._captured_signals, []


def listen(config: ServiceConfig) -> socket.socket:
    """Return a listening socket; a `UserError` if the address is not this machine's, or the port is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host is {config.host!r}: no address of this machine; use 127.0.0.1") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Answers go out in two writes; without this the second one waits 40 ms for the first one's acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; choose another --port or --host"
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if listening.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Runner:
    """Runs an application until a signal or a failure ends it."""

    def __init__(self) -> None:
        self._server: _Server | None = None
        self._failure: BaseException | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        """End the application, from any thread; `run` raises the error."""
        self._failure = error
        self.stop()

    def stop(self) -> None:
        """End the application in good order, from any thread."""
        with self._lock:
            self._stopped = True
            if self._server is not None:
                self._server.should_exit = True

    def run(self, app: FastAPI, listening: socket.socket, config: ServiceConfig) -> int | None:
        """Serve until SIGTERM or Ctrl-C, then finish the requests that have arrived; a second Ctrl-C waits for none.

        Returns:
            The signal that ended it.
        """
        options: dict[str, Any] = {
            # Clients that speak no HTTP get an answer; a log line for each would fill the disk.
            "log_level": "error",
            "access_log": False,
            "http": Connection.with_limits(
                min(config.max_connections, _affordable_connections()), config.request_seconds
            ),
            "ws": "none",
            "server_header": False,
            "proxy_headers": False,
            # Requests end within their own time.
            "timeout_graceful_shutdown": max(1, round(config.request_seconds) + 1),
        }
        server = _Server(uvicorn.Config(app, **options), app.state.service.stop)
        with self._lock:
            self._server = server
            server.should_exit = self._stopped
        # A second Ctrl-C cancels what is under way, which is not an error.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.force_exit)
        server.run(sockets=[listening])
        if self._failure is not None:
            raise self._failure
        return server.signals[0] if server.signals else None


def _affordable_connections() -> int:
    """Return half of the files that this process may open; the database needs the others."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which has no such limit
        return sys.maxsize
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
