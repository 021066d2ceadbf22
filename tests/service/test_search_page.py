"""The web page in a real browser, on the real service with a small gallery: every way in, every state."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gallery import HOSTILE, Gallery, noise, png
from page_window import Window, gallery, opened, service, window, window_of
from stubs import Served, served

from browsing import barriers, overflows

__all__ = ["gallery", "opened", "service", "window"]


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


def test_show_more_keeps_what_is_there(browser: Any) -> None:
    gallery = Gallery(per_catalogue=40)
    with served(gallery) as service, window_of(browser, service) as window:
        window.choose(gallery.first()[1])
        first = window.page.locator(".card").first.element_handle()
        for shown in range(48, 120, 24):
            window.page.locator("#more").click()
            window.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {shown}")
            place = "[...document.querySelectorAll('.card .open')].indexOf(document.activeElement)"
            window.page.wait_for_function(f"() => {place} >= 0")
        assert first.evaluate("(card) => card.isConnected")
        window.page.locator("#more").click()
        window.page.wait_for_function("() => document.querySelectorAll('.card').length === 120")
        assert not window.page.is_visible("#more")
        assert window.searches == 2, "the first answer, and one with all"
        labels = [card.split(" ")[0] for card in window.cards]
        assert len(labels) == len(set(labels)) == 120


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
def test_every_state_fits_and_has_no_violation(browser: Any, axe: str, width: int, scheme: str) -> None:
    """Nothing is wider than the window, and axe finds no barrier."""
    gallery = Gallery(per_catalogue=13)
    options: dict[str, Any] = {"color_scheme": scheme, "has_touch": width < 400, "bypass_csp": True}
    with served(gallery, max_upload_bytes=300_000) as service, window_of(browser, service, width, **options) as window:
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
