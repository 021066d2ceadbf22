"""A served folder of images: searches while it is indexed, progress, stops, new and damaged images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stubs import Served, served

from serving import start_server
from toy_runs import make_images, unimetric
from unimetric.config import DeviceConfig
from unimetric.search import SearchIndex
from unimetric.search.writing import CommitRule
from unimetric.service.folder import FolderIndexer, IndexingState

CPU = DeviceConfig(accelerator="cpu", precision="fp32")


class Gate:
    """Follows the indexing, and holds it after so many images."""

    def __init__(self, hold_at: int | None = None) -> None:
        self._hold_at = hold_at
        self.held, self.ended, self._released = threading.Event(), threading.Event(), threading.Event()
        self.states: list[IndexingState] = []

    def __call__(self, state: IndexingState) -> None:
        self.states.append(state)
        if self._hold_at is not None and state.done == self._hold_at and state.phase == "indexing":
            self.held.set()
            assert self._released.wait(60)
        if state.phase in ("done", "failed", "stopped"):
            self.ended.set()

    def release(self) -> None:
        self._released.set()


@contextmanager
def serving(folder: Path, database: Path, run: Path, gate: Gate, **options: Any) -> Iterator[Served]:
    """Serve a folder from this process, committing every 8 images."""
    with SearchIndex.create(database, run, device=CPU) as index:
        indexer = FolderIndexer(index, str(folder), rule=CommitRule(rows=8), on_state=gate, **options)
        with served(index, folder=indexer) as running:
            yield running
            gate.release()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 pictures of 5 classes."""
    return make_images(tmp_path / "photos", classes=5, images=8)


def test_searches_see_what_is_indexed_so_far(photos: Path, toy_run: Path, tmp_path: Path) -> None:
    gate = Gate(hold_at=20)
    with serving(photos, tmp_path / "db", toy_run, gate) as service, service.client() as client:
        assert gate.held.wait(60)
        status = client.get("/v1/status").json()
        indexing = status["indexing"]
        assert (status["ready"], status["items"]) == (True, 16)
        assert (indexing["phase"], indexing["done"], indexing["total"]) == ("indexing", 20, 40)
        assert indexing["folder"] == str(photos)
        picture = (photos / "c0" / "0.png").read_bytes()
        found = client.post("/v1/search", files={"image": picture}, data={"k": "100"}).json()["matches"]
        assert len(found) == 16
        assert found[0]["path"] == str(photos / "c0" / "0.png")
        assert found[0]["score"] == pytest.approx(1, abs=1e-3)
        gate.release()
        assert gate.ended.wait(60)
        status = client.get("/v1/status").json()
        assert (status["items"], status["indexing"]["phase"], status["indexing"]["seconds_left"]) == (40, "done", None)
        assert client.get("/v1/datasets").json()["items"] == 40
    assert [state.done for state in gate.states] == sorted(state.done for state in gate.states)


def test_a_stop_keeps_what_is_done_and_the_next_start_goes_on(photos: Path, toy_run: Path, tmp_path: Path) -> None:
    gate = Gate(hold_at=20)
    with serving(photos, tmp_path / "db", toy_run, gate):
        assert gate.held.wait(60)
        threading.Timer(0, gate.release).start()
    assert gate.ended.is_set()
    assert gate.states[-1].phase in ("stopped", "done")
    with SearchIndex.open(tmp_path / "db") as index:
        before = index.count()
    assert before >= 16
    (photos / "c0" / "1.png").unlink()
    again = Gate()
    with serving(photos, tmp_path / "db", toy_run, again) as service, service.client() as client:
        assert again.ended.wait(60)
        assert client.get("/v1/status").json()["items"] == 39
    assert again.states[-1].phase == "done"
    assert again.states[-1].written == 40 - before


