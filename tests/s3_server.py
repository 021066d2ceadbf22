"""An S3 server on this machine (moto's), with faults to order: refusals, lost connections, writers that meet."""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

KEY, SECRET = "a-key-for-the-tests", "a-secret-for-the-tests"


@dataclass(frozen=True)
class Request:
    """A request, by its method and path: ``/bucket/key``, or ``/bucket`` for a listing."""

    method: str
    path: str
    is_commit: bool
    """Write only if there is no such object: a version of a table."""


Fault = Callable[[Request], str | None]
"""A fault: ``403``, ``500``, ``503``, ``half upload``, ``half download``, ``lost answer``; or None."""


class S3Server:
    """moto's server in a thread of this process."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.reset()
        self._thread.start()

    def reset(self) -> None:
        """Forget faults and requests."""
        self.fault: Fault = lambda request: None
        self.hurt: Counter[str] = Counter()
        self.requests: list[Request] = []

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if f"Credential={KEY}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            given = "AccessDenied" if "HTTP_AUTHORIZATION" not in environ else "InvalidAccessKeyId"
            return refuse(start_response, "403 Forbidden", given)
        is_commit = environ.get("HTTP_IF_NONE_MATCH") == "*"
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], is_commit)
        with self._lock:
            self.requests.append(request)
        fault = self.fault(request)
        if fault is None:
            return self._moto(environ, start_response)
        with self._lock:
            self.hurt[fault] += 1
        if fault == "503":
            return refuse(start_response, "503 Slow Down", "SlowDown")
        if fault == "403":
            return refuse(start_response, "403 Forbidden", "AccessDenied")
        if fault == "500":
            return refuse(start_response, "500 Internal Server Error", "InternalError")
        return self._cut(fault, environ, start_response)

    def _cut(self, fault: str, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if fault == "half upload":
            environ["wsgi.input"].read(length // 2)
        else:
            content = b"".join(self._moto(environ, start_response))
            if fault == "half download":
                yield content[: len(content) // 2]
        environ["werkzeug.socket"].shutdown(2)


def refuse(start_response: Any, status: str, code: str) -> Iterable[bytes]:
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>ordered by the test</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
    return [content]


def some(share: float, seed: int, *faults: str) -> Fault:
    """Faults for a share of the requests, drawn from a seed; what failed succeeds at the next attempt."""
    random, lock, failed = Random(seed), threading.Lock(), set[tuple[str, str]]()

    def fault(request: Request) -> str | None:
        what = request.method, request.path
        fitting = [one for one in faults if fits(one, request)]
        with lock:
            if what in failed:
                failed.discard(what)
            elif fitting and random.random() < share:
                failed.add(what)
                return random.choice(fitting)
        return None

    return fault


def fits(fault: str, request: Request) -> bool:
    if fault == "half download":
        # LanceDB asks again for objects, not for listings.
        return request.method == "GET" and request.path.count("/") > 1
    return fault != "half upload" or request.method == "PUT"


@contextmanager
def meeting(server: S3Server, table: str, writers: int = 2) -> Iterator[threading.Barrier]:
    """Let the first commits of several writers to one table wait for each other, so that they are made at once."""
    barrier = threading.Barrier(writers)
    first = threading.Semaphore(writers)

    def fault(request: Request) -> None:
        if request.is_commit and f"/{table}.lance/" in request.path and first.acquire(blocking=False):
            barrier.wait(60)

    server.fault = fault
    yield barrier
    assert not first.acquire(blocking=False), "the writers did not meet"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("moto.server", reason="an S3 server for the tests: pip install 'unimetric[dev]'")
    server = S3Server()
    yield server
    server.stop()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and the server that it lies on."""

    server: S3Server
    client: Any
    name: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def upload(self, folder: Path, prefix: str) -> str:
        """Upload a folder's files; return its URI."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"{self.uri}/{prefix}"

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)
        return f"{self.uri}/{key}"

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keys(self, prefix: str = "") -> list[str]:
        listed = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """A bucket of its own for each test, and the environment in which commands find it."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3_server.url}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", region_name="us-east-1")
    name = f"bucket-{zlib.crc32(request.node.nodeid.encode()):08x}"
    client.create_bucket(Bucket=name)
    s3_server.reset()
    yield Bucket(s3_server, client, name)
    s3_server.reset()
