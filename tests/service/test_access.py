"""Tokens for reading and for writing: over HTTP, at the start of the service, and in the page."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from gallery import Gallery, noise, png
from stubs import ID, Served, StubIndex, served, small_picture

from serving import start_server
from unimetric.search.upgrade.state import UpgradeState
from unimetric.service.app import create_app
from unimetric.service.options import ServiceConfig

READ, WRITE = "a-token-for-readers", "a-token-for-writers"
OPEN = {"/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico"}
"""Paths that answer without a token, beside the page's own files: nothing in them depends on the database."""


@pytest.fixture(scope="module")
def private() -> Iterator[Served]:
    with served(token=WRITE, read_token=READ) as running:
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_every_route_but_the_page_and_health_needs_a_token(private: Served) -> None:
    app = create_app(StubIndex(), ServiceConfig(read_token=True), read_token=READ)  # type: ignore[arg-type]
    described = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert ("POST", "/v1/search") in described
    assert ("GET", "/metrics") in described
    with private.client() as client:
        for method, path in sorted(described):
            answer = client.request(method, path.replace("{id}", ID))
            if path in OPEN:
                assert answer.status_code == 200, path
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in (*OPEN, "/app.js", "/access.js", "/style.css"):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", f"Basic {READ}", READ, f"Bearer {READ}x", f"Bearer {READ[:-1]}", f"Bearer {READ.upper()}",
        f"Bearer {READ} {READ}", "Bearer \xe9", f"Token {READ}",
    ],
)  # fmt: skip
def test_wrong_tokens(private: Served, header: str) -> None:
    with private.client(headers={"Authorization": header.encode("latin-1")}) as client:
        answers = [
            client.get("/v1/datasets"),
            client.get(f"/v1/items/{ID}/image"),
            client.head("/v1/datasets"),
            client.get("/metrics"),
            client.post("/v1/search", files={"image": small_picture()}),
            client.post("/v1/search", content=b"x" * 5_000_000, headers={"Content-Type": "application/json"}),
        ]
    assert [answer.status_code for answer in answers] == [401] * len(answers)


def test_a_token_is_not_taken_from_the_address(private: Served) -> None:
    with private.client() as client:
        for name in ("token", "access_token", "read_token", "authorization"):
            assert client.get("/v1/datasets", params={name: READ}).status_code == 401


def test_readers_read_and_writers_do_both(private: Served) -> None:
    with private.client() as client:
        for token in (READ, WRITE):
            for path in ("/v1/datasets", f"/v1/items/{ID}", f"/v1/items/{ID}/image", "/metrics"):
                assert client.get(path, headers=bearer(token)).status_code == 200
            answer = client.post("/v1/search", files={"image": small_picture()}, headers=bearer(token))
            assert answer.status_code == 200
        refused = client.delete(f"/v1/items/{ID}", headers=bearer(READ))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only")
        assert "UNIMETRIC_TOKEN" in refused.json()["error"]["message"]
        assert READ not in refused.text
        assert client.delete(f"/v1/items/{ID}", headers=bearer(WRITE)).status_code == 204


def test_readers_cannot_write_where_nobody_can() -> None:
    with served(read_token=READ) as running, running.client(headers=bearer(READ)) as client:
        refused = client.delete(f"/v1/items/{ID}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only")
        assert "--writable" in refused.json()["error"]["message"]


