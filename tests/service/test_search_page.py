"""The web page in a real browser, on the real service with a small gallery: every way in, every state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from gallery import HOSTILE, Gallery, noise, png
from PIL import Image
from stubs import Served, StubFolder, served

from browsing import barriers, overflows
from unimetric.search.conditions import parse_condition
from unimetric.search.items import Refused
from unimetric.service.folder import IndexingState

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
        self.page.goto(service.url)
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


@pytest.fixture
def window(browser: Any, service: Served) -> Iterator[Window]:
    with window_of(browser, service) as opened:
        yield opened


def test_it_starts_with_examples_and_the_catalogues(window: Window) -> None:
    assert window.heading == "Or start from one of these"
    assert len(window.cards) == 12
    assert window.page.inner_text("#size") == "144 images in 3 catalogues"
    chips = window.page.locator(".chip").all_inner_texts()
    assert [re.sub(r"\s+", " ", chip) for chip in chips] == ["All 144", f"{HOSTILE} 48", "hats 48", "shoes 48"]
    assert window.page.locator("b", has_text="Brien").count() == 0


def test_the_start_pages_chips_ask_the_service(window: Window) -> None:
    with window.page.expect_response("**/v1/items?**"):
        window.page.locator(".chip", has_text="Brien").click()
    window.settle()
    assert len(window.cards) == 12
    assert set(window.page.locator(".card .dataset").all_inner_texts()) == {HOSTILE}
    assert window.address == {"dataset": [HOSTILE]}


def test_words_have_a_measured_meaning(window: Window, gallery: Gallery) -> None:
    matches = window.choose(gallery.first()[1])["matches"]
    words = window.page.locator(".card .word").all_inner_texts()
    assert words == [match["strength"] for match in matches][: len(words)]
    assert {"identical", "strong", "weak"} <= set(words)
    assert "%" not in window.page.inner_text("#answers")
    window.open(1)
    said = window.page.inner_text("dialog")
    assert f"Similarity {matches[1]['score']:.2f}" in said
    share = round(100 * matches[1]["confidence"])
    assert f"{share} % of the answers that were as similar were right" in said


def test_a_click_opens_the_item(window: Window, gallery: Gallery) -> None:
    match = window.choose(gallery.first()[1])["matches"][2]
    window.open(2)
    page = window.page
    assert window.searches == 1
    assert window.address["open"] == [match["id"]]
    assert page.inner_text("dialog h2") == match["label"]
    assert page.inner_text("dialog .path") == match["path"]
    for value in ("price", "2.5", "shade_2"):
        assert value in page.inner_text("dialog dl")
    whole = page.locator("dialog img").evaluate("(image) => getComputedStyle(image).objectFit")
    assert whole == "contain"
    assert page.get_by_role("link", name="Open picture").get_attribute("href") == match["image"]
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    page.wait_for_function("() => !location.search")
    assert page.evaluate("() => document.activeElement.closest('.card') !== null")
    page.go_forward()
    page.wait_for_selector("dialog[open]")
    page.go_back()
    page.wait_for_selector("dialog", state="hidden")
    assert window.searches == 1


@pytest.mark.parametrize("clipboard", [True, False])
def test_copied_text_is_the_stored_text(browser: Any, service: Served, gallery: Gallery, clipboard: bool) -> None:
    item, picture = gallery.first()
    with window_of(browser, service, permissions=["clipboard-read", "clipboard-write"]) as window:
        window.choose(picture)
        if not clipboard:
            window.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
        for text, selector in ((item.label, ".card .label"), (item.dataset, ".card .dataset")):
            assert window.page.locator(selector).first.evaluate("(shown) => shown.textContent") == text
        window.open(0)
        window.page.get_by_role("button", name="Copy path").click()
        window.page.wait_for_selector("dialog [role=status]:not(:empty)")
        assert window.page.inner_text("dialog [role=status]") == "Copied."
        assert window.page.evaluate("() => navigator.clipboard.readText()") == item.path
        content = window.page.evaluate("() => document.documentElement.textContent")
        assert not re.search("[\u00ad\u200b-\u200f\u2060\ufeff]", content)


def test_choose_filter_and_more_like_this(window: Window, gallery: Gallery) -> None:
    page = window.page
    found = window.choose(gallery.first()[1])
    assert found["matches"][0]["path"] == gallery.first()[0].path
    assert len(window.cards) == 24
    assert window.heading == "12 matches"
    first = window.cards[0]

    chip = page.locator(".chip", has_text="Brien")
    found = window.searched(chip.click)
    assert {match["dataset"] for match in found["matches"]} == {HOSTILE}
    assert page.evaluate("document.activeElement.textContent").startswith(HOSTILE)
    assert page.locator(".chip[aria-pressed=true]").count() == 1

    window.searched(page.locator(".chip", has_text="All").click)
    found = window.more_like(2)
    assert len(found["matches"]) == 96
    assert page.evaluate("document.activeElement.id") == "heading"
    assert page.inner_text("#about b").startswith("Like species_no-")

    searches = window.searches
    page.go_back()
    page.wait_for_selector("#about", state="hidden")
    assert window.cards[0] == first
    assert page.is_visible("#frame")
    page.go_forward()
    page.wait_for_selector("#about", state="visible")
    page.go_back()
    page.go_back()
    page.wait_for_selector("body.start .card")
    window.settle()
    assert window.heading == "Or start from one of these"
    assert window.searches == searches, "earlier results are kept"


def test_the_address_can_be_reloaded_and_shared(window: Window, browser: Any, service: Served) -> None:
    window.more_like(3)
    window.searched(window.page.locator(".chip", has_text="hats").click)
    window.page.locator("#filters summary").click()
    field = window.page.locator("fieldset", has_text="price").locator("input").first
    field.fill("3")
    window.searched(lambda: field.press("Enter"))
    assert window.address["dataset"] == ["hats"]
    assert window.address["where"] == ["`price` >= 3"]
    before = window.heading, window.cards
    window.searched(window.page.reload)
    assert (window.heading, window.cards) == before
    assert window.page.is_visible("#about")
    window.open(1)
    with window_of(browser, service) as other:
        other.page.goto(window.page.url)
        other.page.wait_for_selector("dialog[open] h2")
        assert other.page.inner_text("dialog h2") == window.page.inner_text("dialog h2")
        other.page.wait_for_selector(".card .word")
        assert other.cards == before[1]
        other.page.keyboard.press("Escape")
        other.page.wait_for_selector("dialog", state="hidden")
        other.page.wait_for_function("() => !location.search.includes('open')")
        assert other.page.locator("fieldset", has_text="price").locator("input").first.input_value() == "3"


def test_addresses_of_nothing(browser: Any, service: Served) -> None:
    with window_of(browser, service) as window:
        for query in ("?item=nothing", f"?item={'0' * 32}", f"?open={'0' * 32}"):
            window.page.goto(f"{service.url}/{query}")
            window.page.wait_for_selector("#trouble p")
            assert window.page.inner_text("#trouble p") == "This item is no longer in the catalogue."


def test_filters_become_a_condition(window: Window, gallery: Gallery) -> None:
    window.choose(gallery.first()[1])
    page = window.page
    page.locator("#filters summary").click()

    def set_field(column: str, place: int, value: str) -> None:
        field = (
            page.locator("fieldset", has=page.locator("legend", has_text=column)).locator("input, select").nth(place)
        )
        act = field.select_option if field.evaluate("(field) => field.tagName") == "SELECT" else field.fill

        def change() -> None:
            act(value)
            field.blur()

        window.searched(change)

    set_field("price", 0, "-1.5")
    set_field("price", 1, "20")
    set_field("colour", 0, "it's")
    set_field("sold", 0, "true")
    set_field("made", 0, "2024-02-29")
    set_field("seen at", 1, "2024-02-29T12:30")
    expected = (
        "`price` >= -1.5 AND `price` <= 20 AND `colour` ILIKE '%it''s%' AND `sold` = true AND `made` >= '2024-02-29'"
        " AND `seen at` <= '2024-02-29 12:30'"
    )
    assert gallery.conditions[-1] == expected
    assert parse_condition(expected, gallery.metadata_columns)
    assert window.address["where"] == [expected]
    window.searched(page.locator("#no-filters").click)
    assert gallery.conditions[-1] is None

    page.fill("#condition", "price < 3 OR label = 'x'")
    window.searched(lambda: page.press("#condition", "Enter"))
    assert gallery.conditions[-1] == "price < 3 OR label = 'x'"


def test_choices_become_a_condition(window: Window, gallery: Gallery) -> None:
    window.more_like(0)
    page = window.page
    page.locator("#filters summary").click()
    season = page.locator("fieldset", has=page.locator("legend", has_text="season"))
    assert [re.sub(r"\s+", " ", chip) for chip in season.locator(".choice").all_inner_texts()] == [
        "summer 48", "it's winter 48", "spring 48",
    ]  # fmt: skip
    window.searched(season.locator(".choice").nth(1).click)
    assert gallery.conditions[-1] == "`season` = 'it''s winter'"
    window.searched(season.locator(".choice").nth(0).click)
    expected = "`season` IN ('it''s winter', 'summer')"
    assert gallery.conditions[-1] == expected
    assert parse_condition(expected, gallery.metadata_columns)
    window.searched(page.reload)
    assert season.locator("[aria-pressed=true]").count() == 2
    page.wait_for_selector("#sort option:nth-child(3)", state="attached")
    page.locator("#filters summary").click()
    window.searched(season.locator(".choice").nth(1).click)
    assert gallery.conditions[-1] == "`season` = 'summer'"
    price = page.locator("fieldset", has=page.locator("legend", has_text="price"))
    assert price.locator("input").first.get_attribute("placeholder") == "0.5"


def test_without_a_description_of_the_columns_their_kinds_remain(browser: Any, service: Served) -> None:
    with window_of(browser, service) as window:
        page = window.page
        late = {"error": {"code": "timeout", "message": "late"}}
        page.route("**/v1/columns", lambda route: route.fulfill(status=504, json=late))
        page.reload()
        page.wait_for_selector(".card")
        page.locator("#filters summary").click()
        assert page.locator("fieldset", has_text="season").locator("input[type=text]").count() == 1
        assert [text for text in window.troubles if "late" in text]
        window.troubles.clear()


def prices(window: Window, selector: str) -> list[float]:
    """Prices of the cards, from their paths."""
    titles = window.page.locator(f"{selector} .card > .open").evaluate_all("(cards) => cards.map((card) => card.title)")
    return [int(re.search(r"-(\d+)/a_picture", title)[1]) + 0.5 for title in titles]


def test_results_can_be_sorted_by_a_column(window: Window, gallery: Gallery) -> None:
    window.choose(gallery.first()[1])
    page = window.page
    before = prices(window, "#results")
    page.locator("#filters summary").click()
    window.searched(lambda: page.select_option("#sort", label="price, highest first"))
    assert len(prices(window, "#results")) == 12
    assert prices(window, "#results") == sorted(before, reverse=True)
    assert prices(window, "#weak") == sorted(prices(window, "#weak"), reverse=True)
    assert max(prices(window, "#weak")) == 47.5, "of all, not only of those that were fetched before"
    assert window.address == {"sort": ["price"], "order": ["descending"]}
    assert page.inner_text("#status") == "By price, of the 1,000 most similar; weaker ones are below."
    window.searched(lambda: page.select_option("#sort", label="price, lowest first"))
    assert prices(window, "#results") == sorted(before)
    window.searched(lambda: page.select_option("#sort", label="most similar first"))
    assert prices(window, "#results") == before
    assert window.address == {}


def test_the_catalogue_can_be_looked_through_in_the_order_of_a_column(window: Window, gallery: Gallery) -> None:
    page = window.page
    page.locator("#filters summary").click()
    window.searched(lambda: page.select_option("#sort", label="price, highest first"), "items?*")
    assert window.heading == "By price"
    every = sorted((item.metadata["price"] for item in gallery.sample(999)), reverse=True)
    assert prices(window, "#results") == every[:24]
    for shown in range(48, len(every) + 1, 24):
        page.click("#more")
        page.wait_for_selector(f"#results .card:nth-child({shown})")
        place = page.evaluate("() => [...document.querySelectorAll('.open')].indexOf(document.activeElement)")
        assert place == shown - 24
    assert prices(window, "#results") == every
    condition = page.locator("#condition")
    condition.fill("price < 20")
    window.searched(lambda: condition.press("Enter"), "items?*")
    assert gallery.conditions[-1] == "price < 20"
    assert page.inner_text("#status") == "Searches are limited to the catalogue with these filters."
    assert window.address == {"where": ["price < 20"], "sort": ["price"], "order": ["descending"]}


def test_results_can_be_grouped_by_class(browser: Any) -> None:
    gallery = Gallery(per_class=4)
    with served(gallery) as service, window_of(browser, service) as window:
        page = window.page
        window.choose(gallery.first()[1])
        page.locator("#filters summary").click()
        page.check("#by-class")
        labels = [card.split(" ")[0] for card in window.cards]
        assert len(set(labels)) == len(labels) == 24
        assert page.locator("#results .card").count() == 3
        assert window.heading == "12 matches in 3 classes"
        fold = page.locator(".fold").first
        assert (fold.inner_text(), fold.get_attribute("aria-expanded")) == ("4 of this class", "false")
        fold.click()
        assert page.locator("#results .card").count() == 6
        assert fold.get_attribute("aria-expanded") == "true"
        assert page.locator("#results .card .label").all_inner_texts()[:4] == [labels[0]] * 4
        fold.click()
        assert page.locator("#results .card").count() == 3
        assert window.address == {"group": ["class"]}
        assert window.searches == 1
        window.more_like(0)
        assert window.address["group"] == ["class"]
        page.wait_for_selector(".fold")


def test_copies_are_one_result(window: Window, gallery: Gallery) -> None:
    page = window.page
    found = window.choose(gallery.first()[1])
    assert all(match["copies"] == [] for match in found["matches"])
    page.locator("#filters summary").click()
    found = window.searched(lambda: page.check("#fold-copies"))
    assert len(found["matches"][0]["copies"]) == 2
    fold = page.locator("#results .fold").first
    assert fold.inner_text() == "3 copies"
    before = page.locator("#results .card").count()
    fold.click()
    assert page.locator("#results .card").count() == before + 2
    page.locator(".member .open").first.click()
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("dialog .path") == found["matches"][0]["copies"][0]["path"]
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    page.wait_for_function("() => !location.search.includes('open')")
    assert window.address == {"copies": ["folded"]}
    found = window.searched(lambda: page.uncheck("#fold-copies"))
    assert all(match["copies"] == [] for match in found["matches"])
    assert page.locator(".fold").count() == 0
    assert window.address == {}


def test_copies_are_folded_where_the_service_does_it(browser: Any) -> None:
    gallery = Gallery()
    with served(gallery, group_copies=True) as service, window_of(browser, service) as window:
        found = window.choose(gallery.first()[1])
        assert len(found["matches"][0]["copies"]) == 2
        window.page.locator("#filters summary").click()
        assert window.page.is_checked("#fold-copies")
        found = window.searched(lambda: window.page.uncheck("#fold-copies"))
        assert found["matches"][0]["copies"] == []
        assert window.address == {"copies": ["all"]}


def test_a_slow_line_shows_skeletons(browser: Any, service: Served) -> None:
    with window_of(browser, service) as window:
        page = window.page
        held: list[Any] = []
        page.route("**/v1/items?**", lambda route: held.append(route))
        page.route("**/image", lambda route: held.append(route))
        page.reload()
        page.wait_for_selector(".skeleton")
        assert page.locator(".skeleton").count() == 8
        assert page.locator(".skeleton:not([aria-hidden=true])").count() == 0
        held.pop(0).continue_()
        page.wait_for_selector(".card")
        assert page.locator(".skeleton").count() == 0
        assert page.locator(".view.waiting").count() == 12
        page.wait_for_function("() => true")
        while held:
            held.pop().continue_()
            page.wait_for_timeout(0)
        page.unroute("**/image")


def test_a_picture_that_is_gone_is_named(browser: Any, service: Served) -> None:
    with window_of(browser, service) as window:
        window.page.route("**/image", lambda route: route.fulfill(status=404, body=""))
        window.page.reload()
        window.page.wait_for_selector(".view.failed")
        content = window.page.locator(".view.failed").first.evaluate(
            "(view) => getComputedStyle(view, '::after').content"
        )
        assert content == '"no picture"'


def working(**changes: Any) -> IndexingState:
    """The indexing of a folder on its way."""
    skipped = (Refused("/data/photos/roses/7.jpg", "cut off before its end"),)
    state = IndexingState("indexing", 1100, 5000, 144, 210.0, skipped, 1, classes=4)
    return replace(state, **changes)


def test_progress_of_the_indexing(browser: Any, axe: str) -> None:
    folder = StubFolder(working())
    with served(Gallery(), folder=folder) as service, window_of(browser, service, bypass_csp=True) as window:
        page = window.page
        page.wait_for_selector("#progress:not([hidden])")
        words = "Indexing: 1,100 of 5,000 pictures, about 4 minutes left. You can search already."
        assert page.inner_text("#progress-words") == words
        bar = page.locator("#progress-bar")
        assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("1100", "5000")
        page.locator("#skipped summary").click()
        assert page.inner_text("#skipped li") == "/data/photos/roses/7.jpg cut off before its end"
        assert barriers(page, axe) == []
        window.choose(Gallery().first()[1])
        assert page.inner_text("#status").endswith("144 pictures are indexed so far.")
        folder.state = working(done=2000, seconds_left=31.0)
        page.wait_for_function("() => document.getElementById('progress-bar').value === 2000")
        assert "about 30 s left" in page.inner_text("#progress-words")
        folder.train_command = "unimetric train /data/photos --out runs/mine"
        folder.state = working(phase="done", done=5000, seconds_left=None)
        page.wait_for_selector("#advice:not([hidden])")
        assert not bar.is_visible()
        advice = "For better answers, train on these pictures: unimetric train /data/photos --out runs/mine"
        assert advice in page.inner_text("#advice")
        assert barriers(page, axe) == []
        page.locator("#progress-hide").click()
        assert not page.is_visible("#progress")
        page.reload()
        page.wait_for_selector(".card")
        window.settle()
        assert not page.is_visible("#progress")


@pytest.mark.parametrize("phase", ["indexing", "done"])
def test_a_phone_shows_the_first_result_beside_the_progress(browser: Any, phase: str) -> None:
    folder = StubFolder(working(phase=phase))
    folder.train_command = "unimetric train /data/photos --out runs/mine"
    with served(Gallery(), folder=folder) as service, window_of(browser, service, 360, 740, has_touch=True) as window:
        window.page.wait_for_selector("#progress:not([hidden])")
        window.choose(Gallery().first()[1])
        assert window.page.locator(".card .view").first.bounding_box()["y"] + 160 <= 740, "the whole picture is in view"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (IndexingState("waiting"), "The model is being loaded; then your pictures are indexed."),
        (IndexingState("reading"), "Looking for pictures in /data/photos"),
        (
            working(phase="failed", problem="the disk is full"),
            "The pictures could not all be indexed: the disk is full. Start the service again to go on.",
        ),
    ],
)
def test_words_of_every_phase(browser: Any, state: IndexingState, words: str) -> None:
    with served(Gallery(), folder=StubFolder(state)) as service, window_of(browser, service) as window:
        window.page.wait_for_selector("#progress:not([hidden])")
        assert window.page.inner_text("#progress-words") == words


def test_an_empty_start_page_is_filled_as_pictures_come(browser: Any) -> None:
    folder = StubFolder(working(done=0, written=0, seconds_left=None))
    gallery = Gallery(per_catalogue=0)
    with served(gallery, folder=folder) as service:
        context = browser.new_context()
        page = context.new_page()
        page.goto(service.url)
        page.wait_for_function(
            "() => document.getElementById('heading').textContent === 'Your pictures are being indexed'"
        )
        gallery.fill("hats", 5)
        page.wait_for_function("() => document.querySelectorAll('.card').length === 5")
        page.wait_for_function("() => document.getElementById('size').textContent === '5 images in hats'")
        gallery.fill("shoes", 20)
        page.wait_for_function("() => document.querySelectorAll('.card').length === 12")
        page.wait_for_function("() => document.querySelectorAll('.chip').length === 3")
        context.close()


def file_of(content: bytes, name: str) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def test_several_pictures_are_one_query(window: Window, gallery: Gallery) -> None:
    page = window.page
    gallery.together.clear()
    files = [file_of(gallery.first("hats")[1], "hat.png"), file_of(gallery.first("shoes")[1], "shoe.png")]
    found = window.searched(lambda: page.set_input_files("#file", files))
    assert gallery.together == [2]
    assert {match["dataset"] for match in found["matches"][:2]} == {"hats", "shoes"}
    assert page.inner_text("#about b") == "Like 2 pictures"
    parts = page.locator("#parts .part")
    assert parts.count() == 2
    assert page.get_attribute("#picture", "alt") == "Your picture, hat.png"
    parts.nth(1).click()
    assert page.get_attribute("#picture", "alt") == "Your picture, shoe.png"
    assert window.searches == 1
    page.focus("#frame")
    window.searched(lambda: page.keyboard.press("-"))

    window.searched(lambda: page.set_input_files("#more-files", [file_of(png(noise(3)), "third.png")]))
    assert gallery.together[-1] == 3
    window.open(0)
    window.searched(page.get_by_role("button", name="Add to the search").click)
    assert gallery.together[-1] == 4
    assert page.inner_text("#about b") == "Like 4 pictures"
    assert len(window.address["item"]) == 1
    window.searched(page.get_by_role("button", name="Remove picture 1, hat.png").click)
    assert gallery.together[-1] == 3
    page.go_back()
    page.wait_for_function("() => document.querySelectorAll('#parts .part').length === 4")
    window.searched(lambda: dispatch(page, "drop", png(noise(9))))
    assert page.locator("#parts").is_hidden()


def test_several_items_can_be_shared(window: Window, gallery: Gallery) -> None:
    window.more_like(3)
    window.open(2)
    window.searched(window.page.get_by_role("button", name="Add to the search").click)
    ids = window.address["item"]
    assert len(ids) == 2
    before = window.cards
    window.searched(window.page.reload)
    assert window.cards == before
    assert window.page.locator("#parts .part").count() == 2
    window.page.wait_for_selector("#about b")
    assert window.page.title() == "Like 2 pictures – Search by image"
    window.open(0)
    assert window.page.get_by_role("button", name="Add to the search").count() == 1


def test_a_mixed_search_names_the_pictures_that_a_reload_loses(window: Window, gallery: Gallery) -> None:
    window.more_like(3)
    window.searched(lambda: window.page.set_input_files("#more-files", [file_of(gallery.first()[1], "hat.png")]))
    window.searched(window.page.reload)
    window.page.wait_for_selector("#trouble p")
    assert (
        window.page.inner_text("#trouble p") == "Your own picture was not kept. Add it again to search by it as well."
    )
    assert window.page.locator(".card").count() == 24


def test_one_of_several_files_is_at_fault(window: Window, gallery: Gallery) -> None:
    page = window.page
    files = [file_of(gallery.first()[1], "hat.png"), file_of(b"", "empty.png")]
    page.set_input_files("#file", files)
    page.wait_for_selector("#trouble p")
    assert page.inner_text("#trouble p").startswith("“empty.png” is empty.")
    page.set_input_files("#file", [files[0], file_of(b"Dear diary" * 9, "notes.png")])
    page.wait_for_function(
        "() => document.querySelector('#trouble p')?.textContent.startsWith('One of the pictures is not')"
    )
    many = [file_of(png(noise(seed)), f"{seed}.png") for seed in range(12)]
    window.searched(lambda: page.set_input_files("#file", many))
    page.wait_for_selector("#trouble p")
    assert page.inner_text("#trouble p") == "A search takes 10 pictures at most; the others were left out."
    assert page.locator("#add").is_hidden()


def test_show_more_keeps_what_is_there(browser: Any) -> None:
    gallery = Gallery(per_catalogue=90)
    with served(gallery) as service, window_of(browser, service) as window:
        window.choose(gallery.first()[1])
        first = window.page.locator(".card").first.element_handle()
        for shown in range(48, 270, 24):
            window.page.locator("#more").click()
            window.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {shown}")
            place = "[...document.querySelectorAll('.card .open')].indexOf(document.activeElement)"
            window.page.wait_for_function(f"() => {place} >= 0")
        assert first.evaluate("(card) => card.isConnected")
        window.page.locator("#more").click()
        window.page.wait_for_function("() => document.querySelectorAll('.card').length === 270")
        assert not window.page.is_visible("#more")
        assert window.searches == 2, "the first answer, and one with all"
        labels = [card.split(" ")[0] for card in window.cards]
        assert len(labels) == len(set(labels)) == 270


def test_an_error_keeps_the_last_results(window: Window, gallery: Gallery) -> None:
    window.choose(gallery.first()[1])
    before = window.cards
    body = {"error": {"code": "timeout", "message": "there was no answer"}}
    window.page.route("**/v1/search", lambda route: route.fulfill(status=504, json=body))
    window.page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": png(noise(5))})
    window.page.wait_for_selector("#trouble p")
    assert window.cards == before
    assert window.page.inner_text("#status") == "These are still the results from before."
    window.page.unroute("**/v1/search")
    window.searched(window.page.get_by_role("button", name="Try again").click)
    assert window.page.inner_text("#trouble") == ""
    assert window.cards != before


def test_weak_results_keep_their_colours(window: Window, gallery: Gallery) -> None:
    window.choose(gallery.first()[1])
    styles = window.page.locator("#weak img").evaluate_all(
        "(images) => images.map((image) => getComputedStyle(image)).map((style) => [style.filter, style.opacity])"
    )
    assert styles
    assert all(style == ["none", "1"] for style in styles)


def dispatch(page: Any, kind: str, content: bytes) -> None:
    """Drop or paste a file, with the events of a browser."""
    page.evaluate(
        """([kind, numbers]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(numbers)], "a.png", { type: "image/png" }));
          const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
          document.body.dispatchEvent(event);
        }""",
        [kind, list(content)],
    )


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_drop_and_paste(window: Window, gallery: Gallery, way: str) -> None:
    item, picture = gallery.first("shoes")
    found = window.searched(lambda: dispatch(window.page, way, picture))
    assert found["matches"][0]["path"] == item.path


def test_a_phone_takes_photographs_and_shows_the_first_result(browser: Any, service: Served, gallery: Gallery) -> None:
    item, picture = gallery.first("shoes")
    with window_of(browser, service, 360, 740, has_touch=True, is_mobile=True) as window:
        assert window.page.is_visible("#camera")
        assert window.page.get_attribute("#photo", "capture") == "environment"
        photo = {"name": "photo.png", "mimeType": "image/png", "buffer": picture}
        found = window.searched(lambda: window.page.set_input_files("#photo", photo))
        assert found["matches"][0]["path"] == item.path
        for _ in range(2):
            box = window.page.locator(".card").first.bounding_box()
            assert box["y"] + box["height"] < 740, "the whole first card is in view"
            window.page.locator("#filters summary").click()
            window.more_like(1)
        window.open(0)
        close, whole = (window.page.locator(f"dialog {part}").bounding_box() for part in (".close", ".whole"))
        assert close["y"] + close["height"] <= whole["y"], "nothing covers the picture"


def halves() -> tuple[bytes, bytes]:
    """A picture, and its left half."""
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[:, :300] = np.linspace(0, 255, 400).astype(np.uint8)[:, None, None]
    pixels[:, 300:, 0] = 255
    return png(Image.fromarray(pixels)), png(Image.fromarray(pixels[:, :300]))


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {match["id"]: match["score"] for match in answer["matches"]}


def test_crop_by_pointer_and_by_keyboard(window: Window, service: Served) -> None:
    page = window.page
    whole, left = halves()
    before = window.choose(whole)
    box = page.locator("#picture").bounding_box()

    def drag(start: tuple[float, float], end: tuple[float, float]) -> None:
        page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * end[0], box["y"] + box["height"] * end[1], steps=4)
        page.mouse.up()

    # By the lower right corner.
    cropped = window.searched(lambda: drag((0.995, 0.995), (0.495, 0.995)))
    with service.client() as client:
        near = scores(client.post("/v1/search", files={"image": left}, data={"k": "96"}).json())
    both = near.keys() & scores(cropped).keys()
    assert len(both) > 48
    assert np.allclose([near[id] for id in both], [scores(cropped)[id] for id in both], atol=0.08)
    assert scores(before) != scores(cropped)
    label = page.get_attribute("#frame", "aria-label")
    assert re.match(r"Crop: (49|50|51) % wide and (99|100) % high", label)

    page.focus("#frame")
    window.searched(lambda: page.keyboard.press("Escape"))
    assert page.get_attribute("#frame", "aria-label") == "Crop: the whole picture"
    assert not page.is_visible("#whole")
    window.searched(lambda: [page.keyboard.press(key) for key in ("-", "-", "ArrowLeft", "Shift+ArrowDown")])
    assert "% wide" in page.get_attribute("#frame", "aria-label")
    again = window.searched(page.locator("#whole").click)
    assert scores(again) == scores(before)

    # A new frame, drawn from the middle, and moved.
    window.searched(lambda: drag((0.5, 0.5), (0.3, 0.75)))
    assert page.get_attribute("#frame", "aria-label") == (
        "Crop: 20 % wide and 25 % high, 30 % from the left, 50 % from the top"
    )
    window.searched(lambda: drag((0.4, 0.6), (0.5, 0.2)))
    assert page.get_attribute("#frame", "aria-label").endswith("40 % from the left, 10 % from the top")


def test_crop_on_a_phone(browser: Any, service: Served, gallery: Gallery) -> None:
    with window_of(browser, service, 360, 740, has_touch=True) as window:
        window.choose(gallery.first()[1])
        assert not window.page.is_visible(".corner >> nth=0")
        window.page.get_by_role("button", name="Crop", exact=True).click()
        assert window.page.is_visible(".corner >> nth=0")
        window.searched(lambda: window.page.keyboard.press("-"))


BAD: dict[str, tuple[str, bytes, str, str]] = {
    "text": ("notes.jpg", b"Dear diary" * 20, "image/jpeg", "“notes.jpg” is not a picture that can be read."),
    "empty": ("empty.png", b"", "image/png", "“empty.png” is empty."),
    "heavy": ("heavy.tif", bytes(400_000), "image/tiff", "“heavy.tif” is larger than the 0.3 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_pictures(window: Window, name: str) -> None:
    file, content, kind, words = BAD[name]
    window.page.set_input_files("#file", {"name": file, "mimeType": kind, "buffer": content})
    window.page.wait_for_selector("#trouble p")
    assert window.page.inner_text("#trouble p").startswith(words)
    assert window.page.get_attribute("#trouble", "role") == "alert"


def large() -> bytes:
    """More bytes and more pixels than the service takes."""
    pixels = np.random.default_rng(0).integers(0, 255, (1100, 1300, 3), dtype=np.uint8)
    return png(Image.fromarray(pixels))


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
def test_pictures_that_only_the_browser_can_show(
    window: Window, name: str, make: Callable[[], bytes], kind: str
) -> None:
    page = window.page
    with page.expect_response(lambda answer: answer.url.endswith("/v1/search") and answer.status == 200):
        page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": make()})
    page.wait_for_selector(".card .word")
    assert page.inner_text("#trouble") == ""


def test_no_confident_match(window: Window) -> None:
    window.choose(png(noise(77)))
    assert window.heading == "No confident match"
    window.searched(window.page.locator(".chip", has_text="hats").click)
    assert window.page.inner_text("#status") == "Nothing in hats is more likely right than wrong."
    assert window.page.locator("#results .card").count() == 0
    assert window.page.locator("#weak .card").count() == 24
    window.page.locator("#filters summary").click()
    window.page.fill("#condition", "price < 2")
    window.searched(lambda: window.page.press("#condition", "Enter"))
    assert window.page.inner_text("#status").startswith("Nothing in hats with these filters is more likely right")


def test_no_match_at_a_false_match_rate(window: Window, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "threshold_of", lambda datasets=None: 0.9)
    window.choose(png(noise(77)))
    assert window.page.inner_text("#status").endswith(" is as similar as a match.")
    assert window.page.inner_text("#weak-heading") == "The nearest"


def test_a_model_without_a_threshold(browser: Any) -> None:
    gallery = Gallery(calibrated=False)
    with served(gallery) as service, window_of(browser, service) as window:
        window.choose(png(noise(77)))
        assert window.heading == "Most similar"
        assert window.page.locator(".level").count() == 0
        assert window.page.locator("#weak .card").count() == 0
        assert re.search(r"similarity −?\d\.\d\d", window.cards[0])
        window.open(0)
        assert "not calibrated" in window.page.inner_text("dialog")


def test_a_busy_service_is_asked_again(window: Window) -> None:
    asked = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
        else:
            body = {"error": {"code": "busy", "message": "too much to do"}}
            route.fulfill(status=503, json=body, headers={"Retry-After": "1"})

    window.page.route("**/v1/search", answer)
    window.open(0)
    window.page.get_by_role("button", name="More like this").click()
    window.page.wait_for_selector(".card .word")
    assert len(asked) == 2


def test_a_service_that_is_gone(browser: Any) -> None:
    with served(Gallery()) as service:
        window = Window(browser, service)
    window.page.locator(".chip", has_text="hats").click()
    window.page.wait_for_selector("#trouble p")
    assert window.page.inner_text("#trouble p").startswith("The search service does not answer.")
    assert window.page.locator("#trouble button").inner_text() == "Try again"
    assert window.troubles == []
    window.context.close()


OVERFLOWING = """() => [...document.body.querySelectorAll("*")].filter((element) => {
  if (element.closest(".unseen, .skip, #frame, svg, #chips")) return false;
  const box = element.getBoundingClientRect();
  return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
}).map((element) => element.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (320, "dark"),
        (1280, "light"),
        pytest.param(360, "light", marks=pytest.mark.soak),
        pytest.param(768, "dark", marks=pytest.mark.soak),
    ],
)
def test_every_state_fits_and_has_no_violation(
    browser: Any, axe: str, service: Served, gallery: Gallery, width: int, scheme: str
) -> None:
    """Nothing is wider than the window, and axe finds no barrier."""
    with window_of(browser, service, width, color_scheme=scheme, has_touch=width < 400, bypass_csp=True) as window:
        page = window.page

        def check() -> None:
            assert not overflows(page)
            assert page.evaluate(OVERFLOWING) == []
            assert barriers(page, axe) == []

        check()
        page.locator("footer summary").click()
        window.choose(gallery.first()[1])
        check()
        window.open(1)
        check()
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="hidden")
        window.more_like(3)
        page.locator("#filters summary").click()
        window.searched(page.locator(".choice").first.click)
        window.searched(lambda: page.check("#fold-copies"))
        window.searched(lambda: page.select_option("#sort", label="price, highest first"))
        page.locator(".fold").first.click()
        check()
        pictures = [gallery.first("hats")[1], gallery.first("shoes")[1]]
        files = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": picture} for n, picture in enumerate(pictures)]
        window.searched(lambda: page.set_input_files("#more-files", files))
        check()
        window.choose(png(noise(77)))
        page.set_input_files("#file", {"name": "n.jpg", "mimeType": "image/jpeg", "buffer": b"Dear diary" * 9})
        page.wait_for_selector("#trouble p")
        check()
        dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", dark)[:3])) < 60) == (scheme == "dark")


def test_everything_is_named_and_can_be_reached_by_keyboard(window: Window, gallery: Gallery) -> None:
    page = window.page
    window.choose(gallery.first()[1])
    page.focus(".skip")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(
            "() => { const e = document.activeElement; return e.id || e.className || e.parentElement.className; }"
        ))  # fmt: skip
    assert {"home", "frame", "file", "chip", "open"} <= set(reached)
    order = [reached.index(name) for name in ("home", "frame", "file", "chip", "open")]
    assert order == sorted(order)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_there_is_a_favicon(service: Served) -> None:
    with service.client() as client:
        for path in ("/favicon.ico", "/favicon.svg"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "image/svg+xml"
            assert answer.text.startswith("<svg")
            assert client.head(path).status_code == 200
