"""`SearchIndex` against plain numpy, and what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from search_toys import FP32, FillIndex, dump, make_model, new_picture, recall, store

from unimetric.data.images import with_box
from unimetric.errors import UserError
from unimetric.geometry import PoincareBall
from unimetric.models.embedder import Embedder
from unimetric.search import DatabaseMissingError, ItemNotFoundError, NewItem, SearchIndex


def files(images: Path) -> list[Path]:
    return sorted(images.glob("*/*/*.png"))


def test_answers_are_those_of_a_matrix_product(index: SearchIndex, images: Path, embedder: Embedder) -> None:
    paths = files(images)
    vectors = embedder.encode(paths, precision="fp32")
    answers = index.search(paths, 5)
    for row, found in enumerate(answers):
        cosines = vectors @ vectors[row]
        assert [match.score for match in found] == pytest.approx(sorted(cosines, reverse=True)[:5], abs=1e-5)
        assert (found[0].path, found[0].score) == (str(paths[row]), pytest.approx(1, abs=1e-5))
        for match in found:
            assert match.score == pytest.approx(cosines[paths.index(Path(match.path))], abs=1e-5)
            assert (match.dataset, match.label) == (Path(match.path).parts[-3], Path(match.path).parent.name)


def test_one_image_of_any_kind(index: SearchIndex, images: Path) -> None:
    path = files(images)[3]
    for image in (path, str(path), Image.open(path), np.asarray(Image.open(path))):
        ((match,),) = index.search(image, 1)
        assert match.path == str(path)


def test_filters_by_dataset(index: SearchIndex) -> None:
    assert index.datasets() == {"hats": 12, "shoes": 12}
    (found,) = index.search_vectors(np.ones(16, np.float32), 100, datasets=["shoes"], where="price > 30")
    assert {(match.dataset, match.metadata["price"] > 30) for match in found} == {("shoes", True)}
    assert len(found) == 3
    with pytest.raises(UserError, match="unknown dataset 'shoe'; did you mean 'shoes'"):
        index.search_vectors(np.ones(16, np.float32), datasets=["shoe"])


def test_more_like_this_leaves_itself_out(index: SearchIndex) -> None:
    for item in index.sample(4, seed=1):
        like = index.search_item(item.id, 30)
        assert len(like) == 23
        assert item.id not in {match.id for match in like}
        assert [match.score for match in like] == sorted((match.score for match in like), reverse=True)
    with pytest.raises(ItemNotFoundError, match="no item"):
        index.search_item("x' OR '1'='1")


def test_items_and_thumbnails(index: SearchIndex, images: Path) -> None:
    assert index.count() == 24
    assert index.count("hats") == 12
    assert index.metadata_columns == {"price": "number", "colour": "text", "in stock": "boolean", "code": "text"}
    for match in index.search(files(images), 1):
        item = index.item(match[0].id)
        assert item.path == match[0].path
        number = files(images).index(Path(item.path))
        price = None if number == 5 else number * 1.5
        assert item.metadata["price"] == price
        assert item.metadata["code"] == f"{number:04}"
        with Image.open(io.BytesIO(index.thumbnail(item.id))) as thumbnail, Image.open(item.path) as original:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", original.size)
            assert not thumbnail.getexif()
    with pytest.raises(ItemNotFoundError):
        index.item("nothing")
    with pytest.raises(ItemNotFoundError):
        index.thumbnail("nothing")


def test_samples_are_the_same_for_a_seed(index: SearchIndex) -> None:
    first = index.sample(6, seed=4)
    assert first == index.sample(6, seed=4)
    assert len({item.id for item in first}) == 6
    assert first != index.sample(6, seed=5)
    assert len(index.sample(1000)) == 24


def test_equal_scores_come_by_id(fill: FillIndex, tmp_path: Path) -> None:
    with fill(tmp_path / "db", np.ones((9, 16))) as index:
        (found,) = index.search_vectors(np.ones(16, np.float32), 9)
        assert [match.id for match in found] == [f"id{row:06}" for row in range(9)]
        assert found[0].is_match is None
        assert (found[0].confidence, found[0].strength) == (None, "identical")


@pytest.mark.parametrize(
    ("vectors", "k", "words"),
    [
        (np.ones(15, np.float32), 5, "give floats"),
        (np.ones((1, 2, 16), np.float32), 5, "give floats"),
        (np.ones(16, int), 5, "give floats"),
        (np.full(16, np.nan, np.float32), 5, "not finite"),
        (np.zeros(16, np.float32), 5, "zero"),
        (np.ones(16, np.float32), 0, "k is 0"),
        (np.ones(16, np.float32), 1001, "k is 1001"),
        (np.ones(16, np.float32), True, "k is True"),
    ],
)
def test_refused_arguments(vectors: np.ndarray, k: int, words: str, index: SearchIndex) -> None:
    with pytest.raises(UserError, match=words):
        index.search_vectors(vectors, k)


def test_add_update_and_delete(own: Path, model: Path, embedder: Embedder, tmp_path: Path) -> None:
    db = tmp_path / "db"
    content = new_picture(tmp_path / "extra.png").read_bytes()
    with SearchIndex.create(db, model, embedder=embedder, device=FP32) as index:
        paths = files(own)
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG")
        items = [NewItem(path, "all", "l", metadata={"price": 2}) for path in paths[:3]]
        added = index.add([*items, NewItem(broken, "all"), NewItem(content, "bytes", path="https://x.org/é.jpg")])
        assert (added.written, added.unchanged) == (4, 0)
        (refused,) = added.refused
        assert refused.path == str(broken)
        assert refused.reason.startswith("damaged header")
        assert added.ids[3] is None
        assert index.item(added.ids[4]).path == "https://x.org/é.jpg"
        assert index.item(added.ids[0]).metadata == {"price": 2}
        assert index.item(added.ids[4]).metadata == {"price": None}

        again = index.add(items)
        assert (again.written, again.unchanged, again.ids) == (0, 3, added.ids[:3])
        unknown = NewItem(content, "bytes", path="https://x.org/é.jpg", metadata={"price": float("nan")})
        assert index.add([unknown]).unchanged == 1
        relabelled = index.add([NewItem(paths[0], "all", "new", metadata={"price": 2, "made": date(2020, 2, 29)})])
        assert (relabelled.written, relabelled.ids) == (1, added.ids[:1])
        assert index.item(added.ids[0]).label == "new"
        assert index.item(added.ids[0]).metadata["made"] == date(2020, 2, 29)
        before = {row["id"]: row["vector"] for row in dump(db)}
        expected = embedder.encode(paths[:1], precision="fp32")[0]
        np.testing.assert_allclose(np.array(before[added.ids[0]], np.float32), expected, atol=1e-5)
        new_picture(paths[1], (250, 0, 0))
        changed = index.add([NewItem(paths[1], "all", "l", metadata={"price": 2})])
        assert changed.ids == added.ids[1:2]
        assert {row["id"]: row["vector"] for row in dump(db)}[added.ids[1]] != before[added.ids[1]]

        assert index.count() == 4
        assert index.delete(ids=[added.ids[0], "unknown"]) == 1
        assert index.delete(dataset="bytes", path="https://x.org") == 1
        assert index.delete(path=own / "hats") == 2
        assert index.datasets() == {}
        assert index.search_vectors(np.ones((2, 16), np.float32)) == [[], []]
        with pytest.raises(UserError, match="nothing to delete"):
            index.delete()


def test_paths_are_deleted_by_name_not_by_pattern(
    fill: FillIndex, tmp_path: Path, own: Path, embedder: Embedder
) -> None:
    with fill(tmp_path / "db", np.ones((1, 16))) as index:
        index._embedder = embedder
        names = ["a_c", "abc", "a%c", "a"]
        for name in names:
            new_picture(own / name / "1.png")
        index.add([NewItem(own / name / "1.png", "x") for name in names])
        assert index.delete(path=own / "a_c") == 1
        assert index.delete(path=own / "a") == 1
        assert index.delete(path=own / "a%c" / "1.png") == 1
        assert index.datasets() == {"d": 1, "x": 1}


def test_a_picture_is_deleted_with_all_objects_in_it(
    fill: FillIndex, tmp_path: Path, own: Path, embedder: Embedder
) -> None:
    with fill(tmp_path / "db", np.ones((1, 16))) as index:
        index._embedder = embedder
        boxes = [(0, 0, 9, 9), (1, 1, 9, 9)]
        paths = [
            new_picture(own / name).with_name(with_box(name, box)) for name in ("p.png", "p.png.png") for box in boxes
        ]
        index.add([NewItem(path, "x") for path in (own / "p.png", *paths)])
        assert index.delete(path=paths[0]) == 1
        assert index.delete(path=own / "p.png") == 2
        assert index.datasets() == {"d": 1, "x": 2}


def test_links_lead_to_one_row(own: Path, model: Path, embedder: Embedder, tmp_path: Path) -> None:
    link = own / "link.png"
    link.symlink_to(files(own)[0])
    with SearchIndex.create(tmp_path / "db", model, embedder=embedder, device=FP32) as index:
        added = index.add([NewItem(files(own)[0], "d"), NewItem(link, "d"), NewItem(link, "e")])
        assert added.ids[0] == added.ids[1] != added.ids[2]
        assert index.datasets() == {"d": 1, "e": 1}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"price": "cheap"}, "holds 'cheap', a text, but number in the database"),
        ({"Price": 3}, "'Price' is called 'price' elsewhere"),
        ({"label": 3}, "taken by the database"),
        ({"_x": 3}, "taken by the database"),
        ({"a.b": 3}, "holds '.'"),
        ({'a"b': 3}, "rename it"),
        ({"": 3}, "empty"),
        ({"big": 2**60}, "write it as text"),
        ({"big": float("inf")}, "write it as text"),
        ({"list": [3]}, "holds a list"),
    ],
)
def test_metadata_that_does_not_fit(
    metadata: dict[str, object], words: str, model: Path, embedder: Embedder, own: Path, tmp_path: Path
) -> None:
    with SearchIndex.create(tmp_path / "db", model, embedder=embedder, device=FP32) as index:
        index.add([NewItem(files(own)[0], "d", metadata={"price": 1, "when": datetime(2020, 1, 1, 3), "zero": -0.0})])
        with pytest.raises(UserError) as caught:
            index.add([NewItem(files(own)[1], "d", metadata=metadata)])
        assert words in str(caught.value)
        assert index.count() == 1
        assert index.search(files(own)[0], where="zero = 0 AND price - 1 = zero")[0]
        assert index.search(files(own)[0], where="price = 1 AND `when` > timestamp '2019-01-01'")[0]


def test_a_hyperbolic_model_is_searched_exactly(fill: FillIndex, tmp_path: Path) -> None:
    ball = PoincareBall(curvature=1.0, clip=2.3)
    model = make_model(tmp_path / "model", geometry=ball)
    points = ball.embed(torch.randn(300, 16, generator=torch.Generator().manual_seed(0)))
    queries = ball.embed(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)))
    expected = ball.distances(queries.double(), points.double())
    with fill(tmp_path / "db", points.numpy(), ["odd", "even"] * 150, model=model) as index:
        for row, found in enumerate(index.search_vectors(queries.numpy(), 7, datasets=["odd"])):
            nearest = expected[row, ::2].sort()
            assert [match.score for match in found] == pytest.approx((-nearest.values[:7]).tolist(), rel=1e-5)
            assert [match.id for match in found] == [f"id{2 * place:06}" for place in nearest.indices[:7].tolist()]
        assert index.build_index() == "none"
        with pytest.raises(UserError, match="hyperbolic"):
            index.build_index("hnsw")


def test_many_threads_search_while_one_writes(index: SearchIndex, own: Path, model: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with SearchIndex.create(tmp_path / "db", model, embedder=index.embedder, device=FP32) as growing:
        growing.add([NewItem(path, "d") for path in files(own)[:4]])
        with ThreadPoolExecutor(6) as pool:
            searches = [pool.submit(growing.search_vectors, np.ones(16, np.float32), 50) for _ in range(40)]
            growing.add([NewItem(path, "d") for path in files(own)[4:8]])
            assert {len(search.result()[0]) for search in searches} <= {4, 8}
        assert len(growing.search_vectors(np.ones(16, np.float32), 50)[0]) == 8


@pytest.mark.usefixtures("readers_look_every_time")
def test_readers_see_what_another_writes(fill: FillIndex, tmp_path: Path) -> None:
    vector = np.ones(16, np.float32)
    with fill(tmp_path / "db", np.ones((3, 16))) as writer, SearchIndex.open(tmp_path / "db") as reader:
        for handle in (writer, reader):
            assert (len(handle.search_vectors(vector)[0]), handle.datasets()) == (3, {"d": 3})
        writer.delete(ids=["id000001"])
        for handle in (writer, reader):
            assert (len(handle.search_vectors(vector)[0]), handle.datasets(), handle.count()) == (2, {"d": 2}, 2)


@pytest.mark.usefixtures("readers_look_every_time")
def test_a_reader_learns_of_an_index_that_another_process_made(fill: FillIndex, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with fill(tmp_path / "db", vectors) as writer, SearchIndex.open(tmp_path / "db") as reader:
        assert recall(reader, vectors) == 1
        for kind in ("ivf-pq", "hnsw"):
            writer.build_index(kind)
            assert recall(reader, vectors) > 0.9
            # Not the compressed vectors' similarities: those are off by some percent.
            for match in reader.search_vectors(vectors[7])[0]:
                assert match.score == pytest.approx(float(unit[7] @ unit[int(match.id[2:])]), abs=1e-5)


@pytest.mark.parametrize("table", ["about", "items"])
def test_a_database_whose_first_version_is_being_written_is_not_there_yet(
    table: str, fill: FillIndex, tmp_path: Path
) -> None:
    fill(tmp_path / "db", np.ones((1, 16))).close()
    versions = sorted((tmp_path / "db" / f"{table}.lance" / "_versions").iterdir())
    whole = next(path for path in versions if path.suffix == ".manifest")
    for path in versions:
        path.rename(path.with_name(path.name + "-kept"))
    whole.with_name(whole.name + "#1").write_bytes(b"")
    with pytest.raises(DatabaseMissingError):
        SearchIndex.open(tmp_path / "db")


def test_a_closed_database_says_so(fill: FillIndex, tmp_path: Path) -> None:
    index = fill(tmp_path / "db", np.ones((3, 16)))
    index.close()
    index.close()
    for use in (index.count, lambda: index.search_vectors(np.ones(16, np.float32))):
        with pytest.raises(UserError, match="was closed"):
            use()


def test_importing_and_opening_load_no_torch(catalogue: Path) -> None:
    code = (
        "import sys; from unimetric.search import SearchIndex\n"
        f"with SearchIndex.open({str(catalogue)!r}) as index: assert index.count() == 24\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_database_with_metadata_is_opened_for_writing_again(own: Path, model: Path, tmp_path: Path) -> None:
    first, second = files(own)[:2]
    for number, path in enumerate((first, second)):
        with SearchIndex.create(tmp_path / "db", model, device=FP32) as index:
            index.add([NewItem(path, "hats", metadata={"price": number, "colour": "red"} if path is first else {})])
    rows = dump(tmp_path / "db")
    assert sorted((row["price"], row["colour"]) for row in rows if row["price"] is not None) == [(0, "red")]
    assert len(rows) == 2


def test_a_database_that_is_only_being_made_is_none_yet(model: Path, tmp_path: Path) -> None:
    # The folder of a table is there before its first version, and stays so if its maker is killed.
    (tmp_path / "db" / "about.lance" / "data").mkdir(parents=True)
    (tmp_path / "db" / "items.lance" / "_versions").mkdir(parents=True)
    with pytest.raises(DatabaseMissingError, match="is not a search database; make one with"):
        SearchIndex.open(tmp_path / "db")
    SearchIndex.create(tmp_path / "db", model).close()
    with SearchIndex.open(tmp_path / "db") as index:
        assert index.count() == 0


def test_a_reader_of_an_empty_database_finds_what_is_added(fill: FillIndex, tmp_path: Path) -> None:
    vectors = np.eye(16, dtype=np.float32)
    with fill(tmp_path / "db", vectors[:0]) as empty:
        assert empty.search_vectors(vectors[0], 3) == [[]]
        with fill(tmp_path / "db", vectors[:2]):
            pass
        with SearchIndex.open(tmp_path / "db") as other:
            assert len(other.search_vectors(vectors[0], 3)[0]) == 2
        store(empty)._table.checkout_latest()
        (found,) = empty.search_vectors(vectors[0], 3)
        assert [match.score for match in found] == [1, 0]
