"""Pictures that are searched for in the page: several, dropped, cropped, or no pictures at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from gallery import Gallery, noise, png
from page_window import Window, file_of, gallery, opened, service, window, window_of
from PIL import Image
from stubs import Served

__all__ = ["gallery", "opened", "service", "window"]


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
