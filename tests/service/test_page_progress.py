"""The page while a folder is being indexed, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gallery import Gallery
from page_window import window_of
from stubs import StubFolder, served

from browsing import barriers
from unimetric.search.items import Refused
from unimetric.service.folder import IndexingState

COMMAND = "unimetric train /data/photos --out runs/mine"


def working(**changes: Any) -> IndexingState:
    """The indexing of a folder on its way."""
    skipped = (Refused("/data/photos/roses/7.jpg", "cut off before its end"),)
    state = IndexingState("indexing", 1100, 5000, 144, 210.0, skipped, 1, folder="/data/photos")
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
        folder.state = working(phase="done", done=5000, seconds_left=None, train_command=COMMAND)
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
    folder = StubFolder(working(phase=phase, train_command=COMMAND))
    with served(Gallery(), folder=folder) as service, window_of(browser, service, 360, 740, has_touch=True) as window:
        window.page.wait_for_selector("#progress:not([hidden])")
        window.choose(Gallery().first()[1])
        assert window.page.locator(".card .view").first.bounding_box()["y"] + 160 <= 740, "the whole picture is in view"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (IndexingState("waiting"), "The model is being loaded; then your pictures are indexed."),
        (IndexingState("reading", folder="/data/photos"), "Looking for pictures in /data/photos"),
        (
            working(phase="failed", problem="the disk is full"),
            "The pictures could not all be indexed: the disk is full. Start the service again to continue.",
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
