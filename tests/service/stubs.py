"""A database and a model that do what a test needs, behind the real service on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from PIL import Image

from unimetric.search.columns import ColumnSummary
from unimetric.search.items import Match, StoredItem
from unimetric.service.app import create_app
from unimetric.service.folder import IndexingState
from unimetric.service.options import ServiceConfig
from unimetric.service.run import Runner, listen, url_of

ID = "0123456789abcdef" * 2


class StubIndex:
    """As much of `SearchIndex` as the service uses. A replaced method can wait, fail or return a lot."""

    fingerprint, group_copies = "stub", False

    def prepare(self) -> None:
        pass

    def __init__(self) -> None:
        self.metadata_columns: dict[str, str] = {}
        self.embed: Callable[[int], None] = lambda count: None
        transform = SimpleNamespace(crop=lambda image: np.asarray(image.resize((2, 2)), np.float32))
        form = SimpleNamespace(embed_pixels=self._embed_pixels)
        self.embedder = SimpleNamespace(transform=transform, inference_form=lambda precision: form)

    def _embed_pixels(self, pixels: list[Any]) -> np.ndarray:
        self.embed(len(pixels))
        return np.stack([image.reshape(-1)[:4] for image in pixels])

    def check(self, **arguments: Any) -> None:
        pass

    def threshold_of(self, datasets: Any = None) -> None:
        return None

    def datasets(self) -> dict[str, int]:
        return {"hats": 1}

    def count(self) -> int:
        return sum(self.datasets().values())

    def search_vectors(self, vectors: Any, k: int, **filters: Any) -> list[list[Match]]:
        return [[Match(ID, 0.5, "hats", "bowler", "/hats/1.jpg", {}, None, None)]]

    def search_item(self, id: str, k: int, **filters: Any) -> list[Match]:
        return self.search_vectors(None, k)[0]

    def columns(self) -> list[ColumnSummary]:
        return []

    def search_together(self, vectors: Any, ids: Any, k: int, **filters: Any) -> list[Match]:
        return self.search_vectors(None, k)[0]

    def item(self, id: str) -> StoredItem:
        return StoredItem(id, "hats", "bowler", "/hats/1.jpg", {}, "0" * 64)

    def sample(self, n: int, seed: int = 0, datasets: Any = None, **browsing: Any) -> list[StoredItem]:
        return [self.item(ID)]

    def thumbnail(self, id: str) -> bytes:
        return b"\xff\xd8"

    def delete(self, ids: Any) -> int:
        return 1


class StubFolder:
    """A folder whose indexing is as far as a test sets it."""

    is_running = False

    def __init__(self, state: IndexingState) -> None:
        self.state = state

    def start(self) -> None:
        """Index nothing."""

    def stop(self, seconds: float) -> None:
        """Stop nothing."""


class Block:
    """A call that does not return before `release`, and counts how many are in it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._released = threading.Event()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.entered.release()
        self._released.wait(60)
        return []

    def wait_for(self, calls: int) -> None:
        """Wait until so many further calls have begun."""
        for _ in range(calls):
            assert self.entered.acquire(timeout=30)

    def release(self) -> None:
        """Let all calls return, now and later."""
        self._released.set()


class Served:
    """A running service."""

    def __init__(self, url: str, config: ServiceConfig) -> None:
        self.url, self.config = url, config

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def connect(self, sent: bytes = b"", buffer: int | None = None) -> socket.socket:
        """A connection that has sent this."""
        connection = socket.socket()
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(30)
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        connection.connect((host, int(port)))
        connection.sendall(sent)
        return connection


@contextmanager
def served(
    index: Any = None,
    token: str | None = None,
    read_token: str | None = None,
    folder: Any = None,
    follow: Any = None,
    **options: Any,
) -> Iterator[Served]:
    """Run the service in a thread, on a free port of this machine."""
    config = ServiceConfig(port=0, writable=token is not None, read_token=read_token is not None, **options)
    ready = threading.Event()
    tokens = {"token": token, "read_token": read_token}
    app = create_app(index or StubIndex(), config, **tokens, folder=folder, follow=follow, on_ready=ready.set)  # type: ignore[arg-type]
    runner = Runner()
    with listen(config) as listening:
        thread = threading.Thread(target=runner.run, args=(app, listening, config), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield Served(url_of(listening), config)
        finally:
            runner.stop()
            thread.join(30)
    assert not thread.is_alive()


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the first answer; the connection is read until it is closed."""
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert head, "the connection was closed without an answer"
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return int(head.split()[1]), body[:length]


def small_picture() -> bytes:
    """A PNG."""
    from io import BytesIO

    buffer = BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


def search_request(whole: bool = True, body: bytes = b'{"id": "' + ID.encode() + b'"}') -> bytes:
    """A search over HTTP; half of its body, where it is not whole."""
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    return head + (body if whole else body[: len(body) // 2])


def upload_request() -> bytes:
    """A search by a picture, over HTTP."""
    request = httpx.Request("POST", "http://localhost/v1/search", files={"image": small_picture()})
    request.read()
    head = b"".join(b"%s: %s\r\n" % pair for pair in request.headers.raw)
    return b"POST /v1/search HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n" + request.content
