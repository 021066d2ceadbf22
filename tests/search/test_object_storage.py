"""Commands on object storage: an S3 server over HTTP on this machine, whole or with faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from search_toys import FP32, make_model, new_picture

from s3_server import Bucket, Request, bucket, meeting, s3_server, some
from serving import start_server
from toy_runs import unimetric
from unimetric.models.embedder import Embedder
from unimetric.search import NewItem, SearchIndex
from unimetric.search.errors import ModelMismatchError
from unimetric.search.stores import open_store
from unimetric.search.stores.live import Live, read_live, write_live
from unimetric.storage import objects as storage

__all__ = ["bucket", "s3_server"]

CPU = ("--device.accelerator", "cpu", "--device.precision", "fp32")


def contents(db: object) -> list[dict[str, object]]:
    """All rows by id; an id that is there twice fails."""
    opened = open_store(str(db))
    rows = sorted(opened.rows(opened.column_names).to_pylist(), key=lambda row: str(row["id"]))
    assert len({row["id"] for row in rows}) == len(rows)
    return rows


@contextmanager
def served(db: str) -> Iterator[httpx.Client]:
    """Run ``unimetric serve`` in a process of its own until it answers, and a client for it."""
    token = "a token for the tests"
    server = start_server(db, "--writable", UNIMETRIC_TOKEN=token)
    try:
        with server.client(headers={"Authorization": f"Bearer {token}"}) as client:
            yield client
    finally:
        code, said = server.stop()
    assert code == 0, said
    assert "Traceback" not in said


@pytest.fixture(scope="session")
def local(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of the images on the disk."""
    db = tmp_path_factory.mktemp("local") / "db"
    assert unimetric("index", model, images, "--db", db, *CPU) == 0
    return db


def test_index_search_change_and_delete(
    bucket: Bucket, model: Path, images: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = f"{bucket.uri}/catalogue"
    assert unimetric("index", model, images, "--db", db, "--commit_rows", 8, *CPU) == 0
    assert contents(db) == contents(local)
    written = len(bucket.keys())
    assert unimetric("index", model, images, "--db", db, *CPU) == 0
    assert len(bucket.keys()) == written

    queries = sorted(images.glob("*/*/*.png"))[::5]
    answers = []
    for place in (local, db):
        capsys.readouterr()
        assert unimetric("search", place, *queries, "--json", "--where", "label != 'c1'", *CPU) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]

    photos = bucket.upload(images / "hats", "hats")
    assert unimetric("search", db, f"{photos}/c1/2.png", "--json", "-k", 1, *CPU) == 0
    ((match,),) = (answer["matches"] for answer in json.loads(capsys.readouterr().out))
    assert match["path"] == str(images / "hats/c1/2.png")
    assert unimetric("search", db, f"{photos}/absent.png", *CPU) == 2
    assert f"{photos}/absent.png does not exist; name an image" in capsys.readouterr().err

    assert unimetric("index", "--db", db, "--delete_dataset", "hats", "--optimise") == 0
    with SearchIndex.open(db) as index:
        assert index.datasets() == {"shoes": 12}


def test_upgrade_and_roll_back(bucket: Bucket, model: Path, images: Path, local: Path, tmp_path: Path) -> None:
    newer = make_model(tmp_path / "newer", seed=1, size=24)
    db, whole = f"{bucket.uri}/catalogue", tmp_path / "whole"
    assert unimetric("index", model, images, "--db", db, *CPU) == 0
    assert unimetric("index", newer, images, "--db", whole, *CPU) == 0
    options = ("--model", newer, "--live", "now", "--sample", 8, "--batch_size", 4, *CPU)
    # An image that is gone keeps the upgrade unfinished, and so open to be undone.
    gone = Path(str(contents(db)[0]["path"]))
    kept = gone.read_bytes()
    gone.unlink()
    try:
        assert unimetric("upgrade", db, *options) == 1
    finally:
        gone.write_bytes(kept)
    assert unimetric("upgrade", db, "--rollback", *CPU) == 0
    assert contents(db) == contents(local)
    assert unimetric("upgrade", db, *options) == 0
    assert contents(db) == contents(whole)


@pytest.mark.parametrize("longer", [False, True])
def test_a_record_that_is_replaced_while_it_is_read_is_one_of_both(bucket: Bucket, longer: bool) -> None:
    short, long = Live("a"), Live("a" * 60, previous="b" * 60)
    before, after = (short, long) if longer else (long, short)
    write_live(f"{bucket.uri}/db", after)
    content = bucket.get("db/.live.json")
    write_live(f"{bucket.uri}/db", before)

    def replaced(request: Request) -> None:
        if request.method == "GET" and request.path.endswith(".live.json"):
            bucket.server.fault = lambda request: None
            bucket.put("db/.live.json", content)

    bucket.server.fault = replaced
    assert read_live(f"{bucket.uri}/db") == after


