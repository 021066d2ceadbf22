"""An image has the same vector, to the bit, by every way: in Python, in files, in an index and served."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from serving import start_server
from toy_runs import make_images, unimetric
from unimetric.formats.vectors import read_measured
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.stores import open_store


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_way_gives_the_vector_of_the_image_alone(
    precision: str, toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", classes=3, images=4)
    paths = sorted(images.glob("*/*.png"))
    cpu = ("--device.accelerator", "cpu", "--device.precision", precision)
    embedder = Embedder.from_pretrained(toy_run)
    alone = {str(path): embedder.encode(path, precision=precision)[0] for path in paths}

    def check(way: str, found: dict[str, np.ndarray]) -> None:
        assert found.keys() == alone.keys(), way
        for path, vector in found.items():
            np.testing.assert_array_equal(np.asarray(vector, np.float32), alone[path], f"{way}: {path}")

    check("encode", dict(zip(alone, embedder.encode(paths, batch_size=5, precision=precision), strict=True)))

    assert unimetric("embed", toy_run, images, "--out", tmp_path / "all.parquet", "--batch_size", 7, *cpu) == 0
    assert unimetric("embed", toy_run, images, "--out", tmp_path / "shards", "--shard", "1/1", *cpu) == 0
    for file in (tmp_path / "all.parquet", tmp_path / "shards/part-000000.parquet"):
        table = pq.read_table(file)
        resolved = [str((Path.cwd() / path).resolve()) for path in table["path"].to_pylist()]
        check(file.name, dict(zip(resolved, table["vector"].to_pylist(), strict=True)))

    test_only = ("--data.split", "test-only", "--out", tmp_path / "measured")
    assert unimetric("evaluate", toy_run, images, *test_only, "--evaluation.batch_size", 3, *cpu) == 0
    measured = read_measured(tmp_path / "measured/vectors.parquet")
    check("evaluate", {str(i.path): v for i, v in zip(measured.query, measured.query_vectors, strict=True)})

    db = tmp_path / "db"
    assert unimetric("index", toy_run, images, "--db", db, "--batch_size", 4, *cpu) == 0
    rows = open_store(db).rows(["path", "vector"])
    check("index", dict(zip(rows["path"].to_pylist(), rows["vector"].to_pylist(), strict=True)))

    capsys.readouterr()
    assert unimetric("search", db, *paths, "--json", "-k", 1, "--engine", "torch", *cpu) == 0
    answers = json.loads(capsys.readouterr().out)
    # The own copy scores exactly 1 where the vectors are the same to the bit.
    assert [answer["matches"][0]["score"] for answer in answers] == [1.0] * len(paths)
    with SearchIndex.open(db, embedder=embedder) as index:
        scores = [matches[0].score for matches in index.search_vectors(np.stack(list(alone.values())), 1)]
    assert scores == [1.0] * len(paths)

    server = start_server(db, *cpu)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            served = {
                str(path): client.post("/v1/embed", files={"image": path.read_bytes()}).json()["embedding"]
                for path in paths
            }
        check("serve", served)
    finally:
        server.stop()