def test_damaged_images_are_named(photos: Path, toy_run: Path, tmp_path: Path) -> None:
    (photos / "c1" / "0.png").write_bytes(b"no picture")
    (photos / "c2" / "0.png").write_bytes((photos / "c2" / "1.png").read_bytes()[:200])
    gate = Gate()
    with serving(photos, tmp_path / "db", toy_run, gate) as service, service.client() as client:
        assert gate.ended.wait(60)
        indexing = client.get("/v1/status").json()["indexing"]
    assert indexing["phase"] == "done"
    assert indexing["skipped_total"] == 2
    assert {file["path"] for file in indexing["skipped"]} == {str(photos / "c1/0.png"), str(photos / "c2/0.png")}
    assert all(file["reason"] for file in indexing["skipped"])


@pytest.mark.parametrize("trained", [True, False])
def test_an_untrained_model_comes_with_the_command_to_train(
    photos: Path, toy_run: Path, tmp_path: Path, trained: bool
) -> None:
    gate = Gate()
    with serving(photos, tmp_path / "db", toy_run, gate, trained=trained) as service, service.client() as client:
        assert gate.ended.wait(60)
        command = client.get("/v1/status").json()["indexing"]["train_command"]
    assert command == (None if trained else f"unimetric train {photos} --out runs/mine")


def test_a_folder_without_classes_cannot_be_trained_on(photos: Path, toy_run: Path, tmp_path: Path) -> None:
    gate = Gate()
    with serving(photos / "c0", tmp_path / "db", toy_run, gate) as service, service.client() as client:
        assert gate.ended.wait(60)
        assert client.get("/v1/status").json()["indexing"]["train_command"] is None


def test_a_database_has_no_progress(database: Path) -> None:
    with SearchIndex.open(database, device=CPU) as index, served(index) as service, service.client() as client:
        assert client.get("/v1/status").json() == {"ready": True, "items": 48, "indexing": None, "upgrade": None}


def test_the_command_serves_a_folder(photos: Path, toy_run: Path, tmp_path: Path) -> None:
    options = ("--model", toy_run, "--device.accelerator", "cpu")
    for start in ("first", "second"):
        server = start_server(photos, *options, UNIMETRIC_CACHE=str(tmp_path / "cache"))
        with server.client() as client:
            while client.get("/v1/status").json()["indexing"]["phase"] != "done":
                assert server.process.poll() is None
            picture = (photos / "c3" / "2.png").read_bytes()
            best = client.post("/v1/search", files={"image": picture}, data={"k": "1"}).json()["matches"][0]
            assert best["path"] == str(photos / "c3" / "2.png")
        code, said = server.stop()
        assert code == 0
        assert ("40 new or changed images" if start == "first" else "40 unchanged") in said
        assert "Traceback" not in said


def test_an_indexing_that_does_not_end_does_not_keep_the_command(photos: Path, toy_run: Path, tmp_path: Path) -> None:
    options = ("--model", toy_run, "--device.accelerator", "cpu", "--request_seconds", 1)
    stuck = str(Path(__file__).with_name("stuck_serve.py"))
    server = start_server(photos, *options, script=stuck, UNIMETRIC_CACHE=str(tmp_path / "cache"))
    with server.client() as client:
        while client.get("/v1/status").json()["indexing"]["done"] < 40:
            assert server.process.poll() is None
    code, said = server.stop()
    assert code == 0
    assert "not all work in the background has ended; ending without it" in said


@pytest.mark.parametrize("content", [{"notes.txt": b"no image"}, {"a.png": b"no picture"}])
def test_a_folder_with_nothing_to_show_ends_it(
    content: dict[str, bytes],
    toy_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for name, data in content.items():
        (tmp_path / "photos" / name).write_bytes(data)
    assert unimetric("serve", tmp_path / "photos", "--model", toy_run, "--port", 0) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "photos") in said.splitlines()[-1]
    assert "Traceback" not in said


def test_words_for_a_folder_that_is_missing_or_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("serve", tmp_path / "photos") == 2
    assert str(tmp_path / "photos") in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    assert unimetric("serve", tmp_path / "photos") == 2
    assert "is empty: name a folder of images" in capsys.readouterr().err
