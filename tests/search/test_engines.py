"""One battery over both engines, LanceDB and Milvus, and the differences that are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from condition_oracle import KINDS, Written, conditions
from hypothesis import HealthCheck, given, settings
from search_toys import FP32, make_model, new_picture, store, thresholds
from test_conditions import ROWS, WORST, expected, selected
from test_index_killed import start, written
from test_object_storage import served
from test_search_filters import test_no_condition_leaves_the_dataset as no_condition_leaves_the_dataset

from toy_runs import make_images, unimetric
from unimetric.data.sources.metadata import Value
from unimetric.errors import UserError
from unimetric.models.embedder import Embedder
from unimetric.search import ItemNotFoundError, NewItem, SearchIndex
from unimetric.search.errors import DatabaseError, DatabaseMissingError, ModelMismatchError, UnsupportedError
from unimetric.search.stores import open_store
from unimetric.search.stores.base import KINDS as TYPES

CPU = ("--device.accelerator", "cpu", "--device.precision", "fp32")
REASON = "pip install 'unimetric[milvus]'"


def place(engine: str, folder: Path) -> str:
    if engine == "milvus":
        pytest.importorskip("pymilvus", reason=REASON)
        pytest.importorskip("milvus_lite", reason=REASON)
        return f"milvus:{folder / 'all.db'}/shop"
    return str(folder / "db")


@pytest.fixture(params=["lancedb", "milvus"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a database that is not there yet."""
    return place(request.param, tmp_path)


@pytest.fixture(scope="module", params=["lancedb", "milvus"])
def shop(
    request: pytest.FixtureRequest, images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SearchIndex]:
    """Hats and shoes with prices and thresholds, made by the command; only to be read."""
    root = tmp_path_factory.mktemp("shop")
    lines = ["path,label,dataset,price,colour,in stock"]
    for number, path in enumerate(sorted(images.glob("*/*/*.png"))):
        price = "" if number == 5 else f"{number * 1.5}"
        lines.append(f"{path},{path.parent.name},{path.parts[-3]},{price},{'red' if number % 2 else ''},{number < 12}")
    (root / "all.csv").write_text("\n".join(lines) + "\n")
    (root / "metrics.json").write_text(json.dumps({"thresholds": thresholds()}))
    where = place(request.param, root)
    assert unimetric("index", model, root / "all.csv", "--db", where, "--metrics", root, "--commit_rows", 5, *CPU) == 0
    with SearchIndex.open(where, device=FP32) as index:
        yield index


def test_answers_are_those_of_a_matrix_product(shop: SearchIndex, images: Path, embedder: Embedder) -> None:
    paths = sorted(images.glob("*/*/*.png"))
    vectors = embedder.encode(paths, precision="fp32").astype(np.float64)
    for row, found in enumerate(shop.search(paths, 5)):
        cosines = vectors @ vectors[row]
        assert [match.score for match in found] == pytest.approx(sorted(cosines, reverse=True)[:5], abs=1e-6)
        assert found[0].path == str(paths[row])
        assert [match.is_match for match in found] == [match.score >= 0.5 for match in found]
        assert found[0].confidence == 0.95
    assert [match.id for match in shop.search_item(found[0].id, 3)] == [match.id for match in found[1:4]]


