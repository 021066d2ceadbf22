"""Clients that are slow, leave, half-close or speak something else than HTTP, on real sockets."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import time
from contextlib import ExitStack

import pytest
from stubs import ID, Block, StubIndex, answer_of, search_request, served, small_picture, upload_request

from unimetric.cpu import available_cores

HALF_HEAD = b"GET /v1/datasets HTTP/1.1\r\nHost: loc"


def error_of(body: bytes) -> str:
    """The code of an error, which has the service's shape."""
    content = json.loads(body)
    assert list(content) == ["error"]
    assert "\n" not in content["error"]["message"]
    return str(content["error"]["code"])


def test_half_sent_bodies_take_no_place() -> None:
    with served(queue_size=2) as service, ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(service.connect(search_request(whole=False)))
        with service.client() as client:
            for _ in range(3):
                assert client.post("/v1/search", json={"id": ID}).status_code == 200
            assert "unimetric_requests_under_way 0.0" in client.get("/metrics").text


def test_a_half_sent_body_is_answered_after_its_time() -> None:
    with served(request_seconds=0.3) as service, service.connect(search_request(whole=False)) as slow:
        status, body = answer_of(slow)
    assert (status, error_of(body)) == (408, "slow_upload")


def test_half_sent_heads_are_answered_after_their_time() -> None:
    with served(request_seconds=0.3) as service, ExitStack() as stack:
        slow = [stack.enter_context(service.connect(HALF_HEAD)) for _ in range(20)]
        silent = stack.enter_context(service.connect())
        again = stack.enter_context(service.connect(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        assert again.recv(65536).startswith(b"HTTP/1.1 200")
        again.sendall(HALF_HEAD)
        for connection in (*slow, again):
            status, body = answer_of(connection)
            assert (status, error_of(body)) == (408, "slow_request")
        assert silent.recv(100) == b""


def test_beyond_the_cap_those_that_are_waited_for_longest_are_dropped() -> None:
    with served(max_connections=8) as service, ExitStack() as stack:
        heads = [stack.enter_context(service.connect(HALF_HEAD)) for _ in range(30)]
        bodies = [stack.enter_context(service.connect(search_request(whole=False))) for _ in range(30)]
        with service.client() as client:
            assert client.post("/v1/search", json={"id": ID}).status_code == 200
        for dropped in (heads[0], heads[-1], bodies[0]):
            assert _is_dropped(dropped)


def _is_dropped(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_requests_that_are_worked_on_are_not_dropped_for_new_connections() -> None:
    index, block = StubIndex(), Block()
    index.search_item = block  # type: ignore[method-assign]
    with served(index, max_connections=2) as service, ExitStack() as stack:
        stack.callback(block.release)
        working = [stack.enter_context(service.connect(search_request())) for _ in range(2)]
        block.wait_for(2)
        status, body = answer_of(stack.enter_context(service.connect()))
        assert (status, error_of(body)) == (503, "busy")
        block.release()
        assert [answer_of(connection)[0] for connection in working] == [200, 200]


def test_uploads_share_a_budget_and_the_oldest_gives_way() -> None:
    body = b"x" * 90_000
    with served(max_upload_bytes=100_000, queue_size=4) as service, ExitStack() as stack:
        slow = [stack.enter_context(service.connect(search_request(body=body)[:-10])) for _ in range(12)]
        status, answer = answer_of(slow[0])
        assert (status, error_of(answer)) == (503, "busy")
        with service.client() as client:
            assert client.post("/v1/search", files={"image": small_picture()}).status_code == 200


def test_a_client_that_does_not_read_is_dropped() -> None:
    index = StubIndex()
    long = index.item(ID)
    index.sample = lambda n, seed=0, datasets=None, **browsing: [long] * 20_000  # type: ignore[method-assign]
    with served(index, request_seconds=1) as service, service.client() as client:
        request = b"GET /v1/items HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with service.connect(request, buffer=4096) as idle:
            received = idle.recv(1)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert client.get("/healthz").status_code == 200
            try:
                while data := idle.recv(65536):
                    received += data
            except ConnectionResetError:
                pass
        length = int(received.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert len(received) < length


@pytest.mark.parametrize("pipelined", [1, 3])
def test_a_half_closed_client_gets_its_answer(pipelined: int) -> None:
    request = b"GET /v1/datasets HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served() as service, service.connect(request * pipelined) as connection:
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == received.count(b'"hats"') == pipelined


def test_an_uploading_client_may_half_close() -> None:
    with served() as service, service.connect(search_request()) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert answer_of(connection)[0] == 200


def test_half_closed_requests_give_way_to_others() -> None:
    """They may have left: they keep no place that another needs."""
    index, block = StubIndex(), Block()
    with served(index, queue_size=2) as service, ExitStack() as stack:
        stack.callback(block.release)
        search, index.search_item = index.search_item, block  # type: ignore[method-assign]
        halves = [stack.enter_context(service.connect(search_request())) for _ in range(2)]
        block.wait_for(2)
        index.search_item = search  # type: ignore[method-assign]
        halves[0].shutdown(socket.SHUT_WR)
        with service.client() as client:
            while (answer := client.post("/v1/search", json={"id": ID})).status_code == 503:
                assert answer.json()["error"]["code"] == "busy"
        assert answer.status_code == 200
        status, body = answer_of(halves[0])
        assert (status, error_of(body)) == (503, "busy")
        block.release()
        assert answer_of(halves[1])[0] == 200


def test_images_of_half_closed_clients_are_embedded_last() -> None:
    index, block = StubIndex(), Block()
    with served(index, batch_size=1) as service, ExitStack() as stack:
        stack.callback(block.release)
        index.embed = block
        with service.client() as client:
            first, half, present = (stack.enter_context(service.connect(upload_request())) for _ in range(3))
            half.shutdown(socket.SHUT_WR)
            block.wait_for(1)
            while "unimetric_requests_under_way 3.0" not in client.get("/metrics").text:
                pass
        block.release()
        assert [answer_of(connection)[0] for connection in (first, present, half)] == [200] * 3


MALFORMED: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"EHLO mail.example\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    "two lengths": (
        b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        400,
    ),
    "negative length": (b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
    "length and coding": (
        b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "gzip coding": (b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "bad chunk": (
        b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
    ),
    "long head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, 431),
    "websocket": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        400,
    ),
    "tunnel": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests(name: str, caplog: pytest.LogCaptureFixture) -> None:
    request, expected = MALFORMED[name]
    with served() as service, service.connect(request) as connection:
        connection.shutdown(socket.SHUT_WR)
        status, body = answer_of(connection)
        with service.client() as client:
            assert client.get("/healthz").status_code == 200
    assert status == expected, body
    assert error_of(body) in ("malformed_http", "no_websockets", "not_found")
    assert b"pip" not in body
    assert caplog.records == []


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", ["half a head", "half a body", "a whole request"])
def test_a_client_that_leaves_leaves_no_trace_in_the_log(
    sent: str, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    content = {
        "half a head": HALF_HEAD,
        "half a body": search_request(whole=False),
        "a whole request": search_request(),
    }[sent]
    with served() as service:
        for _ in range(5):
            connection = service.connect(content)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        with service.client() as client:
            assert client.post("/v1/search", json={"id": ID}).status_code == 200
            while "unimetric_requests_under_way 0.0" not in client.get("/metrics").text:
                pass
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_stopping_finishes_requests_that_wait_for_a_decoder() -> None:
    index, block, decoders = StubIndex(), Block(), available_cores()
    with ExitStack() as stack:
        with served(index) as service, service.client() as client:
            while client.get("/healthz").status_code != 200:
                time.sleep(0.01)
            crop = index.embedder.transform.crop
            index.embedder.transform.crop = lambda image: (block(), crop(image))[1]
            asked = [stack.enter_context(service.connect(upload_request())) for _ in range(decoders + 1)]
            block.wait_for(decoders)
            while f"unimetric_requests_under_way {decoders + 1:.1f}" not in client.get("/metrics").text:
                time.sleep(0.01)
            # After the service began to stop, which leaving this block does.
            releasing = threading.Timer(0.5, block.release)
            releasing.start()
        assert [answer_of(connection)[0] for connection in asked] == [200] * (decoders + 1)
        releasing.join()


def test_stopping_does_not_wait_for_half_sent_bodies() -> None:
    with ExitStack() as stack:
        with served(request_seconds=60) as service:
            slow = stack.enter_context(service.connect(search_request(whole=False)))
            with service.client() as client:
                assert client.get("/healthz").status_code == 200
        status, body = answer_of(slow)
    assert (status, error_of(body)) == (503, "stopping")
