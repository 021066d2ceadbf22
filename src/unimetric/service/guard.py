"""Checks and headers of every request, and its metrics."""

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimetric.service.failures import ANSWER_HEADERS, ServiceError, response_of
from unimetric.service.options import ServiceConfig
from unimetric.service.telemetry import Telemetry

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 64_000_000


class Guard:
    """Middleware around the application, which answers to ``hosts`` and loopback addresses; None is every name."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, telemetry: Telemetry) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        started = time.perf_counter()
        method = _method(scope)
        if method == "HEAD":
            scope = {**scope, "method": "GET"}  # the server leaves the body out of the answer
        try:
            if (refusal := self._refusal(scope)) is not None:
                await response_of(refusal)(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            route = _route(scope)
            self._telemetry.requests.labels(route, method, str(exchange.status)).inc()
            self._telemetry.seconds.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        headers = Headers(scope=scope)
        if scope["method"] == "PRI":
            return ServiceError(505, "malformed_http", "HTTP/2 is not supported; send HTTP/1.1")
        if self._hosts is not None and not self._answers_to(headers.get("host", "")):
            return ServiceError(
                421, "unknown_host", "the service does not answer to this name; add it with --allowed_hosts"
            )
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            return ServiceError(403, "foreign_page", "pages of other sites may not use this service")
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy that believes the other header would see another request in the rest of the body.
            message = "the request has both Transfer-Encoding and Content-Length; send one of them"
            return ServiceError(400, "malformed_http", message)
        if headers.get("upgrade", "").lower() == "websocket":
            return ServiceError(
                400, "no_websockets", "there are no websockets here; see /openapi.json for what there is"
            )
        return None

    def _answers_to(self, host: str) -> bool:
        name = _name(host)
        return name == "localhost" or name in (self._hosts or ()) or is_loopback(name)


def hosts_of(config: ServiceConfig) -> list[str] | None:
    """Return the names that the service answers to, beside loopback addresses; None is every name."""
    if config.allowed_hosts or is_loopback(config.host):
        return [config.host, *config.allowed_hosts]
    return None


def is_loopback(host: str) -> bool:
    """Return True for ``localhost`` and addresses that reach this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _route(scope: Scope) -> str:
    # Requested paths would make as many labels as there are items.
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
        # A client that waits for "100 Continue" does not send a body that was refused.
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
            # Closing at once would reset the connection, and a client that is still sending would not read the answer.
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
