"""The command: starting, refusing to start, writing, too much at once, stopping."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from request_parts import TOKEN, picture

from serving import Server, start_server
from toy_runs import unimetric

SLOW = str(Path(__file__).with_name("slow_serve.py"))
"""``unimetric serve`` with a model that waits while there is a file at ``HOLD``."""
STUCK = str(Path(__file__).with_name("stuck_serve.py"))
"""``unimetric serve`` with a database that never gives an item, nor ends its maintenance."""


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIMETRIC_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--writable",), ("--writable", "UNIMETRIC_TOKEN")),
        (("--port", "70000"), ("--port is 70000",)),
        (("--queue_size", "0"), ("--queue_size is 0",)),
        (("--request_seconds", "0"), ("--request_seconds is 0",)),
        (("--request_seconds", ".inf"), ("--request_seconds is inf",)),
        (("--host", "no.such.name.invalid"), ("--host", "no.such.name.invalid")),
        (("--host", "8.8.8.8"), ("8.8.8.8", "--host")),
    ],
)
def test_what_it_does_not_start_with(
    database: Path, options: tuple[str, ...], words: tuple[str, ...], no_token: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unimetric("serve", database, *options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("unimetric: error: ")
    assert all(word in said for word in words), said


def test_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("serve", tmp_path / "none") == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_port_that_is_taken(database: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("serve", database, "--port", server.url.rpartition(":")[2]) == 2
    assert "choose another --port" in capsys.readouterr().err


def test_answers_do_not_wait_for_acknowledgements() -> None:
    from unimetric.service.options import ServiceConfig
    from unimetric.service.run import listen

    with listen(ServiceConfig(port=0)) as listening:
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        accepted.close()


def test_a_model_that_is_gone_ends_it(make_database: Callable[[], Path], toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run / "model", tmp_path / "model")
    (tmp_path / "model" / "adapter.safetensors").write_bytes(b"damaged")
    started = start_server(make_database(), "--model", tmp_path / "model", ready=False)
    code, said = started.stop(0)
    assert code == 2
    assert "unimetric: error: " in said
    assert "adapter.safetensors" in said


def test_other_addresses_are_warned_about_and_answer_to_every_name(database: Path) -> None:
    server = start_server(database, "--host", "0.0.0.0")
    with server.client() as client:
        assert client.get("/v1/datasets", headers={"Host": "search.example"}).status_code == 200
    code, said = server.stop()
    assert code == 0
    assert "loaded" in said


def test_a_name_that_is_allowed(database: Path) -> None:
    server = start_server(database, "--allowed_hosts", "search.example", "find.example")
    with server.client() as client:
        assert client.get("/healthz", headers={"Host": "search.example:443"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "find.example"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "other.example"}).status_code == 421
    assert server.stop()[0] == 0


def test_writing(make_database: Callable[[], Path]) -> None:
    server = start_server(make_database(), "--writable", UNIMETRIC_TOKEN=TOKEN)
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    new = picture(seed=9, size=(30, 50))
    with server.client() as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = client.post("/v1/items", files={"image": new}, data={"dataset": "hats"}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        form = {"dataset": "coats", "label": "blue", "path": "shop://coats/1", "metadata": '{"price": 77}'}
        added = client.post("/v1/items", files={"image": new}, data=form, headers=allowed)
        assert (added.status_code, added.json()["status"]) == (201, "written"), added.text
        id = added.json()["id"]
        # Names are compared as those that sources give, without white space around them.
        text = {**form, "label": " blue\u00a0", "metadata": {"price": 77}, "image": base64.b64encode(new).decode()}
        again = client.post("/v1/items", json=text, headers=allowed)
        assert (again.status_code, again.json()) == (200, {"id": id, "status": "unchanged"})
        found = client.post("/v1/search", files={"image": new}, data={"k": "1"}).json()["matches"][0]
        assert found["score"] == pytest.approx(1, abs=1e-3)
        assert (found["id"], found["dataset"], found["label"], found["path"], found["metadata"]) == (
            id, "coats", "blue", "shop://coats/1", {"price": 77},
        )  # fmt: skip
        assert client.get("/" + found["image"]).status_code == 200
        assert {entry["name"] for entry in client.get("/v1/datasets").json()["datasets"]} >= {"coats", "hats"}
        for fields in (
            {"dataset": ""},
            {"dataset": "\u00a0"},
            {},
            {"dataset": "x", "metadata": "[1]"},
            {"dataset": "x", "metadata": "{"},
        ):
            answer = client.post("/v1/items", files={"image": new}, data=fields, headers=allowed)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
        answer = client.post("/v1/items", files={"image": b"no"}, data={"dataset": "x"}, headers=allowed)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_an_image")
        assert client.delete(f"/v1/items/{id}").status_code == 401
        assert client.delete(f"/v1/items/{id}", headers=allowed).status_code == 204
        assert client.delete(f"/v1/items/{id}", headers=allowed).status_code == 404
        assert client.get(f"/v1/items/{id}").status_code == 404
        assert client.get("/" + found["image"]).status_code == 404
        assert client.post("/v1/search", files={"image": new}).status_code == 200
    code, said = server.stop()
    assert code == 0
    assert TOKEN not in said
    assert "Traceback" not in said


def test_searches_go_on_while_items_are_added(make_database: Callable[[], Path]) -> None:
    server = start_server(make_database(), "--writable", UNIMETRIC_TOKEN=TOKEN)

    def write(number: int) -> int:
        with server.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            form = {"dataset": "new", "path": str(number)}
            return client.post("/v1/items", files={"image": picture(seed=number)}, data=form).status_code

    def read(number: int) -> int:
        with server.client() as client:
            return client.post("/v1/search", files={"image": picture(seed=number)}).status_code

    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(write, number) for number in range(6)]
        found = [pool.submit(read, number) for number in range(24)]
        assert {future.result() for future in written} == {201}
        assert {future.result() for future in found} == {200}
    with server.client() as client:
        assert client.get("/v1/datasets").json()["items"] == 48 + 6
    assert server.stop()[0] == 0


def metric(client: httpx.Client, name: str) -> float:
    """The value of a metric, 0 if there was nothing to count."""
    lines = [line.rpartition(" ") for line in client.get("/metrics").text.splitlines()]
    return next((float(value) for found, _, value in lines if found == name), 0.0)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


UNDER_WAY, BUSY = "unimetric_requests_under_way", 'unimetric_requests_refused_total{reason="busy"}'


def test_too_much_at_once_is_refused_and_then_it_is_fine(database: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    server = start_server(database, "--queue_size", 4, "--batch_size", 2, script=SLOW, HOLD=str(hold))
    hold.touch()

    def ask(number: int) -> httpx.Response:
        with server.client() as client:
            return client.post("/v1/search", files={"image": picture(seed=number)})

    with ThreadPoolExecutor(16) as pool, server.client() as client:
        answers = pool.map(ask, range(16))
        wait_until(lambda: metric(client, UNDER_WAY) + metric(client, BUSY) == 16)
        hold.unlink()
    answers = list(answers)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "busy"
            assert int(answer.headers["retry-after"]) >= 1
    assert ask(99).status_code == 200
    with server.client() as client:
        assert metric(client, BUSY) == statuses.count(503)
        assert metric(client, UNDER_WAY) == 0
    assert server.stop()[0] == 0


def test_whoever_leaves_is_not_worked_for(database: Path, tmp_path: Path) -> None:
    """Places of clients that are gone go to others, and their images come last."""
    hold = tmp_path / "hold"
    server = start_server(database, "--queue_size", 6, "--batch_size", 1, script=SLOW, HOLD=str(hold))
    hold.touch()

    def ask_and_leave(number: int) -> None:
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/search", files={"image": picture(seed=number)}, timeout=0.4)

    with server.client() as client:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask_and_leave, range(6)))
        with ThreadPoolExecutor(1) as pool, server.client() as stayed:
            answer = pool.submit(stayed.post, "/v1/search", files={"image": picture()})
            wait_until(lambda: metric(client, 'unimetric_stage_seconds_count{stage="decode"}') == 7)
            hold.unlink()
            assert answer.result().status_code == 200
        assert metric(client, "unimetric_batch_images_sum") < 7
    assert server.stop()[0] == 0


def test_no_answer_in_time(database: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    server = start_server(database, "--request_seconds", 0.5, script=SLOW, HOLD=str(hold))
    hold.touch()
    with server.client() as client:
        answer = client.post("/v1/search", files={"image": picture()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert "0.5 s" in answer.json()["error"]["message"]
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        slow.sendall(
            b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"image": '
        )
        received = slow.recv(65536)
        assert received.startswith(b"HTTP/1.1 408")
    hold.unlink()
    assert server.stop()[0] == 0


def test_a_database_that_never_answers_does_not_keep_it_from_stopping(database: Path) -> None:
    server = start_server(database, "--request_seconds", 0.5, script=STUCK)
    with server.client() as client:
        assert client.get(f"/v1/items/{'0' * 32}").status_code == 504
        assert client.get("/healthz").status_code == 200
    code, said = server.stop()
    assert code == 0
    assert "has not answered" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_what_was_taken_is_finished(database: Path, tmp_path: Path, number: int, code: int) -> None:
    hold = tmp_path / "hold"
    server = start_server(database, "--batch_size", 1, script=SLOW, HOLD=str(hold))
    hold.touch()
    answers: list[httpx.Response] = []

    def ask(seed: int) -> None:
        with server.client() as client:
            answers.append(client.post("/v1/search", files={"image": picture(seed=seed)}))

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in asking:
        thread.start()
    with server.client() as client:
        wait_until(lambda: metric(client, UNDER_WAY) == 3)
    server.process.send_signal(number)
    hold.unlink()
    exit_code, said = server.stop(0)
    for thread in asking:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert exit_code == code
    assert "Traceback" not in said
    assert ("stopped" in said) == (code == 130)
    with pytest.raises(httpx.ConnectError), server.client() as client:
        client.get("/healthz")


def test_a_damaged_database_is_said_and_survived(make_database: Callable[[], Path]) -> None:
    place = make_database()
    server = start_server(place)
    with server.client() as client:
        assert client.post("/v1/search", files={"image": picture()}).status_code == 200
        for file in (place / "items.lance").rglob("*"):
            if file.is_file():
                file.write_bytes(b"damaged")
        answers = [
            client.post("/v1/search", files={"image": picture()}, data={"where": f"price < {n}"}) for n in range(3)
        ]
        answers.append(client.get("/v1/items", params={"seed": 3}))
        assert client.get("/healthz").status_code == 200
    for answer in answers:
        # What is in memory may still be answered.
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert json.loads(answer.text)["error"]["code"] == "database_unusable"
    assert server.stop()[0] == 0


def test_a_second_ctrl_c_waits_for_no_answer(database: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    server = start_server(database, script=SLOW, HOLD=str(hold))
    hold.touch()

    def ask() -> None:
        with server.client() as client, suppress(httpx.HTTPError):
            client.post("/v1/search", files={"image": picture()})

    asking = threading.Thread(target=ask)
    asking.start()
    with server.client() as client:
        wait_until(lambda: metric(client, UNDER_WAY) == 1)
    server.process.send_signal(signal.SIGINT)

    def is_closed() -> bool:
        try:
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(is_closed)
    exit_code, said = server.stop(signal.SIGINT)
    asking.join()
    assert exit_code == 130
    assert "Traceback" not in said
