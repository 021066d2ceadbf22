"""Embedding into shards: the same rows and vectors as the plain command, restartable, and into a database."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from toy_runs import make_images, one_thread, unimetric
from unimetric import Embedder
from unimetric.bulk import reading
from unimetric.bulk.work_units import WorkUnit, plan
from unimetric.models.backbone import make_backbone
from unimetric.search import SearchIndex
from unimetric.search.originals import read_original
from unimetric.storage import objects as storage

__all__ = ["one_thread"]

OPTIONS = ["--device.precision", "fp32", "--device.accelerator", "cpu", "--batch_size", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    backbone = make_backbone("test_vit", weights="random", image_size=32)
    Embedder(backbone, "puma", embedding_size=16).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, and three files that are none; only to be read."""
    root = make_images(tmp_path_factory.mktemp("photos") / "birds")
    (root / "c0/9.png").write_bytes(b"")
    (root / "c3/1b.png").write_bytes((root / "c3/1.png").read_bytes()[:200])
    (root / "c5/2.jp2").write_bytes(b"\0\0\0\x0cjP  ")
    return root


@pytest.fixture(scope="module")
def plain(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Output of the plain command."""
    out = tmp_path_factory.mktemp("plain") / "all.parquet"
    torch.set_num_threads(1)
    assert unimetric("embed", model, photos, "--out", out, *OPTIONS) == 0
    return pq.read_table(out).to_pydict()


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def rows(out: Path) -> dict[str, list[Any]]:
    tables = [pq.read_table(part, columns=["path", "label", "dataset", "vector"]) for part in parts(out)]
    return pa.concat_tables([table.replace_schema_metadata() for table in tables]).to_pydict()


def skipped(out: Path) -> dict[str, str]:
    lines = (out / "skipped.csv").read_text().splitlines()[1:]
    return {Path(path).name: reason for path, reason in (line.split(",") for line in lines)}


REASONS = {
    "9.png": "empty file",
    "1b.png": "truncated",
    "2.jp2": "JPEG 2000 is not supported; convert it to JPEG or PNG",
}


def test_shards_together_are_the_plain_result(model: Path, photos: Path, plain: Any, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    for shard in ("2/2", "1/2", "1/2"):
        arguments = ["--shard", shard, "--shard_rows", "6", *OPTIONS]
        assert unimetric("embed", model, photos, "--out", out, *arguments) == 0
        assert (out / "skipped.csv").exists() == (shard == "1/2")
    # 6 images are not whole batches of 4, so a shard takes 8.
    assert len(parts(out)) == 6
    assert rows(out) == plain
    assert skipped(out) == REASONS


def test_what_is_finished_is_kept(model: Path, photos: Path, plain: Any, tmp_path: Path) -> None:
    out = tmp_path / "vectors"
    arguments = ["embed", model, photos, "--out", out, "--shard", "1/1", "--shard_rows", "8", *OPTIONS]
    assert unimetric(*arguments) == 0
    kept = {part: part.stat().st_mtime_ns for part in parts(out)}
    for lost in parts(out)[1:3]:
        lost.unlink()
        del kept[lost]
    assert unimetric(*arguments) == 0
    assert rows(out) == plain
    assert {part: part.stat().st_mtime_ns for part in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "3/2"], "write I/N"),
        (["--shard", "1/1", "--batch_size", "8"], "another run"),
        (["--shard", "1/1", "--shard_rows", "0"], "--shard_rows is 0"),
        (["--engine", "rya"], "did you mean 'ray'"),
        (["--shard", "1/1", "--workers", "2"], "add --engine ray"),
        (["--shard", "1/1", "--out", "v.npz"], "name a folder or a URI"),
        (["--shard", "1/1", "--strict", "--out", "STRICT"], "empty file"),
        (["--shard", "1/1", "--out", "PHOTOS"], "holds other files"),
    ],
)
def test_refusals(
    arguments: list[str],
    words: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "vectors"
    if "another" in words:
        assert unimetric("embed", model, photos, "--out", out, "--shard", "1/1", *OPTIONS) == 0
    own = Path(shutil.copytree(photos, tmp_path / "own"))
    (own / "x.txt").write_text("other")
    names = {"STRICT": str(tmp_path / "strict"), "PHOTOS": str(own)}
    given = [names.get(argument, argument) for argument in arguments]
    assert unimetric("embed", model, photos, "--out", out, *OPTIONS, *given) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not parts(tmp_path / "strict")


def make_tar(file: Path, images: list[Path]) -> Path:
    with tarfile.open(file, "w") as archive:
        for number, path in enumerate(images):
            for name, content in {
                f"{number:03}.png": path.read_bytes(),
                f"{number:03}.cls": path.parent.name.encode(),
            }.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def test_shard_files_hold_what_folders_hold(model: Path, photos: Path, plain: Any, tmp_path: Path) -> None:
    images = [Path(path) for path in plain["path"]]
    expected = Embedder.from_pretrained(model).encode(images[:20], batch_size=4, precision="fp32")
    folder = tmp_path / "tars"
    folder.mkdir()
    make_tar(folder / "0.tar", images[:12])
    make_tar(folder / "1.tar", images[12:20])
    table = {"image": [path.read_bytes() for path in images[:20]], "label": plain["label"][:20]}
    pq.write_table(pa.table(table), tmp_path / "photos.parquet")
    for number, source in enumerate([f"d={folder}", f"d=local://{folder}", f"d={tmp_path / 'photos.parquet'}"]):
        out = tmp_path / f"out{number}"
        assert unimetric("embed", model, source, "--out", out, "--shard", "1/1", *OPTIONS) == 0
        found = rows(out)
        np.testing.assert_array_equal(np.array(found["vector"], np.float32), expected)
        assert found["label"] == plain["label"][:20]
        assert set(found["dataset"]) == {"d"}
        assert len(set(found["path"])) == 20


def test_storage_by_uri(model: Path, photos: Path, plain: Any, tmp_path: Path) -> None:
    """`local://` is fsspec's name for the disk: the way that object storage takes."""
    manifest = tmp_path / "list.csv"
    lines = [f"{path},{label},birds" for path, label in zip(plain["path"], plain["label"], strict=True)]
    manifest.write_text("\n".join(["path,label,dataset", *lines]) + "\n")
    expected = {
        Path(path).relative_to(photos): vector for path, vector in zip(plain["path"], plain["vector"], strict=True)
    }
    for number, source in enumerate([f"local://{photos}", f"local://{manifest}"]):
        out = tmp_path / f"out{number}"
        assert unimetric("embed", model, source, "--out", f"local://{out}", "--shard", "1/1", *OPTIONS) == 0
        found = rows(out)
        assert found["label"] == plain["label"]
        assert set(found["dataset"]) == {"birds"}
        places = [Path(path.removeprefix("local://")).relative_to(photos) for path in found["path"]]
        assert set(places) == set(expected)
        for place, vector in zip(places, found["vector"], strict=True):
            np.testing.assert_allclose(vector, expected[place], atol=1e-6)  # batches of other images


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.0])
def test_a_tar_that_was_cut_off_is_named(share: float, photos: Path, tmp_path: Path) -> None:
    file = make_tar(tmp_path / "a.tar", sorted(photos.glob("c1/*.png")))
    content = file.read_bytes()
    # At the end of the last file: a cut that tarfile takes for a whole archive.
    whole = content.rstrip(b"\0")
    file.write_bytes(content[: int(share * len(whole))] if share < 1 else content[: -(-len(whole) // 512) * 512])
    found = list(reading.sources(WorkUnit(0, "tar", "d", str(file))))
    good = [source for source in found if isinstance(source.content, bytes)]
    assert [source.path for source in found if source not in good] == [str(file)]
    assert found[-1].path == str(file)
    assert {source.content for source in good} <= {path.read_bytes() for path in photos.glob("c1/*.png")}
    assert len(good) == (5 if share == 1 else int(share * 5))


def test_a_plan_does_not_depend_on_the_order_of_the_disk(photos: Path) -> None:
    units = plan([str(photos)], 10)
    assert [len(unit.images) for unit in units] == [10, 10, 10, 10, 3]
    assert all(WorkUnit.from_json(unit.to_json()) == unit for unit in units)


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(Exception, match="disk is full"):
        storage.write_whole(str(tmp_path / "part-000000.parquet"), b"x" * 1000)
    assert list(tmp_path.iterdir()) == []


def test_shards_into_a_database(model: Path, photos: Path, plain: Any, tmp_path: Path) -> None:
    out, db = tmp_path / "vectors", tmp_path / "db"
    arguments = ["embed", model, photos, "--out", out, "--shard", "1/1", "--shard_rows", "8", *OPTIONS]
    assert unimetric(*arguments, "--thumbnails") == 0
    assert unimetric("index", model, "--vectors", out, "--db", db) == 0
    with SearchIndex.open(db) as index:
        assert index.count() == 40
        (match,) = index.search_vectors(np.array(plain["vector"][7], np.float32), k=1)[0]
        assert (match.path, match.label, match.dataset) == (
            os.path.realpath(plain["path"][7]),
            plain["label"][7],
            "birds",
        )
        assert index.thumbnail(match.id).startswith(b"\xff\xd8")
    # Neither an import again nor the folder itself finds anything new.
    from unimetric.commands.index import index_shards, index_sources

    imported, count, _ = index_shards(model, [str(out)], str(db))
    assert (imported.written, imported.unchanged, count) == (0, 40, 40)
    indexed, count, _ = index_sources(model, [str(photos)], str(db))
    assert (indexed.written, indexed.unchanged, count) == (0, 40, 40)


def test_objects_of_one_picture_are_told_apart_as_by_index(model: Path, photos: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "objects.csv"
    picture = photos / "c0" / "1.png"
    manifest.write_text(f"path,label,x,y,width,height\n{picture},a,0,0,8,8\n{picture},b,4,4,8,8\n{picture},c,,,,\n")
    out, db = tmp_path / "vectors", tmp_path / "db"
    assert unimetric("embed", model, manifest, "--out", out, "--shard", "1/1", *OPTIONS) == 0
    from unimetric.commands.index import index_shards, index_sources

    index_shards(model, [str(out)], str(db))
    with SearchIndex.open(db) as index:
        assert len({item.content_hash for item in index.sample(3)}) == 3
        assert all(read_original(item, 10**6).startswith(b"\xff\xd8") for item in index.sample(3))
    indexed, count, _ = index_sources(model, [str(manifest)], str(db))
    assert (indexed.written, indexed.unchanged, count) == (0, 3, 3)


def test_shards_that_are_not_to_be_imported(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, db = tmp_path / "vectors", tmp_path / "db"
    arguments = ["embed", model, photos, "--out", out, "--shard", "1/2", "--shard_rows", "8", *OPTIONS]
    assert unimetric(*arguments) == 0
    assert unimetric("index", model, "--vectors", out, "--db", db) == 2
    assert "3 of 6 shards" in capsys.readouterr().err
    assert unimetric(*[argument if argument != "1/2" else "2/2" for argument in arguments]) == 0
    parts(out)[2].write_bytes(parts(out)[2].read_bytes()[:-100])
    assert unimetric("index", model, "--vectors", out, "--db", db) == 2
    assert "part-000002.parquet is damaged" in capsys.readouterr().err
    assert unimetric("index", model, "--vectors", tmp_path, "--db", db) == 2
    assert "shards.json is missing" in capsys.readouterr().err


def descendants(root: int) -> dict[int, str]:
    """The processes below one, by number, and what they are called."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                number = int(folder.name)
                parents[number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[number] = (folder / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue

    def below(number: int) -> bool:
        while number in parents and number != root:
            number = parents[number]
        return number == root

    return {number: name for number, name in names.items() if number != root and below(number)}


@pytest.mark.parametrize(("address", "words"), [("", "cannot start Ray here"), ("ray://h:1", "cannot reach the Ray")])
def test_a_ray_that_does_not_start_is_one_line(
    address: str,
    words: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray raises an `Exception` of no class of its own where its node does not start in time."""
    ray = ModuleType("ray")

    def init(**options: Any) -> None:
        raise Exception("The current node timed out\nduring startup.")  # noqa: TRY002 - as Ray does

    ray.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ModuleType("ray.data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert unimetric("embed", model, photos, "--out", tmp_path / "v", "--engine", "ray", *OPTIONS) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"unimetric: error: {words}")
    assert "The current node timed out during startup." in error


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a worker is found in /proc")
def test_ray_with_a_worker_killed_is_the_plain_result(
    model: Path, photos: Path, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[scale]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "vectors"
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.is_set():
            if parts(out):
                workers = [n for n, name in descendants(os.getpid()).items() if "ray::" in name and "WorkUnitW" in name]
                workers = workers or [n for n, name in descendants(os.getpid()).items() if "MapWorker" in name]
                if workers:
                    os.kill(workers[0], signal.SIGKILL)
                    killed.append(workers[0])
            time.sleep(0.005)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        arguments = ["--engine", "ray", "--workers", "2", "--shard_rows", "1", *OPTIONS]
        assert unimetric("embed", model, photos, "--out", out, *arguments) == 0
    finally:
        over.set()
        thread.join()
    assert len(killed) == 1
    assert len(parts(out)) == 11
    assert json.loads((out / "shards.json").read_text())["shards"] == 11
    assert skipped(out) == REASONS
    found = rows(out)
    assert {name: found[name] for name in ("path", "label", "dataset")} == {
        name: plain[name] for name in ("path", "label", "dataset")
    }
    # To the bit, because batches and threads are the same.
    np.testing.assert_array_equal(found["vector"], plain["vector"])