def test_items_counts_and_thumbnails(shop: SearchIndex, images: Path) -> None:
    assert shop.datasets() == {"hats": 12, "shoes": 12}
    assert (shop.count(), shop.count("hats")) == (24, 12)
    assert shop.metadata_columns == {"colour": "text", "in stock": "boolean", "price": "number"}
    assert shop.threshold_of(["hats"]) is None, "no rate was chosen"
    items = {item.path: item for item in shop.sample(24)}
    path = str(sorted(images.glob("*/*/*.png"))[5])
    assert items[path].metadata == {"price": None, "colour": "red", "in stock": True}
    assert shop.thumbnail(items[path].id)[:3] == b"\xff\xd8\xff"
    for use in (shop.item, shop.thumbnail, shop.search_item):
        with pytest.raises(ItemNotFoundError):
            use('x" or id != "\'')


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("price < 3", {0, 1}),
        ("3 > price", {0, 1}),
        ("price IS NULL", {5}),
        ("NOT (price < 30)", {20, 21, 22, 23}),
        ("colour = 'red' AND price < 6", {1, 3}),
        ("colour != 'red'", set()),
        ("colour IS NULL AND `in stock` = true", {0, 2, 4, 6, 8, 10}),
        ("price IN (0, 1.5, 99)", {0, 1}),
        ("price NOT IN (0, 1.5) AND label = 'c0' AND dataset = 'hats'", {2, 3}),
        ("colour LIKE 'r%' AND label LIKE '_2'", {9, 11, 21, 23}),
        ("price BETWEEN 3 AND 6 OR label = 'nothing'", {2, 3, 4}),
        ("true", set(range(24))),
        ("false", set()),
    ],
)
def test_conditions(where: str, rows: set[int], shop: SearchIndex, images: Path) -> None:
    paths = [str(path) for path in sorted(images.glob("*/*/*.png"))]
    (found,) = shop.search_vectors(np.ones(16, np.float32), 100, where=where)
    assert {paths.index(match.path) for match in found} == rows
    assert {match.dataset for match in shop.search_vectors(np.ones(16, np.float32), datasets=["hats"])[0]} == {"hats"}


def test_no_condition_leaves_the_dataset(shop: SearchIndex) -> None:
    no_condition_leaves_the_dataset(index=shop)


@pytest.fixture(scope="module")
def odd(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SearchIndex]:
    """The rows of the test of conditions, in Milvus."""
    with SearchIndex.create(place("milvus", tmp_path_factory.mktemp("odd")), model) as index:
        count = len(ROWS)
        texts = {name: [f"{name}{row:06}" for row in range(count)] for name in ("id", "path", "content_hash")}
        columns = {**texts, "dataset": ["d"] * count, "fingerprint": ["f"] * count}
        columns["label"] = [row["label"] for row in ROWS]
        vectors = np.random.default_rng(0).normal(size=count * 16).astype(np.float32)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), 16)
        columns["thumbnail"] = pa.nulls(count, pa.binary())
        for name, kind in KINDS.items():
            columns[name] = pa.array([row[name] for row in ROWS], TYPES[kind])
        store(index).merge(pa.table(columns))
        yield index


def test_milvus_agrees_with_a_plain_evaluation_or_refuses(odd: SearchIndex) -> None:
    answered = []

    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(conditions())
    def compare(written: Written) -> None:
        try:
            found = selected(odd, written.text)
        except UnsupportedError as error:
            assert str(error).startswith("Milvus ")
            return
        answered.append(written.text)
        assert found == expected(written), written.text

    compare()
    assert len(answered) > 20


COMPUTED = ("sum", "quotient", "choice", "signs", "terms", "quotients", "between", "pattern")


@pytest.mark.parametrize("name", COMPUTED)
def test_what_milvus_cannot_compute_is_one_line(name: str, odd: SearchIndex) -> None:
    with pytest.raises(UnsupportedError, match=r"^Milvus .*: [a-z].*$"):
        selected(odd, WORST[name])


@pytest.mark.parametrize("name", sorted(set(WORST) - set(COMPUTED)))
def test_the_largest_conditions_reach_milvus(name: str, odd: SearchIndex) -> None:
    assert selected(odd, WORST[name]) is not None


