"""The web page in a real browser, on a real service: every way in, every state, nothing loaded from elsewhere."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Server, picture, start_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<b>O'Brien & sons</b>"
DONE = "#answers[aria-busy=false]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium: install it with apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """The page in a window, and what went wrong in it."""

    def __init__(self, browser: Any, server: Server, width: int = 1280, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.troubles.append("dialog") or dialog.dismiss())
        self.page.on("console", self._on_console)
        self.page.on("request", lambda asked: self._on_request(asked, server.url))
        self.page.goto(server.url)
        self.page.wait_for_selector("#results .card")

    def _on_console(self, message: Any) -> None:
        if not message.text.startswith("Failed to load resource"):
            self.troubles.append(f"console: {message.text}")

    def _on_request(self, asked: Any, url: str) -> None:
        self.requests.append((asked.method, asked.url))
        if not asked.url.startswith((url, "data:", f"blob:{url}")):
            self.troubles.append(f"request: {asked.url}")

    def choose(self, name: str, content: bytes, kind: str = "image/png") -> None:
        """Pick a file, and wait for what comes of it."""
        with self.page.expect_response(lambda answer: True):
            self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector(DONE)

    def heading(self) -> str:
        return str(self.page.inner_text("#heading"))

    def cards(self) -> list[str]:
        return list(self.page.locator("#results .card button, #weak .card button").evaluate_all(
            "(cards) => cards.map((card) => card.getAttribute('aria-label'))"
        ))  # fmt: skip

    def searched(self, act: Callable[[], Any]) -> dict[str, Any]:
        """What the service answers to the search that something sets off."""
        with self.page.expect_response("**/v1/search") as waiting:
            act()
        answer = waiting.value
        assert answer.status == 200, answer.text()
        self.settle()
        return dict(answer.json())


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Opened]:
    window = Opened(browser, server)
    yield window
    assert window.troubles == []
    window.context.close()


def image_file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "mimeType": "image/png", "buffer": path.read_bytes()}


def test_it_starts_with_examples_and_the_catalogues(opened: Opened) -> None:
    page = opened.page
    assert opened.heading() == "Or start from one of these"
    assert len(opened.cards()) == 12
    assert page.inner_text("#size") == "48 images in 3 catalogues"
    chips = page.locator(".chip").all_inner_texts()
    assert [re.sub(r"\s+", " ", chip) for chip in chips] == ["All 48", f"{HOSTILE} 16", "hats 16", "shoes 16"]
    assert page.locator("b", has_text="Brien").count() == 0


def test_choose_filter_and_more_like_this(opened: Opened, images: dict[str, list[Path]]) -> None:
    page = opened.page
    found = opened.searched(lambda: page.set_input_files("#file", image_file(images["hats"][4])))
    assert found["matches"][0]["path"] == str(images["hats"][4])
    first = opened.cards()[0]
    assert re.fullmatch(r"c1 <i>, hats, similarity 1\.00, \d+ % sure\. More like this", first)
    assert len(opened.cards()) == 24
    assert re.match(r"\d+ match(es)?$", opened.heading())
    assert page.locator("#results .bar span").first.evaluate("(bar) => bar.getBoundingClientRect().width > 0")

    chip = page.locator(".chip", has_text="Brien")
    found = opened.searched(chip.click)
    assert {match["dataset"] for match in found["matches"]} == {HOSTILE}
    assert page.evaluate("document.activeElement.textContent").startswith(HOSTILE)
    assert page.locator(".chip[aria-pressed=true]").count() == 1

    found = opened.searched(page.locator(".chip", has_text="All").click)
    assert {match["dataset"] for match in found["matches"]} > {HOSTILE}
    card = page.locator("#results .card button, #weak .card button").nth(2)
    name, id = card.get_attribute("aria-label"), found["matches"][2]["id"]
    found = opened.searched(card.click)
    assert id not in {match["id"] for match in found["matches"]}
    assert page.evaluate("document.activeElement.id") == "heading"
    assert page.inner_text("#about b").replace("\u200b", "") == f"Like {name.split(', ')[0]}"

    searches = sum(1 for method, _ in opened.requests if method == "POST")
    page.go_back()
    page.wait_for_selector("#about", state="hidden")
    assert opened.cards()[0] == first
    assert page.is_visible("#frame")
    page.go_forward()
    page.wait_for_selector("#about", state="visible")
    page.go_back()
    page.go_back()
    page.wait_for_selector("body.start")
    assert opened.heading() == "Or start from one of these"
    assert sum(1 for method, _ in opened.requests if method == "POST") == searches, "what was found is kept"


def test_an_example_is_a_search(opened: Opened) -> None:
    name = opened.cards()[3]
    opened.page.locator("#results .card button").nth(3).focus()
    found = opened.searched(lambda: opened.page.keyboard.press("Enter"))
    assert len(found["matches"]) == 24
    assert opened.page.inner_text("#about b").replace("\u200b", "") == f"Like {name.split(', ')[0]}"
    opened.searched(opened.page.reload)
    assert opened.page.is_visible("#about")


def test_show_more(opened: Opened, images: dict[str, list[Path]]) -> None:
    opened.searched(lambda: opened.page.set_input_files("#file", image_file(images["hats"][4])))
    opened.searched(opened.page.locator("#more").click)
    assert len(opened.cards()) == 48
    opened.page.wait_for_selector(".card button:focus")


def dispatch(page: Any, kind: str, path: Path) -> None:
    """Drop or paste a file, as a browser says it."""
    page.evaluate(
        """([kind, name, numbers]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(numbers)], name, { type: "image/png" }));
          const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
          document.body.dispatchEvent(event);
        }""",
        [kind, path.name, list(path.read_bytes())],
    )


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_drop_and_paste(opened: Opened, images: dict[str, list[Path]], way: str) -> None:
    path = images["shoes"][9]
    found = opened.searched(lambda: dispatch(opened.page, way, path))
    assert found["matches"][0]["path"] == str(path)


def test_a_photograph(browser: Any, server: Server, images: dict[str, list[Path]]) -> None:
    window = Opened(browser, server, 390, has_touch=True, is_mobile=True)
    assert window.page.is_visible("#camera")
    assert window.page.get_attribute("#photo", "capture") == "environment"
    path = images["shoes"][2]
    found = window.searched(lambda: window.page.set_input_files("#photo", image_file(path)))
    assert found["matches"][0]["path"] == str(path)
    assert window.troubles == []
    window.context.close()


def halves() -> tuple[bytes, bytes]:
    """A picture, and its left half."""
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[:, :300] = np.linspace(0, 255, 400).astype(np.uint8)[:, None, None]
    pixels[:, 300:, 0] = 255
    whole, left = BytesIO(), BytesIO()
    Image.fromarray(pixels).save(whole, "PNG")
    Image.fromarray(pixels[:, :300]).save(left, "PNG")
    return whole.getvalue(), left.getvalue()


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {match["id"]: match["score"] for match in answer["matches"]}


def test_crop_by_pointer_and_by_keyboard(opened: Opened, server: Server) -> None:
    page = opened.page
    whole, left = halves()
    before = opened.searched(
        lambda: page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": whole})
    )
    box = page.locator("#picture").bounding_box()

    def drag(start: tuple[float, float], end: tuple[float, float]) -> None:
        page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * end[0], box["y"] + box["height"] * end[1], steps=4)
        page.mouse.up()

    # By the lower right corner.
    cropped = opened.searched(lambda: drag((0.995, 0.995), (0.495, 0.995)))
    with server.client() as client:
        expected = client.post("/v1/search", files={"image": left}, data={"k": "24"}).json()
    near = scores(expected)
    both = near.keys() & scores(cropped).keys()
    assert len(both) > 12
    assert np.allclose([near[id] for id in both], [scores(cropped)[id] for id in both], atol=0.08)
    assert scores(before) != scores(cropped)
    label = page.get_attribute("#frame", "aria-label")
    assert re.match(r"Crop: (49|50|51) % wide and (99|100) % high", label)

    page.focus("#frame")
    opened.searched(lambda: page.keyboard.press("Escape"))
    assert page.get_attribute("#frame", "aria-label") == "Crop: the whole picture"
    assert not page.is_visible("#whole")
    opened.searched(lambda: [page.keyboard.press(key) for key in ("-", "-", "ArrowLeft", "Shift+ArrowDown")])
    assert "% wide" in page.get_attribute("#frame", "aria-label")
    again = opened.searched(page.locator("#whole").click)
    assert scores(again) == scores(before)

    # A new frame, drawn from the middle, and moved.
    opened.searched(lambda: drag((0.5, 0.5), (0.3, 0.75)))
    assert page.get_attribute("#frame", "aria-label") == (
        "Crop: 20 % wide and 25 % high, 30 % from the left, 50 % from the top"
    )
    opened.searched(lambda: drag((0.4, 0.6), (0.5, 0.2)))
    assert page.get_attribute("#frame", "aria-label").endswith("40 % from the left, 10 % from the top")


BAD: dict[str, tuple[str, bytes, str, str]] = {
    "text": ("notes.jpg", b"Dear diary" * 20, "image/jpeg", "“notes.jpg” is not a picture that can be read."),
    "empty": ("empty.png", b"", "image/png", "“empty.png” is empty."),
    "heavy": ("heavy.tif", bytes(400_000), "image/tiff", "“heavy.tif” is larger than the 0.3 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_pictures(opened: Opened, name: str) -> None:
    file, content, kind, words = BAD[name]
    opened.page.set_input_files("#file", {"name": file, "mimeType": kind, "buffer": content})
    opened.page.wait_for_selector("#trouble p")
    assert opened.page.inner_text("#trouble p").startswith(words)
    assert opened.page.get_attribute("#trouble", "role") == "alert"
    assert opened.cards() == []


def large() -> bytes:
    """More bytes and more pixels than the service takes."""
    return picture("PNG", (1300, 1100))


def animated() -> bytes:
    buffer = BytesIO()
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "green")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="60"><circle cx="30" cy="30" r="20"/></svg>'


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("large.png", large, "image/png"),
        ("moving.gif", animated, "image/gif"),
        ("drawing.svg", lambda: SVG, "image/svg+xml"),
    ],
)
def test_what_the_browser_can_show_is_made_fit(opened: Opened, name: str, make: Callable[[], bytes], kind: str) -> None:
    file = {"name": name, "mimeType": kind, "buffer": make()}
    found = opened.searched(lambda: opened.page.set_input_files("#file", file))
    assert len(found["matches"]) == 24
    assert opened.page.inner_text("#trouble") == ""


def test_nothing_looks_like_this(opened: Opened) -> None:
    answer = {"no_match": True, "threshold": 0.9, "matches": []}
    with_weak = opened.searched(lambda: opened.choose("x.png", picture(size=(60, 60))))["matches"][:5]
    answer["matches"] = [{**match, "is_match": False, "confidence": 0.2} for match in with_weak]
    opened.page.route("**/v1/search", lambda route: route.fulfill(json=answer))
    opened.page.locator(".chip", has_text="hats").click()
    opened.page.wait_for_selector("#weak .card")
    assert opened.heading() == "Nothing in hats looks like this"
    assert opened.page.locator("#results .card").count() == 0
    assert opened.page.locator("#weak .card").count() == 5
    assert opened.page.inner_text("#weak-heading") == "The nearest ones"


def test_a_model_without_a_threshold(opened: Opened) -> None:
    found = opened.searched(lambda: opened.choose("x.png", picture(size=(60, 60))))["matches"]
    bare = [{**match, "is_match": None, "confidence": None} for match in found]
    answer = {"no_match": None, "threshold": None, "matches": bare}
    opened.page.route("**/v1/search", lambda route: route.fulfill(json=answer))
    opened.page.locator(".chip", has_text="hats").click()
    opened.page.wait_for_selector("#results .card")
    assert opened.heading() == "Most similar"
    assert opened.page.locator(".bar").count() == 0
    assert opened.page.locator("#weak .card").count() == 0


def test_a_busy_service_is_asked_again(opened: Opened) -> None:
    asked = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
        else:
            body = {"error": {"code": "busy", "message": "too much to do"}}
            route.fulfill(status=503, json=body, headers={"Retry-After": "1"})

    opened.page.route("**/v1/search", answer)
    opened.page.locator("#results .card button").first.click()
    opened.page.wait_for_selector(".card .score")
    assert len(asked) == 2


def test_a_service_that_is_gone(browser: Any, database: Path) -> None:
    server = start_server(database)
    window = Opened(browser, server)
    server.stop(signal.SIGTERM)
    window.page.locator("#results .card button").first.click()
    window.page.wait_for_selector("#trouble p")
    assert window.page.inner_text("#trouble p").startswith("The search service does not answer.")
    assert window.page.locator("#trouble button").inner_text() == "Try again"
    assert window.troubles == []
    window.context.close()


OVERFLOWING = """() => [...document.body.querySelectorAll("*")].filter((element) => {
  if (element.closest(".unseen, .skip, #frame, svg")) return false;
  const box = element.getBoundingClientRect();
  return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
}).map((element) => element.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_fits_every_width(
    browser: Any, server: Server, images: dict[str, list[Path]], width: int, scheme: str
) -> None:
    window = Opened(browser, server, width, color_scheme=scheme, has_touch=width < 400)

    def check() -> None:
        assert window.page.evaluate(
            "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
        assert window.page.evaluate(OVERFLOWING) == []

    check()
    window.searched(lambda: window.page.set_input_files("#file", image_file(images["hats"][4])))
    check()
    window.searched(window.page.locator(".card button").nth(3).click)
    check()
    dark = window.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", dark)[:3])) < 60) == (scheme == "dark")
    assert window.troubles == []
    window.context.close()


def test_everything_is_named_and_can_be_reached_by_keyboard(opened: Opened, images: dict[str, list[Path]]) -> None:
    page = opened.page
    opened.searched(lambda: page.set_input_files("#file", image_file(images["hats"][4])))
    page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(
            "() => { const e = document.activeElement; return e.id || e.className || e.parentElement.className; }"
        ))  # fmt: skip
    assert reached[:4] == ["", "home", "frame", "file"] or {"home", "frame", "file", "chip"} <= set(reached)
    assert "card" not in reached[:5]
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, img, [role=group]")].filter((e) =>
          !(e.getAttribute("aria-label") || e.getAttribute("alt") !== null || e.textContent.trim()
            || e.labels?.[0]?.textContent.trim())).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate("() => ['header', 'main', 'footer'].every((name) => document.querySelector(name))")
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
