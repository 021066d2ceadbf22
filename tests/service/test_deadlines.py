"""Slow work of any kind ends with its request's time, and holds up no other kind."""

from __future__ import annotations

import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from stubs import ID, Block, StubIndex, answer_of, served, small_picture, upload_request

from unimetric.service.app import create_app
from unimetric.service.options import ServiceConfig
from unimetric.service.run import Runner, listen

READS = {
    "datasets": "/v1/datasets",
    "sample": "/v1/items",
    "item": f"/v1/items/{ID}",
    "thumbnail": f"/v1/items/{ID}/image",
}


def ask(client: httpx.Client, slow: str) -> httpx.Response:
    if slow in READS:
        return client.get(READS[slow])
    if slow == "delete":
        return client.delete(f"/v1/items/{ID}", headers={"Authorization": "Bearer secret"})
    if slow == "search_vectors":
        return client.post("/v1/search", files={"image": small_picture()})
    return client.post("/v1/search", json={"id": ID})


@pytest.mark.parametrize("slow", [*READS, "delete", "search_vectors", "search_item"])
def test_slow_work_ends_in_time_and_frees_its_thread(slow: str) -> None:
    """More requests than there are threads, one after the other: each gets its own thread and its own answer."""
    index, block = StubIndex(), Block()
    usual = getattr(index, slow)
    with served(index, token="secret", request_seconds=0.3) as service, service.client() as client:
        try:
            setattr(index, slow, block)
            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(lambda _: ask(client, slow), range(6)))
            assert {answer.status_code for answer in answers} == {504}
            assert {answer.json()["error"]["code"] for answer in answers} == {"timeout"}
            setattr(index, slow, usual)
            # Nothing has been released, and everything works.
            for other in (*READS, "delete", "search_vectors", "search_item"):
                assert ask(client, other).is_success, other
        finally:
            block.release()


def test_slow_searches_hold_up_no_other_route() -> None:
    index, block = StubIndex(), Block()
    index.search_item = block  # type: ignore[method-assign]
    with served(index, queue_size=32) as service, service.client() as client, ThreadPoolExecutor(16) as pool:
        slow = [pool.submit(ask, client, "search_item") for _ in range(16)]
        block.wait_for(4)
        for path in READS.values():
            assert client.get(path).status_code == 200
        assert client.post("/v1/embed", files={"image": small_picture()}).status_code == 200
        block.release()
        assert {answer.result().status_code for answer in slow} == {200}


def test_calls_that_never_return_are_bounded() -> None:
    """Beyond a number of calls that nobody waits for any more, the service refuses at once; then it recovers."""
    index, block = StubIndex(), Block()
    usual, index.item = index.item, block  # type: ignore[method-assign]
    with served(index, request_seconds=0.2) as service, service.client() as client:
        try:
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: ask(client, "item"), range(40)))
            assert {answer.status_code for answer in answers} == {503, 504}
            refused = next(answer for answer in answers if answer.status_code == 503)
            assert refused.json()["error"]["code"] == "busy"
            assert int(refused.headers["retry-after"]) >= 1
        finally:
            index.item = usual  # type: ignore[method-assign]
            block.release()
        while (answer := ask(client, "item")).status_code == 503:
            pass
        assert answer.status_code == 200


def test_clients_that_leave_free_no_decoder() -> None:
    """A large image keeps its thread to its end, so that leaving at once does not multiply the memory."""
    index, block, most = StubIndex(), Block(), os.cpu_count() or 1
    with served(index) as service, ExitStack() as stack:
        stack.callback(block.release)
        index.embedder.transform.crop = block
        for number in range(3 * most):
            connection = service.connect(upload_request())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if number < most:
                block.wait_for(1)
            connection.close()
        with service.client() as client:
            while "unimetric_requests_under_way 0.0" not in client.get("/metrics").text:
                pass
            assert not block.entered.acquire(blocking=False)
            assert client.get("/v1/datasets").status_code == 200


def test_a_slow_model_takes_nothing_with_it() -> None:
    index, block = StubIndex(), Block()
    with served(index, request_seconds=0.3, queue_size=4) as service, service.client() as client:
        index.embed = block
        try:
            with ThreadPoolExecutor(12) as pool:
                answers = list(pool.map(lambda _: ask(client, "search_vectors"), range(12)))
            assert {answer.status_code for answer in answers} <= {503, 504}
            assert client.get("/v1/datasets").status_code == 200
            assert client.post("/v1/search", json={"id": ID}).status_code == 200
        finally:
            block.release()
        assert ask(client, "search_vectors").status_code == 200


def test_an_item_that_is_being_added_holds_up_no_search() -> None:
    index, block = StubIndex(), Block()
    index.add = block  # type: ignore[attr-defined]
    with served(index, token="secret", request_seconds=0.3) as service, service.client() as client:
        try:
            headers = {"Authorization": "Bearer secret"}
            form = {"dataset": "hats"}
            answer = client.post("/v1/items", files={"image": small_picture()}, data=form, headers=headers)
            assert answer.status_code == 504
            assert client.post("/v1/search", json={"id": ID}).status_code == 200
        finally:
            block.release()


def test_a_get_that_announces_a_body_is_answered() -> None:
    request = b"GET /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with served() as service, service.connect(request) as connection:
        assert answer_of(connection)[0] == 200


def test_a_model_that_is_never_loaded_does_not_keep_it_from_stopping() -> None:
    index, loading = StubIndex(), Block()
    index.embedder.inference_form = loading
    config, runner = ServiceConfig(port=0, request_seconds=1), Runner()
    app = create_app(index, config)  # type: ignore[arg-type]
    with listen(config) as listening:
        thread = threading.Thread(target=runner.run, args=(app, listening, config), daemon=True)
        thread.start()
        loading.wait_for(1)
        runner.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert app.state.service.unfinished == "not all work in the background has ended"
    loading.release()