def test_add_update_and_delete(db: str, model: Path, embedder: Embedder, images: Path, tmp_path: Path) -> None:
    paths = sorted(images.glob("hats/*/*.png"))
    texts = 'it\'s "a" `b` \\ %_ größe 日本 \n'
    first: dict[str, Value] = {"n": 2, "made": date(2020, 2, 29), "at": datetime(2020, 1, 1, 12, 30, 0, 7), "on": True}
    with SearchIndex.create(db, model, embedder=embedder, device=FP32) as index:
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG")
        items = [NewItem(path, "all", "l", metadata=first) for path in paths[:3]]
        added = index.add([*items, NewItem(broken, "all"), NewItem(paths[3], texts, texts, metadata={"größe": texts})])
        assert (added.written, len(added.refused)) == (4, 1)
        assert index.metadata_columns == {"n": "number", "made": "date", "at": "time", "on": "boolean", "größe": "text"}
        assert index.item(str(added.ids[0])).metadata == {**first, "größe": None}
        assert index.item(str(added.ids[4])).metadata == {**dict.fromkeys(first), "größe": texts}
        assert (index.item(str(added.ids[4])).label, index.count(texts)) == (texts, 1)
        again = index.add([*items[1:], NewItem(paths[0], "all", "new", metadata={**first, "n": 3})])
        assert (again.written, again.unchanged) == (1, 2)
        assert (index.item(str(added.ids[0])).label, index.item(str(added.ids[0])).metadata["n"]) == ("new", 3)
        with pytest.raises(UserError, match="a text, but number in the database"):
            index.add([NewItem(paths[5], "all", metadata={"n": "two"})])
        assert index.delete(path=paths[1], dataset=texts) == 0
        assert index.delete(path=paths[1]) == 1
        assert index.delete(ids=[str(added.ids[2]), "unknown"]) == 1
        assert index.delete(dataset=texts) == 1
        assert index.datasets() == {"all": 1}
    with SearchIndex.open(db, embedder=embedder, device=FP32) as index:
        assert [match.path for match in index.search(paths[0])[0]] == [str(paths[0])]


def test_paths_are_deleted_by_name_not_by_pattern(db: str, model: Path, embedder: Embedder, tmp_path: Path) -> None:
    folders = ["a_b", "axb", "a_bc", "a%b", "a_b/c"]
    pictures = [new_picture(tmp_path / "im" / folder / "1.png") for folder in folders]
    with SearchIndex.create(db, model, embedder=embedder, device=FP32) as index:
        index.add([NewItem(picture, "d") for picture in pictures])
        assert index.delete(path=tmp_path / "im/a_b") == 2
        assert index.delete(path=tmp_path / "im/a%b") == 1
        assert index.count() == 2


def test_one_model_a_database(db: str, model: Path, tmp_path: Path) -> None:
    SearchIndex.create(db, model).close()
    SearchIndex.create(db, model).close()
    with pytest.raises(ModelMismatchError, match="another model"):
        SearchIndex.create(db, make_model(tmp_path / "other", seed=1))
    with SearchIndex.open(db) as index:
        assert index.count() == 0
        assert index.search_vectors(np.ones(16, np.float32))[0] == []
    with pytest.raises(DatabaseError, match="was closed"):
        index.count()


def test_milvus_killed_while_writing(model: Path, tmp_path: Path) -> None:
    """Rows reported as written are there, none twice, and a repetition completes them; LanceDB has its own test."""
    images, log, db = make_images(tmp_path / "images", classes=4, images=5), tmp_path / "log", place("milvus", tmp_path)
    process = start(model, images, db, log)
    while process.is_alive() and written(log) < 8:
        time.sleep(0.001)
    process.kill()
    process.join()
    opened = open_store(db)
    ids = opened.rows(["id"])["id"].to_pylist()
    opened.close()
    assert len(set(ids)) == len(ids) >= written(log) >= 8
    assert unimetric("index", model, images, "--db", db, *CPU) == 0
    with SearchIndex.open(db) as index:
        assert index.count() == 20