def test_embed_into_shards_and_import_them(
    bucket: Bucket, model: Path, images: Path, local: Path, embedder: Embedder, tmp_path: Path
) -> None:
    # Names that an address would have to escape.
    folder = tmp_path / "photos"
    for place, name in enumerate(["größe 1.png", "a%20b.png", "a+b&c.png", "x#1.png", "q?1.png"]):
        new_picture(folder / "c0" / name, (place * 40, 9, 200))
    photos, out = bucket.upload(folder, "photos"), f"{bucket.uri}/vectors"
    options = ("--shard_rows", 4, "--batch_size", 4, "--thumbnails", *CPU)
    assert unimetric("embed", model, photos, "--out", out, "--shard", "1/2", *options) == 0
    assert "vectors/skipped.csv" not in bucket.keys("vectors/")
    assert unimetric("embed", model, photos, "--out", out, "--shard", "2/2", *options) == 0
    shards = [key for key in bucket.keys("vectors/") if key.endswith(".parquet")]
    assert len(shards) == 2
    assert bucket.get("vectors/skipped.csv") == b"path,reason\n"

    db = f"{bucket.uri}/db"
    assert unimetric("index", model, "--vectors", out, "--db", db) == 0
    found = {str(row["path"]): row for row in contents(db)}
    assert set(found) == {f"{photos}/c0/{file.name}" for file in folder.rglob("*.png")}
    for file in folder.rglob("*.png"):
        expected = embedder.encode([file], precision="fp32")[0]
        np.testing.assert_allclose(found[f"{photos}/c0/{file.name}"]["vector"], expected, atol=1e-5)


