"""The page in a window of a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from gallery import Gallery
from stubs import Served, served

SETTLED = "#answers[aria-busy=false]"


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery()


@pytest.fixture(scope="module")
def service(gallery: Gallery) -> Iterator[Served]:
    with served(gallery, max_upload_bytes=300_000, max_pixels=1_000_000) as running:
        yield running


class Window:
    """The page in a window, and faults seen in it."""

    def __init__(self, browser: Any, service: Served, width: int = 1280, height: int = 800, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.troubles.append("dialog") or dialog.dismiss())
        self.page.on("console", self._on_console)
        self.page.on("request", lambda asked: self._on_request(asked, service.url))
        self._url = service.url
        self.begin()

    def begin(self) -> None:
        """Load the start page, whatever was done before."""
        self.page.unroute_all()
        self.troubles.clear()
        self.requests.clear()
        self.page.goto(self._url)
        self.page.wait_for_selector("#results .card")
        self.settle()

    def _on_console(self, message: Any) -> None:
        if not message.text.startswith("Failed to load resource"):
            self.troubles.append(f"console: {message.text}")

    def _on_request(self, asked: Any, url: str) -> None:
        self.requests.append((asked.method, asked.url))
        if not asked.url.startswith((url, "data:", f"blob:{url}")):
            self.troubles.append(f"request: {asked.url}")

    @property
    def searches(self) -> int:
        """Searches sent so far."""
        return sum(1 for method, _ in self.requests if method == "POST")

    @property
    def heading(self) -> str:
        return str(self.page.inner_text("#heading"))

    @property
    def cards(self) -> list[str]:
        """The visible text of all cards."""
        return list(self.page.locator(".card .open").evaluate_all("(cards) => cards.map((card) => card.textContent)"))

    @property
    def address(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).query)

    def settle(self) -> None:
        self.page.wait_for_selector(SETTLED)

    def searched(self, act: Callable[[], Any], route: str = "search") -> dict[str, Any]:
        """The answer to the search, or another request, that an action starts."""
        with self.page.expect_response(f"**/v1/{route}") as waiting:
            act()
        answer = waiting.value
        assert answer.status == 200, answer.text()
        self.settle()
        return dict(answer.json())

    def choose(self, content: bytes, name: str = "x.png", kind: str = "image/png") -> dict[str, Any]:
        """Search by a file, and return the answer."""
        file = {"name": name, "mimeType": kind, "buffer": content}
        return self.searched(lambda: self.page.set_input_files("#file", file))

    def open(self, place: int) -> None:
        """Open the item of a card."""
        self.page.locator(".card .open").nth(place).click()
        self.page.wait_for_selector("dialog[open]")

    def more_like(self, place: int) -> dict[str, Any]:
        """Search on from a card."""
        self.open(place)
        return self.searched(self.page.get_by_role("button", name="More like this").click)


@contextmanager
def window_of(browser: Any, service: Served, *arguments: Any, **options: Any) -> Iterator[Window]:
    opened = Window(browser, service, *arguments, **options)
    yield opened
    assert opened.troubles == []
    opened.context.close()


def file_of(content: bytes, name: str) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


@pytest.fixture(scope="module")
def opened(browser: Any, service: Served) -> Iterator[Window]:
    with window_of(browser, service) as window:
        yield window


@pytest.fixture
def window(opened: Window) -> Iterator[Window]:
    """The start page. A window serves all tests of a module, since a new one takes as long as many of them."""
    opened.begin()
    yield opened
    assert opened.troubles == []
