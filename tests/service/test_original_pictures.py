"""Pictures of items from their own files: over HTTP, and opened in the page."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from gallery import Gallery
from PIL import Image
from stubs import ID, Block, StubIndex, served

from unimetric.data.images import with_box
from unimetric.search.items import StoredItem

ORIGINAL = f"/v1/items/{ID}/original"
READ = "a-token-for-readers"


class FileIndex(StubIndex):
    """One item, of a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.stored = StoredItem(ID, "hats", "bowler", str(file), {}, hash_of(file))

    def item(self, id: str) -> StoredItem:
        return replace(self.stored, id=id)


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A large picture of one colour, which is not the one of any stored picture."""
    Image.new("RGB", (2400, 1200), (20, 120, 220)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def index(photograph: Path) -> FileIndex:
    return FileIndex(photograph)


def reason_of(answer: httpx.Response) -> str:
    """The message of the error that there is no original."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "no_original")
    assert "/" not in error["message"], "names no file of the machine"
    return str(error["message"])


def test_the_file_of_an_item_is_shown(index: FileIndex, photograph: Path) -> None:
    with served(index) as service, service.client() as client:
        answer = client.get(ORIGINAL)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert answer.headers["cache-control"] == "private, max-age=300"
        assert Image.open(BytesIO(answer.content)).size == (1600, 800)
        tag = {"If-None-Match": answer.headers["etag"]}
        assert client.get(ORIGINAL, headers=tag).status_code == 304

        photograph.write_bytes(b"something else")
        assert reason_of(client.get(ORIGINAL)) == "its file was changed since it was indexed"
        # What the client has is still what was indexed.
        assert client.get(ORIGINAL, headers=tag).status_code == 304
        index.stored = replace(index.stored, content_hash=hash_of(photograph))
        assert reason_of(client.get(ORIGINAL, headers=tag)).startswith("its file cannot be shown: not an image")
        photograph.unlink()
        assert reason_of(client.get(ORIGINAL)) == "the service cannot find its file"


def test_ids_that_are_none(index: FileIndex) -> None:
    with served(index) as service, service.client() as client:
        for id in ("1", "..%2F..%2Fetc%2Fpasswd", "A" * 32):
            assert client.get(f"/v1/items/{id}/original").status_code == 404, id


def test_limits_and_the_switch(index: FileIndex) -> None:
    with served(index, max_pixels=1_000_000) as service, service.client() as client:
        assert "too many pixels" in reason_of(client.get(ORIGINAL))
    with served(index, originals=False) as service, service.client() as client:
        assert reason_of(client.get(ORIGINAL)) == "this service shows no larger ones"


def test_a_token_for_reading_is_needed(index: FileIndex) -> None:
    with served(index, read_token=READ) as service, service.client() as client:
        assert client.get(ORIGINAL).status_code == 401
        assert client.get(ORIGINAL, headers={"Authorization": f"Bearer {READ}"}).status_code == 200


def test_files_on_a_slow_disk_hold_up_nothing_else(index: FileIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block()
    monkeypatch.setattr("unimetric.service.routes.items.read_original", block)
    with served(index, request_seconds=0.5) as service, service.client() as client:
        try:
            with ThreadPoolExecutor(16) as pool:
                slow = [pool.submit(client.get, ORIGINAL) for _ in range(16)]
                block.wait_for(1)
                assert client.get(f"/v1/items/{ID}").status_code == 200
                assert client.post("/v1/search", json={"id": ID}).status_code == 200
            assert {answer.result().json()["error"]["code"] for answer in slow} == {"timeout"}
        finally:
            block.release()


# --- In the page ---------------------------------------------------------------------------------------------------


class FileGallery(Gallery):
    """A gallery whose items are of one file."""

    def __init__(self, file: Path, box: tuple[int, int, int, int] | None = None) -> None:
        super().__init__(per_catalogue=4)
        content = hash_of(file)
        self._digest = content if box is None else hashlib.sha256(f"{content} {box}".encode()).hexdigest()
        self._path = str(file) if box is None else with_box(str(file), box)

    def item(self, id: str) -> StoredItem:
        return replace(super().item(id), path=self._path, content_hash=self._digest)


CENTRE = """async (image) => {
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(canvas.width / 2, canvas.height / 2, 1, 1);
  return [canvas.width, canvas.height, ...data.slice(0, 3)];
}"""


def open_first(page: Any, url: str) -> None:
    page.goto(url)
    page.locator("#results .card .open").first.click()
    page.wait_for_selector("dialog[open] .whole")


@pytest.mark.parametrize(("width", "token"), [(1280, None), (360, READ)])
def test_an_opened_item_shows_its_file(browser: Any, photograph: Path, width: int, token: str | None) -> None:
    with served(FileGallery(photograph), read_token=token) as service:
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        if token:
            page.add_init_script(f"sessionStorage.setItem('unimetric-token', '{token}')")
        open_first(page, service.url)
        page.wait_for_selector("dialog .whole[src^='blob:']")
        page.wait_for_function("() => document.querySelector('dialog .whole').naturalWidth === 1600")
        image = page.locator("dialog .whole")
        across, down, *colour = image.evaluate(CENTRE)
        assert (across, down) == (1600, 800)
        assert all(abs(found - wanted) < 6 for found, wanted in zip(colour, (20, 120, 220), strict=True))
        assert page.inner_text("dialog figcaption") == ""
        box = image.bounding_box()
        assert box["width"] > (width * 0.5 if width > 1000 else width * 0.8)
        link = page.get_by_role("link", name="Open picture")
        with context.expect_page() as opening:
            link.click()
        assert opening.value.locator("img").evaluate("(image) => image.naturalWidth") == 1600
        context.close()


def test_without_its_file_the_stored_picture_stays(browser: Any, photograph: Path) -> None:
    gallery = FileGallery(photograph)
    with served(gallery) as service:
        context = browser.new_context(viewport={"width": 360, "height": 740})
        page = context.new_page()
        photograph.write_bytes(b"changed")
        open_first(page, service.url)
        page.wait_for_selector("dialog figcaption:not(:empty)")
        assert page.inner_text("dialog figcaption") == "A small copy: its file was changed since it was indexed."
        assert page.locator("dialog .whole").evaluate(CENTRE)[:2] == [60, 40]
        assert page.get_by_role("link", name="Open picture").get_attribute("href").endswith("/image")
        # Another item, with an answer that does not come.
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="hidden")
        page.route("**/original", lambda route: route.abort())
        page.locator("#results .card .open").nth(1).click()
        page.wait_for_selector("dialog figcaption:not(:empty)")
        assert page.inner_text("dialog figcaption") == "A small copy: the larger one could not be loaded."
        context.close()


def test_closing_an_item_ends_its_request(browser: Any, photograph: Path) -> None:
    with served(FileGallery(photograph)) as service:
        context = browser.new_context()
        page = context.new_page()
        page.route("**/original", lambda route: None)
        open_first(page, service.url)
        with page.expect_event("requestfailed") as ended:
            page.keyboard.press("Escape")
        assert ended.value.url.endswith("/original")
        context.close()


def test_an_object_is_outlined(browser: Any, photograph: Path) -> None:
    with served(FileGallery(photograph, (600, 300, 900, 600))) as service:
        context = browser.new_context()
        page = context.new_page()
        open_first(page, service.url)
        page.wait_for_function("() => document.querySelector('dialog .whole').naturalWidth === 1600")
        context.close()
