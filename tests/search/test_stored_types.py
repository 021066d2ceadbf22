"""Databases of float16, int8 and one-bit vectors: answers, rows, thresholds, and what happens to them."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from search_toys import FP32, make_model, store

from toy_runs import unimetric
from unimetric.errors import UserError
from unimetric.formats.stored_types import STORED_TYPES, decode_vectors, encode_vectors, stored_bytes
from unimetric.geometry import PoincareBall
from unimetric.search import SearchIndex
from unimetric.search.stores import open_store

CODED = [name for name in STORED_TYPES if name != "float32"]


def units(rows: int, seed: int = 0, width: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def table(vectors: np.ndarray, first: int = 0) -> pa.Table:
    rows = [f"{first + row:06}" for row in range(len(vectors))]
    texts = {name: [name + row for row in rows] for name in ("label", "path", "content_hash", "fingerprint")}
    return pa.table(
        {
            "id": rows,
            "dataset": ["even" if int(row) % 2 == 0 else "odd" for row in rows],
            **texts,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            "thumbnail": pa.nulls(len(rows), pa.binary()),
            "price": [float(row) for row in rows],
        }
    )


def made(db: Path, model: Path, kind: str, vectors: np.ndarray) -> SearchIndex:
    index = SearchIndex.create(db, model, vector_type=kind)
    for start in range(0, len(vectors), 150):
        store(index).merge(table(vectors[start : start + 150], start))
    return index


def stored(kind: str, vectors: np.ndarray) -> np.ndarray:
    """Return the vectors as a database of that type gives them back: for bits the int8 copy."""
    kind = "int8" if kind == "bit" else kind
    return decode_vectors(kind, encode_vectors(kind, vectors), vectors.shape[1])


def cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1)


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_answers_are_the_nearest_stored_vectors_with_their_cosines(kind: str, model: Path, tmp_path: Path) -> None:
    vectors, queries = units(400), units(20, seed=1)
    rows = stored(kind, vectors)
    with made(tmp_path / "db", model, kind, vectors) as index:
        for where, allowed in ((None, np.ones(400, bool)), ("price < 100", np.arange(400) < 100)):
            answers = index.search_vectors(queries, 10, where=where)
            for query, matches in zip(queries, answers, strict=True):
                scores = np.where(allowed, cosines(query, rows), -2)
                best = sorted(range(400), key=lambda row: (-scores[row], row))[:10]
                assert [int(match.id) for match in matches] == best
                np.testing.assert_allclose([match.score for match in matches], scores[best], atol=1e-6)
        only = index.search_vectors(queries, 5, datasets=["odd"])
        assert {match.dataset for matches in only for match in matches} == {"odd"}


def test_bits_find_the_nearest_int8_copies(model: Path, tmp_path: Path) -> None:
    vectors, queries = units(300), units(50, seed=1)
    rows = stored("bit", vectors)
    with made(tmp_path / "db", model, "bit", vectors) as index:
        found = 0
        for query, matches in zip(queries, index.search_vectors(queries, 5), strict=True):
            scores = cosines(query, rows)
            assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
            for match in matches:
                assert match.score == pytest.approx(scores[int(match.id)], abs=1e-6)
            found += len({int(match.id) for match in matches} & set(np.argsort(-scores)[:5].tolist()))
        # 16 bits are few; a full scan of the same candidates would find all of them.
        assert found / 250 > 0.9
        everything = index.search_vectors(queries[:3], 300)
        for query, matches in zip(queries[:3], everything, strict=True):
            assert [int(match.id) for match in matches] == np.argsort(-cosines(query, rows), kind="stable").tolist()


def array_bytes() -> int:
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


@pytest.mark.parametrize("kind", STORED_TYPES)
def test_a_closed_database_has_no_rows_in_memory(kind: str, model: Path, tmp_path: Path) -> None:
    vectors = units(5000)
    with SearchIndex.create(tmp_path / "db", model, vector_type=kind) as writer:
        store(writer).merge(table(vectors))
    gc.disable()  # which may run seldom, and so must not be needed
    tracemalloc.start()
    try:
        index = SearchIndex.open(tmp_path / "db")
        before = array_bytes()
        index.prepare()
        index.search_vectors(vectors[:2], 5, where="price < 100")
        assert array_bytes() - before > 20_000
        index.close()
        assert array_bytes() - before < 5_000
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("kind", STORED_TYPES)
def test_changes_are_seen_and_rows_come_back_as_they_were(kind: str, model: Path, tmp_path: Path) -> None:
    vectors = units(120)
    with made(tmp_path / "db", model, kind, vectors) as index:
        assert index.search_vectors(vectors[7], 1)[0][0].id == "000007"
        assert index.search_item("000007", 3)[0].id != "000007"
        index.delete(ids=["000007"])
        assert index.search_vectors(vectors[7], 1)[0][0].id != "000007"
        store(index).merge(table(vectors[7:8], 7))
        (match,) = index.search_vectors(vectors[7], 1)[0]
        assert match.id == "000007"
        assert match.score == pytest.approx(1, abs=1e-3)
        before = store(index).rows(["id", "vector"])
        # Written again, as where only a label has changed.
        names = [name for name in store(index).column_names if name != "price"]
        again = store(index).rows(names)
        store(index).merge(again)
        index.optimise()
        after = store(index).rows(["id", "vector"])
        assert before.sort_by("id").equals(after.sort_by("id"))
        assert "_bits" not in {*store(index).column_names, *index.metadata_columns}
        assert index.count() == 120


@pytest.mark.parametrize("kind", STORED_TYPES)
def test_bytes_on_the_disk_and_the_record(kind: str, model: Path, tmp_path: Path) -> None:
    made(tmp_path / "db", model, kind, units(10)).close()
    assert open_store(tmp_path / "db").about["vector_type"] == kind
    import lancedb

    schema = lancedb.connect(tmp_path / "db").open_table("items").schema
    width = {name: schema.field(name).type for name in ("vector", "_bits") if name in schema.names}
    sizes = [kind.list_size * kind.value_type.bit_width // 8 for kind in width.values()]
    copy = [stored_bytes("int8", 16)] if kind == "bit" else []
    assert sizes == [*copy, stored_bytes(kind, 16)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CODED)
def test_scores_are_near_enough_for_the_thresholds(kind: str, model: Path, tmp_path: Path) -> None:
    """A threshold of float32 scores keeps its rate of false matches: the score of a best answer moves by little."""
    vectors, queries = units(300), units(200, seed=2)
    exact = np.sort(queries @ vectors.T, axis=1)[:, -1]
    with made(tmp_path / "db", model, kind, vectors) as index:
        found = np.array([matches[0].score for matches in index.search_vectors(queries, 1)])
    # 16 bits are few, and miss some of the best answers.
    assert np.quantile(np.abs(found - exact), 0.9 if kind == "bit" else 1) < 0.02
    assert (found - exact).max() < 0.02
    threshold = np.quantile(exact, 0.9)
    assert abs((found >= threshold).mean() - 0.1) <= 0.02


@pytest.mark.parametrize("kind", CODED)
def test_the_command(kind: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db, first = tmp_path / "db", next(images.glob("*/*/*.png"))
    cpu = ("--device.accelerator", "cpu", "--device.precision", "fp32")
    assert unimetric("index", model, images, "--db", db, "--vector_type", kind, *cpu) == 0
    assert unimetric("index", model, images, "--db", db, *cpu) == 0
    assert "0 rows written, 24 unchanged" in capsys.readouterr().err
    assert unimetric("search", db, first, "--json", "-k", "3", *cpu) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["matches"][0]["path"] == str(first)
    other = "float32"
    assert unimetric("index", model, images, "--db", db, "--vector_type", other, *cpu) == 2
    assert f"--vector_type is {other}: {db} holds vectors of {kind}" in capsys.readouterr().err
    assert unimetric("index", "--db", db, "--build_index", "ivf-pq") == 2
    assert "always searched exactly" in capsys.readouterr().err


def test_a_label_that_changes_keeps_the_vector(model: Path, own: Path, tmp_path: Path) -> None:
    lines = [f"{path},{path.parent.name},hats" for path in sorted(own.glob("hats/*/*.png"))]
    manifest = tmp_path / "all.csv"

    def index(text: list[str]) -> list[Any]:
        from unimetric.commands.index import RowOptions, index_sources

        manifest.write_text("\n".join(["path,label,dataset", *text]) + "\n")
        index_sources(model, [str(manifest)], str(tmp_path / "db"), rows=RowOptions(vector_type="bit"), device=FP32)
        rows = open_store(tmp_path / "db").rows(["path", "label", "vector"]).sort_by("path")
        return [rows["label"].to_pylist(), rows["vector"].to_pylist()]

    before = index(lines)
    after = index([line.replace(",c0,", ",new,") for line in lines])
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_database_without_rows(model: Path, tmp_path: Path) -> None:
    for kind in CODED:
        with SearchIndex.create(tmp_path / kind, model, vector_type=kind) as index:
            assert index.search_vectors(units(2), 3) == [[], []]


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--vector_type is 'int4'"):
        SearchIndex.create(tmp_path / "db", model, vector_type="int4")
    ball = make_model(tmp_path / "ball", geometry=PoincareBall())
    with pytest.raises(UserError, match="hyperbolic model"):
        SearchIndex.create(tmp_path / "db", ball, vector_type="int8")
