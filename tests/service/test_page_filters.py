"""The page's filters, orders and groups, in a real browser."""

from __future__ import annotations

import re
from typing import Any

from gallery import Gallery
from page_window import Window, gallery, opened, service, window, window_of
from stubs import Served, served

from unimetric.search.conditions import parse_condition

__all__ = ["gallery", "opened", "service", "window"]


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


def test_a_text_is_searched_for_as_it_is_typed(window: Window, gallery: Gallery) -> None:
    window.more_like(0)
    page = window.page
    page.locator("#filters summary").click()
    colour = page.locator("fieldset", has=page.locator("legend", has_text="colour")).locator("input")

    def change() -> None:
        colour.fill(r"50 %_\'s")
        colour.blur()

    window.searched(change)
    assert gallery.conditions[-1] == r"`colour` ILIKE '%50 \%\_\\''s%'"
    assert parse_condition(gallery.conditions[-1], gallery.metadata_columns)
    window.searched(page.reload)
    assert colour.input_value() == r"50 %_\'s"


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
