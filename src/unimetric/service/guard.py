"""What holds for every request: who may ask, what every answer carries, what is counted."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimetric.service.failures import ServiceError, response_of
from unimetric.service.telemetry import Telemetry

ANSWER_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""The page may load nothing from elsewhere, and no other page may hold it or its pictures."""

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64_000_000


class Guard:
    """Wraps the whole application.

    Args:
        app: The application.
        hosts: The names that it answers to, beside loopback addresses; None is every name.
        telemetry: Where answers are counted.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, telemetry: Telemetry) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        started = time.perf_counter()
        try:
            if (refusal := self._refusal(scope)) is not None:
                await response_of(refusal)(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            route = _route(scope)
            self._telemetry.requests.labels(route, _method(scope), str(exchange.status)).inc()
            self._telemetry.seconds.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        headers = Headers(scope=scope)
        if self._hosts is not None and not self._answers_to(headers.get("host", "")):
            return ServiceError(
                421, "unknown_host", "the service does not answer to this name; add it with --allowed_hosts"
            )
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            return ServiceError(403, "foreign_page", "pages of other sites may not use this service")
        return None

    def _answers_to(self, host: str) -> bool:
        name = _name(host)
        return name == "localhost" or name in (self._hosts or ()) or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether an address, or ``localhost``, reaches this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _route(scope: Scope) -> str:
    # Paths as they were asked for would be as many names as there are items.
    return str(getattr(scope.get("route"), "path", "other"))


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._receive, self._send = receive, send
        self._unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        # Who waits to be told to go on does not send what was refused.
        self._waits = "expect" in headers
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in ANSWER_HEADERS.items():
                headers[name] = value
            if self._unread:
                headers["Connection"] = "close"
        elif message["type"] == "http.response.body" and not message.get("more_body", False) and self._unread:
            # The answer is out. To close at once would reset the connection, and many clients that still send would
            # not read it; to read on for ever would let them fill the line.
            await self._send({**message, "more_body": True})
            if not self._waits:
                await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        until = time.monotonic() + _LINGER_SECONDS
        read = 0
        while self._unread and read < _LINGER_BYTES and (left := until - time.monotonic()) > 0:
            try:
                message: dict[str, Any] = dict(await asyncio.wait_for(self.receive(), left))
            except asyncio.TimeoutError:
                return
            read += len(message.get("body", b""))
