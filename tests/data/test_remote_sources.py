"""Sources in object storage: folders and manifests at ``s3://``, and manifests on the disk that name such images."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from s3_server import Bucket, bucket, s3_server, some
from toy_runs import assert_same_run, make_images, one_thread, options_file, read_json, unimetric
from unimetric.data.sources import read_source, read_source_metadata
from unimetric.data.sources.remote import uri_of
from unimetric.errors import UserError
from unimetric.search import SearchIndex

__all__ = ["bucket", "one_thread", "s3_server"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(source: str) -> dict[str | None, str]:
    return {uri_of(item.path): f"{item.dataset}/{item.label}" for d in read_source(source) for item in d.items}


def test_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    uri = bucket.upload(make_images(tmp_path / "im", classes=2, images=2), "birds")
    expected = {f"{uri}/c{c}/{n}.png": f"birds/c{c}" for c in range(2) for n in range(2)}
    assert names(uri) == expected
    assert names(f"mine={uri}/") == {key: value.replace("birds", "mine") for key, value in expected.items()}
    reads = [request for request in bucket.server.requests if request.path.endswith(".png")]
    assert len([request for request in reads if request.method == "GET"]) == 4, "each object is copied once"


def test_what_changes_is_copied_again_and_what_is_deleted_is_gone(bucket: Bucket, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "im", classes=2, images=2)
    uri = bucket.upload(folder, "birds")
    (first, *_) = read_source(uri)[0].items
    other = (folder / "c1/1.png").read_bytes() + b"\0"
    bucket.put("birds/c0/0.png", other)
    bucket.client.delete_object(Bucket=bucket.name, Key="birds/c1/0.png")
    assert sorted(names(uri)) == [f"{uri}/c0/0.png", f"{uri}/c0/1.png", f"{uri}/c1/1.png"]
    assert first.path.read_bytes() == other


def test_manifests(bucket: Bucket, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "im", classes=2, images=2)
    uri = bucket.upload(folder, "birds")
    rows = ["path,label,price,x,y,width,height", "birds/c0/0.png,a,1,,,,", f"{uri}/c1/0.png,b,2,1,2,9,8"]
    text = "\n".join([*rows, f"{folder}/c1/1.png,b,3,,,,"]) + "\n"
    remote = bucket.put("all.csv", text.encode())
    (tmp_path / "all.csv").write_text("\n".join([rows[0], rows[2]]) + "\n")
    assert names(str(tmp_path / "all.csv")) == {f"{uri}/c1/0.png#xywh=1,2,9,8": "all/b"}
    assert names(remote) == {f"{uri}/c0/0.png": "all/a", f"{uri}/c1/0.png#xywh=1,2,9,8": "all/b", None: "all/b"}
    assert [cells["price"] for cells in read_source_metadata(remote).cells.values()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{uri}/none", "there is no object below {uri}/none"),
        ("{uri}/none.csv", "there is no object {uri}/none.csv"),
        ("{uri}/bad.csv", "names 1 missing images (2 in all): {uri}/gone.png; check the names of these objects"),
        ("LOCAL", "names 1 missing images (1 in all): {uri}/gone.png; check the names of these objects"),
        ("{uri}/odd", "cannot copy {uri}/odd/../../x.png"),
    ],
)
def test_what_is_missing(source: str, words: str, bucket: Bucket, tmp_path: Path) -> None:
    picture = next(make_images(tmp_path / "im", classes=1, images=1).rglob("*.png")).read_bytes()
    bucket.put("here.png", picture)
    bucket.put("bad.csv", b"path,label\nhere.png,a\ngone.png,a\n")
    if "odd" in source:
        bucket.put("odd/../../x.png", picture)
    (tmp_path / "local.csv").write_text(f"path,label\n{bucket.uri}/gone.png,a\n")
    with pytest.raises(UserError) as error:
        read_source(source.format(uri=bucket.uri).replace("LOCAL", str(tmp_path / "local.csv")))
    assert words.format(uri=bucket.uri) in str(error.value)


def test_train_evaluate_embed_and_index(bucket: Bucket, tmp_path: Path) -> None:
    """The run on ``s3://`` images, some answers failing, is that on the same local ones to the bit."""
    folder = make_images(tmp_path / "im", classes=8, images=5)
    uri = bucket.upload(folder, "im")
    files = sorted(folder.rglob("*.png"))
    for name, root in (("remote", uri), ("local", str(folder))):
        rows = [f"{root}/{file.relative_to(folder)},{file.parent.name},birds" for file in files]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,dataset", *rows]) + "\n")
    options = options_file(tmp_path / "options.yaml", training={"steps": 4})
    bucket.server.fault = some(0.1, 0, "503", "500", "half download")
    for name in ("remote", "local"):
        out = tmp_path / f"run-{name}"
        assert unimetric("train", tmp_path / f"{name}.csv", "--out", out, "--config", options) == 0
    assert bucket.server.hurt.total() > 0
    bucket.server.reset()
    remote, local = tmp_path / "run-remote", tmp_path / "run-local"
    assert_same_run(remote, local)

    cpu = ("--device.accelerator", "cpu", "--device.precision", "fp32")
    assert unimetric("evaluate", remote, uri, "--out", tmp_path / "ev", *cpu) == 0
    assert "unified" in read_json(tmp_path / "ev/metrics.json")
    assert unimetric("embed", remote, uri, "--out", tmp_path / "v.parquet", *cpu) == 0
    assert sorted(pq.read_table(tmp_path / "v.parquet")["path"].to_pylist()) == [
        f"{uri}/{file.relative_to(folder)}" for file in files
    ]
    assert unimetric("index", remote, uri, "--db", f"{bucket.uri}/db", *cpu) == 0
    assert unimetric("index", remote, "--vectors", _shards(bucket, remote, uri), "--db", f"{bucket.uri}/db") == 0
    with SearchIndex.open(f"{bucket.uri}/db") as index:
        assert index.datasets() == {"im": 40}
    assert unimetric("prepare", uri, "--out", tmp_path / "prepared", "--side", 40) == 0


def _shards(bucket: Bucket, model: Path, uri: str) -> str:
    """Shards of the same images; importing them finds the rows that are there."""
    out = f"{bucket.uri}/vectors"
    assert unimetric("embed", model, uri, "--out", out, "--shard", "1/1", "--device.precision", "fp32") == 0
    return out