def test_an_application_of_ones_own_needs_its_tokens() -> None:
    for options, tokens, word in (
        ({"read_token": True}, {}, "read_token is empty"),
        ({"read_token": True}, {"read_token": ""}, "read_token is empty"),
        ({"writable": True}, {"read_token": READ}, "token is empty"),
        ({"writable": True, "read_token": True}, {"token": READ, "read_token": READ}, "the same"),
    ):
        with pytest.raises(ValueError, match=word):
            create_app(StubIndex(), ServiceConfig(**options), **tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (("--read_token",), {}, ("--read_token", "UNIMETRIC_READ_TOKEN", "openssl")),
        (("--read_token",), {"UNIMETRIC_READ_TOKEN": "  "}, ("--read_token", "UNIMETRIC_READ_TOKEN")),
        (("--read_token",), {"UNIMETRIC_READ_TOKEN": "schlüssel"}, ("UNIMETRIC_READ_TOKEN", "ASCII")),
        (
            ("--read_token", "--writable"),
            {"UNIMETRIC_READ_TOKEN": READ, "UNIMETRIC_TOKEN": READ},
            ("UNIMETRIC_READ_TOKEN", "UNIMETRIC_TOKEN", "same"),
        ),
    ],
)
def test_tokens_that_it_does_not_start_with(
    database: Any,
    options: tuple[str, ...],
    environment: dict[str, str],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from toy_runs import unimetric

    for name in ("UNIMETRIC_READ_TOKEN", "UNIMETRIC_TOKEN"):
        monkeypatch.setenv(name, environment.get(name, ""))
    assert unimetric("serve", database, *options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("unimetric: error: ")
    assert all(word in said for word in words), said
    assert READ not in said


def test_the_command(database: Any) -> None:
    server = start_server(database, "--read_token", UNIMETRIC_READ_TOKEN=f" {READ}\n")
    with server.client() as client:
        assert client.get("/v1/datasets").status_code == 401
        assert client.get("/v1/datasets", headers=bearer(READ)).json()["items"] == 48
    code, said = server.stop()
    assert code == 0
    assert READ not in said


def test_the_page_asks_for_the_token_and_sends_it(browser: Any) -> None:
    seen: list[tuple[str, str | None]] = []
    troubles: list[str] = []
    gallery = Gallery()
    upgrade = UpgradeState("new", "f", 3, 12)
    follower = SimpleNamespace(state=upgrade, start=lambda *args: None, stop=lambda seconds: None, is_running=False)
    with served(gallery, read_token=READ, follow=lambda make_batcher: follower) as running:
        context = browser.new_context(viewport={"width": 360, "height": 740})
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda asked: seen.append((asked.url, asked.headers.get("authorization"))))
        page.goto(running.url)
        page.wait_for_selector("dialog.token[open]")
        assert page.locator(".card").count() == 0
        # Cancelling says what is missing, and the button asks again.
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("#trouble p")
        assert "token" in page.inner_text("#trouble")
        page.get_by_role("button", name="Try again").click()
        page.fill("dialog.token input", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog.token:has-text('refused')")
        page.fill("dialog.token input", READ)
        page.get_by_role("button", name="Continue").click()
        page.wait_for_selector("#results .card img[src^='blob:']")
        assert page.evaluate("() => document.querySelector('.card img').decode().then(() => true)")
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": gallery.first()[1]})
        page.wait_for_selector("#results .card .measure")
        page.locator(".card button").first.click()
        page.wait_for_selector("dialog[open] .whole[src^='blob:']")
        page.wait_for_selector("dialog[open] a.button[href^='blob:']")
        assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        # The token stays for the tab, and is never part of an address.
        page.reload()
        page.wait_for_selector("#results .card img[src^='blob:'], dialog[open] .whole[src^='blob:']")
        page.wait_for_selector("#upgrade:has-text('25 % (3 of 12 pictures)')")
        assert page.locator("dialog.token").count() == 0
        context.close()
    assert troubles == []
    assert all(READ not in url for url, _ in seen)
    assert {url.partition("/v1/")[2].partition("?")[0] for url, sent in seen if sent == f"Bearer {READ}"} >= {
        "datasets",
        "items",
        "search",
    }


def test_the_token_of_an_old_tab_is_asked_for_again(browser: Any) -> None:
    """A token that was changed meanwhile interrupts a search, which then goes on."""
    gallery = Gallery()
    upgrade = UpgradeState("new", "f", 3, 12)
    follower = SimpleNamespace(state=upgrade, start=lambda *args: None, stop=lambda seconds: None, is_running=False)
    with served(gallery, read_token=READ, follow=lambda make_batcher: follower) as running:
        context = browser.new_context()
        page = context.new_page()
        page.add_init_script(
            "sessionStorage.getItem('unimetric-token') || sessionStorage.setItem('unimetric-token', 'old')"
        )
        page.goto(f"{running.url}/?dataset=hats")
        page.fill("dialog.token input", READ)
        page.keyboard.press("Enter")
        page.wait_for_selector("#results .card")
        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": png(noise(3))})
        page.wait_for_selector("#answers[aria-busy=false]")
        context.close()


def test_open_services_need_no_token(server: Any) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/v1/datasets").status_code == 200
        # A client that sends one all the same is answered.
        assert client.get("/v1/datasets", headers=bearer("anything")).status_code == 200
        security = [
            operation.get("security")
            for path, operations in client.get("/openapi.json").json()["paths"].items()
            for method, operation in operations.items()
            if method == "get"
        ]
    assert security == [None] * len(security)