@pytest.mark.soak
def test_ray_writes_the_same_shards(bucket: Bucket, model: Path, images: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'unimetric[scale]'")
    photos = bucket.upload(images / "hats", "hats")
    options = ("--shard_rows", 4, "--batch_size", 4, *CPU)
    assert unimetric("embed", model, photos, "--out", f"{bucket.uri}/plain", "--shard", "1/1", *options) == 0
    assert unimetric("embed", model, photos, "--out", f"{bucket.uri}/ray", "--engine", "ray", *options) == 0
    for key in bucket.keys("plain/part-"):
        one, other = (
            pq.read_table(storage.open_file(f"{bucket.uri}/{name}")) for name in (key, key.replace("plain", "ray"))
        )
        assert one.equals(other)


@pytest.mark.parametrize("seed", range(3))
def test_throttling_and_failures_change_no_row(
    seed: int, bucket: Bucket, model: Path, images: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = f"{bucket.uri}/catalogue"
    bucket.server.fault = some(0.3, seed, "503", "500", "half upload", "lost answer", "half download")
    assert unimetric("index", model, images, "--db", db, "--commit_rows", 4, *CPU) == 0
    assert unimetric("search", db, next(images.rglob("*.png")), *CPU) == 0
    assert bucket.server.hurt.total() > 3, bucket.server.hurt
    bucket.server.reset()
    assert contents(db) == contents(local)


def test_shards_survive_throttling_and_lost_connections(bucket: Bucket, model: Path, images: Path) -> None:
    photos = bucket.upload(images / "hats", "hats")
    options = ("--shard", "1/1", "--shard_rows", 4, "--batch_size", 4, *CPU)
    assert unimetric("embed", model, photos, "--out", f"{bucket.uri}/whole", *options) == 0
    bucket.server.fault = some(0.25, 1, "503", "500", "half upload", "lost answer", "half download")
    assert unimetric("embed", model, photos, "--out", f"{bucket.uri}/hurt", *options) == 0
    assert bucket.server.hurt.total() > 3, bucket.server.hurt
    bucket.server.reset()
    assert len(bucket.keys("whole/")) == 5
    for key in bucket.keys("whole/"):
        assert bucket.get(key) == bucket.get(key.replace("whole", "hurt"))


def test_an_image_that_storage_does_not_give_is_not_skipped(
    bucket: Bucket, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished shard would lack it for ever, so the command stops, and goes on when it is run again."""
    photos, out = bucket.upload(images / "hats", "hats"), f"{bucket.uri}/vectors"
    bucket.server.fault = lambda request: "403" if request.path.endswith("/hats/c1/2.png") else None
    command = ("embed", model, photos, "--out", out, "--shard", "1/1", "--shard_rows", 4, "--batch_size", 4, *CPU)
    assert unimetric(*command) == 2
    said = capsys.readouterr().err
    assert f"cannot read {photos}/c1/2.png" in said
    assert "Traceback" not in said
    bucket.server.reset()
    assert unimetric(*command) == 0
    assert bucket.get("vectors/skipped.csv") == b"path,reason\n"


@pytest.mark.parametrize("case", ["missing", "wrong", "no bucket", "no server"])
@pytest.mark.parametrize("command", ["index", "search", "serve", "embed from", "embed to", "vectors"])
def test_one_line_about_storage_that_is_out_of_reach(
    case: str,
    command: str,
    bucket: Bucket,
    model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = f"{bucket.uri}-none/x" if case == "no bucket" else f"{bucket.uri}/x"
    if case == "missing":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    elif case == "wrong":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    elif case == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    picture = next(images.rglob("*.png"))
    commands = {
        "index": ("index", model, images, "--db", place, *CPU),
        "search": ("search", place, picture, *CPU),
        "serve": ("serve", place, "--port", 0),
        "embed from": ("embed", model, place, "--out", bucket.uri, "--shard", "1/1", *CPU),
        "embed to": ("embed", model, images, "--out", place, "--shard", "1/1", *CPU),
        "vectors": ("index", model, "--vectors", place, "--db", f"{place}-db"),
    }
    assert unimetric(*commands[command]) == 2
    said = capsys.readouterr().err.strip()
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert place in line
    assert f"AWS_ACCESS_KEY_ID is {'not set' if case == 'missing' else 'set'}" in line
    assert "AWS_ENDPOINT_URL is http://127.0.0.1:" in line
    assert "Traceback" not in said
    assert "a-secret-for-the-tests" not in said


def test_two_writers_at_once_double_nothing(bucket: Bucket, model: Path, embedder: Embedder, images: Path) -> None:
    db = f"{bucket.uri}/db"
    files = sorted(images.glob("hats/*/*.png"))
    SearchIndex.create(db, model).close()

    def write(number: int) -> int:
        items = [NewItem(file, "hats", "l", metadata={"price": number}) for file in files[number : number + 8]]
        with SearchIndex.create(db, model, embedder=embedder, device=FP32) as index:
            return index.add(items).written

    with meeting(bucket.server, "items"), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, [0, 4])) == [8, 8]
    rows = contents(db)
    assert len(rows) == 12
    assert {row["price"] for row in rows} == {0, 4}


@pytest.mark.parametrize("table", ["about", "items"])
def test_two_that_create_a_database_at_once(
    table: str, bucket: Bucket, model: Path, embedder: Embedder, images: Path
) -> None:
    db = f"{bucket.uri}/db"

    def write(file: Path) -> int:
        with SearchIndex.create(db, model, embedder=embedder, device=FP32) as index:
            return index.add([NewItem(file, "hats")]).written

    with meeting(bucket.server, table), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, sorted(images.glob("hats/*/*.png"))[:2])) == [1, 1]
    assert len(contents(db)) == 2


def test_of_two_models_at_once_one_is_refused(bucket: Bucket, model: Path, tmp_path: Path) -> None:
    db, other = f"{bucket.uri}/db", make_model(tmp_path / "other", seed=1)

    def create(folder: Path) -> str:
        try:
            SearchIndex.create(db, folder).close()
        except ModelMismatchError:
            return "refused"
        return "created"

    with meeting(bucket.server, "about"), ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(create, [model, other])) == ["created", "refused"]


def test_deleting_and_compacting_while_another_writes(
    bucket: Bucket, model: Path, embedder: Embedder, images: Path
) -> None:
    db = f"{bucket.uri}/db"
    files = sorted(images.glob("*/*/*.png"))
    with SearchIndex.create(db, model, embedder=embedder, device=FP32) as index:
        for start in (0, 4, 8):
            index.add([NewItem(file, file.parts[-3]) for file in files[start : start + 4]])
        with SearchIndex.open(db, embedder=embedder, device=FP32) as other:
            with meeting(bucket.server, "items"), ThreadPoolExecutor(2) as pool:
                added = pool.submit(other.add, [NewItem(file, "shoes") for file in files[12:]])
                deleted = pool.submit(index.delete, path=files[0].parent)
                assert (added.result().written, deleted.result()) == (12, 4)
            with meeting(bucket.server, "items"), ThreadPoolExecutor(2) as pool:
                added = pool.submit(other.add, [NewItem(files[0], "hats")])
                pool.submit(index.optimise).result()
                assert added.result().written == 1
    assert {row["path"] for row in contents(db)} == {str(file) for file in [files[0], *files[4:]]}


def test_serve(bucket: Bucket, model: Path, images: Path) -> None:
    """The service in a process of its own: searches and additions, while the storage fails now and then."""
    db = f"{bucket.uri}/db"
    assert unimetric("index", model, images / "hats", "--db", db, *CPU) == 0
    bucket.server.fault = some(0.1, 0, "503", "500", "lost answer")
    with served(db) as client:
        picture = sorted(images.glob("shoes/*/*.png"))[0].read_bytes()
        for number in range(2):
            form = {"dataset": "new", "path": str(number), "label": "x"}
            answer = client.post("/v1/items", files={"image": picture}, data=form)
            assert answer.status_code == 201, answer.text
        answer = client.post("/v1/search", files={"image": picture}, data={"k": "3"}).json()["matches"]
        assert [match["dataset"] for match in answer] == ["new", "new", "hats"]
        assert client.delete(f"/v1/items/{answer[0]['id']}").status_code == 204
        assert client.get("/v1/datasets").json()["items"] == 13
    bucket.server.reset()
    assert len(contents(db)) == 13