def test_an_approximate_index(db: str, model: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    with SearchIndex.create(db, model) as index:
        count = len(vectors)
        names = ["id", "dataset", "label", "path", "content_hash", "fingerprint"]
        columns = {name: [f"{name}{row:06}" for row in range(count)] for name in names}
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 16)
        columns["thumbnail"] = pa.nulls(count, pa.binary())
        store(index).merge(pa.table(columns))
        exact = index.search_vectors(vectors[:20], 10)
        assert index.build_index("hnsw") == "hnsw"
        assert index.search_vectors(vectors[:20], 10, exact=True) == exact
        found = index.search_vectors(vectors[:20], 10)
        shared = [len({m.id for m in a} & {m.id for m in b}) for a, b in zip(found, exact, strict=True)]
        assert np.mean(shared) >= 9.8
        assert [row[0].id for row in found] == [row[0].id for row in exact]
        assert index.build_index("none") == "none"
        assert index.search_vectors(vectors[:20], 10) == exact


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("search", "milvus:x/y", "p.png"), "is not a place in Milvus: write milvus://HOST:PORT/NAME"),
        (("search", "milvus://localhost/y", "p.png"), "is not a place in Milvus"),
        (("search", "milvus:x.db/a-b", "p.png"), "is not a place in Milvus"),
        (("search", "milvus://127.0.0.1:9/y", "p.png"), "cannot reach the search database milvus://127.0.0.1:9/y"),
        (("search", "milvus:{tmp}/none.db/y", "p.png"), "there is no search database milvus:{tmp}/none.db/y"),
        (
            ("index", "--db", "{db}", "--build_index", "ivf-pq"),
            "index of kind 'ivf-pq': this database supports hnsw only",
        ),
        (("index", "{model}", "{images}", "--db", "{db}", "--vector_type", "int8"), "not of int8: leave it out"),
        (("upgrade", "{db}", "--model", "{model}"), "Milvus holds one model's vectors a name"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    words: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    db = place("milvus", tmp_path)
    if "{db}" in arguments and "int8" not in arguments:
        SearchIndex.create(db, model).close()
    assert unimetric(*(argument.format(tmp=tmp_path, db=db, model=model, images=images) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert words.format(tmp=tmp_path) in said
    assert "Traceback" not in said


def test_a_local_milvus_file_is_for_one_process(model: Path, tmp_path: Path, images: Path) -> None:
    db, log = place("milvus", tmp_path), tmp_path / "log"
    with SearchIndex.create(db, model):
        process = start(model, images, db, log)
        process.join()
    assert process.exitcode == 2
    assert "another process has it open" in log.read_text()
    with pytest.raises(DatabaseMissingError):
        SearchIndex.open(db.replace("/shop", "/other"))


def test_texts_beyond_what_milvus_holds_are_refused(model: Path, tmp_path: Path, images: Path) -> None:
    with SearchIndex.create(place("milvus", tmp_path), model, device=FP32) as index:
        picture = next(images.rglob("*.png"))
        for item in (NewItem(picture, "d", "x" * 70_000), NewItem(picture, "d", metadata={"text": "ü" * 40_000})):
            with pytest.raises(UserError, match="longer than the 65,535 bytes that Milvus holds"):
                index.add([item])
        assert index.count() == 0


def test_serve_from_milvus(model: Path, images: Path, tmp_path: Path) -> None:
    db = place("milvus", tmp_path)
    assert unimetric("index", model, images / "hats", "--db", db, *CPU) == 0
    with served(db) as client:
        picture = sorted(images.glob("shoes/*/*.png"))[0].read_bytes()
        form = {"dataset": "new", "label": "x", "path": "1", "metadata": '{"price": 3}'}
        assert client.post("/v1/items", files={"image": picture}, data=form).status_code == 201
        answer = client.post("/v1/search", files={"image": picture}, data={"k": "2", "where": "price < 4"})
        assert [match["dataset"] for match in answer.json()["matches"]] == ["new"]
        answer = client.post("/v1/search", files={"image": picture}, data={"where": "price + 1 < 4"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unsupported")
        assert client.get("/v1/datasets").json()["items"] == 13
