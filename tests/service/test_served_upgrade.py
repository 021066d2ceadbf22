"""A service whose database is upgraded to another model: it goes on answering, and takes the new model over."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from stubs import Served, served

from toy_runs import make_images
from unimetric.commands.index import index_sources
from unimetric.commands.upgrade import upgrade
from unimetric.config import DeviceConfig
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.source import ModelSource
from unimetric.search import SearchIndex
from unimetric.search.upgrade.embedding import UpgradeOptions
from unimetric.search.upgrade.run import start_upgrade
from unimetric.service.batching import Batcher
from unimetric.service.upgrading import Follower, Model

FP32 = DeviceConfig(accelerator="cpu", precision="fp32")
ROWS = 12


def make_model(folder: Path, seed: int, size: int) -> Path:
    torch.manual_seed(seed)
    backbone = make_backbone("test_vit", weights="random", image_size=32)
    Embedder(backbone, "linear", embedding_size=size).eval().save_pretrained(folder)
    return folder


class Catalogue:
    """A database by the first of two models, of two embedding sizes."""

    def __init__(self, root: Path) -> None:
        self.images = make_images(root / "images", classes=3, images=4)
        self.old, self.new = make_model(root / "old", 0, 16), make_model(root / "new", 1, 24)
        self.db = root / "db"
        index_sources(self.old, [str(self.images)], str(self.db), device=FP32)

    def follow(self, make_batcher: Callable[..., Any]) -> Follower:
        def open_index(embedder: Embedder | None) -> SearchIndex:
            return SearchIndex.open(self.db, embedder=embedder, device=FP32)

        return Follower(str(self.db), open_index, make_batcher, keep_seconds=60, every_seconds=0.02)

    @contextmanager
    def serve(self, **options: Any) -> Iterator[Served]:
        with SearchIndex.open(self.db, device=FP32) as index, served(index, follow=self.follow, **options) as running:
            yield running


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path)


def search(client: httpx.Client, picture: Path) -> dict[str, Any]:
    answer = client.post("/v1/search", files={"image": picture.read_bytes()}, data={"k": "5"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("live", ["now", "both"])
def test_every_search_is_answered_while_the_model_changes(catalogue: Catalogue, live: str) -> None:
    picture = sorted(catalogue.images.glob("*/*.png"))[3]
    codes: list[int] = []
    options = {"sample": 4, "live": live, "batch_size": 1, "commit_rows": 2, "device": FP32}
    work = threading.Thread(
        target=lambda: codes.append(upgrade(str(catalogue.db), model=catalogue.new, **options))  # type: ignore[arg-type]
    )
    with catalogue.serve() as running, running.client() as client:
        before = client.get("/v1/datasets").json()["model"]
        assert client.get("/v1/status").json()["upgrade"] is None
        work.start()
        models = set()
        while work.is_alive() or len(models) < 2:
            found = search(client, picture)["matches"]
            assert len(found) == 5
            embedded = client.post("/v1/embed", files={"image": picture.read_bytes()}).json()
            assert (embedded["model"] == before) == (embedded["size"] == 16)
            models.add(embedded["model"])
        work.join()
        assert codes == [0]
        # A reader sees a commit within two seconds.
        until(lambda: search(client, picture)["matches"][0]["score"] == pytest.approx(1, abs=1e-4))
        assert search(client, picture)["matches"][0]["path"] == str(picture)
        assert client.get("/v1/datasets").json()["model"] != before
        assert client.get("/v1/status").json()["upgrade"] is None


def test_the_memory_of_a_replaced_model_is_free(catalogue: Catalogue) -> None:
    def make_batcher(load: Callable[[], Any], on_ready: Callable[[], None], on_failure: Callable[..., None]) -> Batcher:
        return Batcher(load, precision="fp32", on_ready=on_ready, on_failure=on_failure)

    def open_index(embedder: Embedder | None) -> SearchIndex:
        return SearchIndex.open(catalogue.db, embedder=embedder, device=FP32)

    index = open_index(None)  # kept by whoever opened the service, like `unimetric serve`
    ready = threading.Event()
    used = [Model(index, make_batcher(lambda: index.embedder, ready.set, pytest.fail))]
    used[0].batcher.start()
    assert ready.wait(60)
    old = weakref.ref(used[0].batcher.embedder)
    follower = Follower(str(catalogue.db), open_index, make_batcher, keep_seconds=0, every_seconds=0.02)
    follower.start(lambda: used[0], lambda model: used.__setitem__(0, model))
    try:
        assert upgrade(str(catalogue.db), model=catalogue.new, sample=4, device=FP32) == 0
        until(lambda: used[0].index.embedding_size == 24 and gc.collect() >= 0 and old() is None)
        assert used[0].batcher.ready
    finally:
        follower.stop()
        used[0].batcher.stop()
        used[0].index.close()


class StoppedError(Exception):
    pass


def test_the_status_shows_the_progress_and_a_rollback_is_followed(catalogue: Catalogue) -> None:
    def progressed(done: int, rows: int) -> None:
        if done >= 6:
            raise StoppedError

    options = UpgradeOptions(sample=4, live="now", batch_size=1, commit_rows=2, precision="fp32")
    with catalogue.serve() as running, running.client() as client:
        before = client.get("/v1/datasets").json()["model"]
        with pytest.raises(StoppedError):
            start_upgrade(catalogue.db, ModelSource(catalogue.new), options=options, on_progress=progressed).run(
                Embedder.from_pretrained(catalogue.new)
            )
        until(lambda: client.get("/v1/datasets").json()["model"] != before)
        progress = client.get("/v1/status").json()
        assert progress["items"] == ROWS
        assert progress["upgrade"]["answers"] == "new" and progress["upgrade"]["rows"] == ROWS
        assert 4 <= progress["upgrade"]["embedded"] < ROWS
        # An item whose vector is moved is shown, and found, like any other.
        for item in client.get("/v1/items").json()["items"]:
            assert client.get(item["image"]).status_code == 200
            assert client.post("/v1/search", json={"id": item["id"], "k": 3}).status_code == 200
        assert upgrade(str(catalogue.db), rollback=True, device=FP32) == 0
        until(lambda: client.get("/v1/datasets").json()["model"] == before)
        assert client.get("/v1/status").json()["upgrade"] is None


def test_items_are_added_and_deleted_while_it_is_upgraded(catalogue: Catalogue) -> None:
    def progressed(done: int, rows: int) -> None:
        if done >= 6:
            raise StoppedError

    options = UpgradeOptions(sample=4, live="now", batch_size=1, commit_rows=2, precision="fp32")
    picture = sorted(catalogue.images.glob("*/*.png"))[3].read_bytes()
    headers = {"Authorization": "Bearer t"}
    with catalogue.serve(token="t") as running, running.client(headers=headers) as client:
        before = client.get("/v1/datasets").json()["model"]
        with pytest.raises(StoppedError):
            start_upgrade(catalogue.db, ModelSource(catalogue.new), options=options, on_progress=progressed).run(
                Embedder.from_pretrained(catalogue.new)
            )
        until(lambda: client.get("/v1/datasets").json()["model"] != before)
        added = client.post("/v1/items", files={"image": picture}, data={"dataset": "added", "path": "web/1"})
        assert added.status_code == 201
        gone = client.get("/v1/items", params={"dataset": "images"}).json()["items"][0]["id"]
        assert client.delete(f"/v1/items/{gone}").status_code == 204
        assert upgrade(str(catalogue.db), model=catalogue.new, device=FP32) == 0
        until(lambda: client.get("/v1/status").json()["upgrade"] is None)
        listed = {item["id"] for item in client.get("/v1/items", params={"n": 100}).json()["items"]}
        assert added.json()["id"] in listed and gone not in listed and len(listed) == ROWS
