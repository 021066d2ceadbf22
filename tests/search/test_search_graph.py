"""The graph beside a database: recall, conditions, changes, and files that are missing, damaged or old."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from search_toys import store

from unimetric.search import SearchIndex
from unimetric.search.conditions import parse_condition
from unimetric.search.items import ItemNotFoundError
from unimetric.search.memory import building
from unimetric.search.memory import search as memory_search
from unimetric.search.memory.building import build
from unimetric.search.memory.files import MemoryFiles
from unimetric.search.memory.graph import Graph
from unimetric.search.memory.search import MemorySearch, vector_search
from unimetric.search.scoring import cosines
from unimetric.search.stores import open_store
from unimetric.search.stores.base import Store

ROWS, SIZE, K = 2000, 16, 10
COLUMNS = ["id", "dataset", "label", "path", "side", "spread"]
Where = Callable[[dict], bool]


def draw(count: int, seed: int) -> np.ndarray:
    """Members of tight classes."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(150, SIZE))
    return (centres[random.integers(0, 150, count)] + 0.3 * random.normal(size=(count, SIZE))).astype(np.float32)


def table(numbers: range, vectors: np.ndarray, label: str = "a") -> pa.Table:
    ids = [f"id{number:06}" for number in numbers]
    columns = {name: pa.array(ids) for name in ("id", "path", "content_hash", "fingerprint")}
    columns["dataset"] = pa.array([f"d{number % 3}" for number in numbers])
    columns["label"] = pa.array([label] * len(numbers))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), SIZE)
    columns["thumbnail"] = pa.nulls(len(numbers), pa.binary())
    columns["side"] = pa.array(vectors[:, 0].astype(np.float64))
    columns["spread"] = pa.array([float(number * 7919 % 10_000) for number in numbers])
    return pa.table(columns)


@pytest.fixture(scope="module", autouse=True)
def small_graph() -> Iterator[None]:
    """Graphs of hundreds of rows, which take a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_search, "EXACT_ROWS", 300)
        patch.setattr(memory_search, "LONGEST_TAIL", 200)
        yield


@pytest.fixture(scope="module")
def made(model: Path, small_graph: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the files of its graph; only to be copied."""
    place = tmp_path_factory.mktemp("graph") / "db"
    with SearchIndex.create(place, model) as index:
        for start in range(0, ROWS, 1000):
            store(index).merge(table(range(start, start + 1000), draw(1000, start)))
        opened_search(store(index)).close()
    return place


@pytest.fixture
def filled(made: Path, tmp_path: Path) -> Store:
    return open_store(shutil.copytree(made, tmp_path / "db"))


@pytest.fixture
def ready(filled: Store) -> Iterator[MemorySearch]:
    with_graph = opened_search(filled)
    yield with_graph
    with_graph.close()


def opened_search(opened: Store) -> MemorySearch:
    search = vector_search(opened)
    assert isinstance(search, MemorySearch)
    search.prepare(COLUMNS)
    return search


def plain(opened: Store, query: np.ndarray, k: int, keep: Where = lambda row: True) -> list[tuple[str, float]]:
    rows = [row for row in opened.rows(["id", "vector", "side", "spread"]).to_pylist() if keep(row)]
    if not rows:
        return []
    scores = cosines(query, np.array([row["vector"] for row in rows], np.float32)).tolist()
    ranked = sorted((-score, row["id"]) for score, row in zip(scores, rows, strict=True))
    return [(id, -score) for score, id in ranked[:k]]


def found(search: MemorySearch, queries: np.ndarray, k: int = K, **options) -> list[list[tuple[str, float]]]:
    answers = search.nearest(queries, k, COLUMNS, **options)
    return [list(zip(rows.columns["id"], rows.scores, strict=True)) for rows in answers]


def recall(search: MemorySearch, opened: Store, queries: np.ndarray, k: int = K) -> float:
    shares = []
    for query, answer in zip(queries, found(search, queries, k), strict=True):
        best = plain(opened, query, k)
        assert answer == sorted(answer, key=lambda entry: (-entry[1], entry[0]))
        assert set(answer) >= set(best) or min(score for _, score in answer) <= best[-1][1]
        shares.append(len(set(answer) & set(best)) / k)
    return float(np.mean(shares))


def test_recall_scores_and_order(ready: MemorySearch, filled: Store) -> None:
    queries = draw(60, 7)
    assert recall(ready, filled, queries) >= 0.98
    assert recall(ready, filled, queries[:20], 100) >= 0.98
    exact = found(ready, queries[:20], exact=True)
    assert exact == [plain(filled, query, K) for query in queries[:20]]
    # The same scores to the bit, as the rows themselves give them.
    known = dict(plain(filled, queries[0], ROWS))
    assert all(known[id] == score for id, score in found(ready, queries[:1])[0])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("column", ["side", "spread"])
def test_conditions_keep_their_recall(share: float, column: str, ready: MemorySearch, filled: Store) -> None:
    border = float(np.quantile(filled.rows([column])[column].to_numpy(), share))
    condition = parse_condition(f"{column} <= {border}", {column: "number"})
    shares = []
    queries = draw(30, 11)
    for query, answer in zip(queries, found(ready, queries, condition=condition), strict=True):
        best = plain(filled, query, K, lambda row: row[column] <= border)
        assert len(answer) == len(best)
        shares.append(len(set(answer) & set(best)) / len(best))
    assert np.mean(shares) >= 0.98


def test_changes_are_seen_by_the_next_search(ready: MemorySearch, filled: Store) -> None:
    queries = draw(8, 21)
    new = table(range(9000, 9000 + 8), queries, "new")
    for step in range(3):
        filled.merge(new)
        answers = found(ready, queries)
        assert [answer[0] for answer in answers] == [(f"id{9000 + place:06}", 1.0) for place in range(8)]
        best = [answer[1][0] for answer in answers]
        filled.delete_ids(best)
        assert not {id for answer in found(ready, queries) for id, _ in answer} & set(best), step
        filled.delete_ids([f"id{9000 + place:06}" for place in range(8)])
        assert recall(ready, filled, queries) >= 0.98
    filled.merge(table(range(100), draw(100, 31), "moved"))
    assert recall(ready, filled, draw(20, 32)) >= 0.98
    filled.compact()
    assert recall(ready, filled, draw(20, 33)) >= 0.98


def test_vectors_of_items_are_those_of_the_table(
    ready: MemorySearch, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(22)

    def check() -> None:
        rows = filled.rows(["id", "vector"]).to_pydict()
        places = random.integers(0, len(rows["id"]), 40)
        wanted = np.array([rows["vector"][place] for place in places], np.float32)
        assert np.array_equal(ready.vectors_of([rows["id"][place] for place in places], COLUMNS), wanted)
        for missing in ("", "id", "id999999", "id000007"):
            with pytest.raises(ItemNotFoundError, match="no item"):
                ready.vectors_of([missing], COLUMNS)

    filled.delete_ids(["id000007"])
    check()
    filled.merge(table(range(40, 90), draw(50, 1), "replaced"))
    filled.merge(table(range(9000, 9050), draw(50, 2), "new"))
    check()
    filled.merge(table(range(80, 100), draw(20, 3), "again"))
    filled.delete_ids(["id009001", "id000041"])
    check()
    # The graph is extended: places of deleted rows stay in it.
    filled.merge(table(range(9100, 9220), draw(120, 4), "new"))
    extend_at_once(ready, monkeypatch)
    check()
    wait(ready)
    check()
    filled.compact()
    ready.prepare(COLUMNS)
    check()


def extend_at_once(search: MemorySearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take new rows into the graph at the next search, not after a pause."""
    monkeypatch.setattr(memory_search, "_PAUSE", 0.0)
    search._next_try = 0.0


def test_a_long_tail_is_taken_into_the_graph(
    ready: MemorySearch, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = MemoryFiles(filled.place).load()
    filled.delete_ids([f"id{number:06}" for number in range(400)])
    filled.merge(table(range(5000, 5400), draw(400, 41), "new"))
    extend_at_once(ready, monkeypatch)
    found(ready, draw(1, 1))
    wait(ready)
    after = MemoryFiles(filled.place).load()
    assert before is not None
    assert after is not None
    assert len(after.graph) == len(after.block) == ROWS + 400
    # The nodes of rows that are gone stay, masked.
    assert int((after.block.numbers < 0).sum()) == 400
    assert (after.block.vectors[:ROWS] == before.block.vectors).all()
    queries = draw(30, 42)
    assert recall(ready, filled, queries) >= 0.98


def wait(search: MemorySearch) -> None:
    for thread in threading.enumerate():
        if thread.name == "memory":
            thread.join()
    search.prepare(COLUMNS)


def files_of(opened: Store) -> list[Path]:
    return sorted(path for path in MemoryFiles(opened.place).folder.rglob("*") if path.is_file())


def test_files_are_used_again(ready: MemorySearch, filled: Store) -> None:
    queries = draw(30, 51)
    expected = found(ready, queries)
    # The record of checksums is written once files have settled, which the copied ones may just have.
    before = {file: file.stat().st_mtime_ns for file in files_of(filled) if file.name != "checked.json"}
    again = opened_search(open_store(filled.place))
    assert found(again, queries) == expected
    again.close()
    filled.merge(table(range(9000, 9001), queries[:1]))
    again = opened_search(open_store(filled.place))
    assert found(again, queries[:1])[0][0] == ("id009000", 1.0)
    again.close()
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize(
    "name", ["vectors.npy", "numbers.npy", "by_id.npy", "rows.arrow", "graph.usearch", "current.json"]
)
@pytest.mark.parametrize("damage", ["flipped", "written", "cut", "gone", "empty"])
def test_damaged_files_are_made_again(name: str, damage: str, ready: MemorySearch, filled: Store) -> None:
    queries = draw(10, 61)
    expected = found(ready, queries, exact=True)
    (file,) = [path for path in files_of(filled) if path.name == name]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    if damage == "gone":
        file.unlink()
    elif damage == "written":
        # In place, where its length and its node stay as they were.
        ready.close()
        with file.open("r+b") as other:
            other.write(content)
    else:
        copy = {"flipped": bytes(content), "cut": bytes(content[: len(content) // 2]), "empty": b""}[damage]
        # Not in place: the file is mapped by the search above.
        other = file.with_name("other")
        other.write_bytes(copy)
        other.replace(file)
    again = opened_search(open_store(filled.place))
    assert found(again, queries, exact=True) == expected
    assert recall(again, filled, queries) >= 0.98
    again.close()
    saved = MemoryFiles(filled.place).load()
    assert saved is not None
    assert len(saved.graph) == ROWS


def test_files_of_another_database_are_not_used(
    ready: MemorySearch, filled: Store, model: Path, tmp_path: Path
) -> None:
    with SearchIndex.create(tmp_path / "other", model) as index:
        other = store(index)
        for start in range(0, ROWS, 1000):
            other.merge(table(range(start, start + 1000), draw(1000, 500 + start)))
        shutil.copytree(MemoryFiles(filled.place).folder, MemoryFiles(other.place).folder)
        search = opened_search(other)
        queries = draw(20, 71)
        assert recall(search, other, queries) >= 0.98
        search.close()


def test_a_stopped_build_goes_on(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(MemoryFiles(filled.place).folder)
    monkeypatch.setattr(building, "_KEPT", 500)
    numbers = filled.numbers
    assert numbers is not None
    files = MemoryFiles(filled.place)
    stops = iter([False, True, True, True])
    part = build(filled, numbers, COLUMNS, files, lambda: next(stops))
    assert part is not None
    assert (len(part.graph), part.counts) == (1000, None)
    search = opened_search(filled)
    assert recall(search, filled, draw(20, 81)) >= 0.98
    search.close()


def test_a_graph_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*graph\.usearch: No such file"):
        Graph.new(SIZE).save(tmp_path / "missing" / "graph.usearch")


def test_a_database_that_cannot_be_written_is_searched(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = MemoryFiles(filled.place).folder
    shutil.rmtree(folder)
    for place in (folder, tmp_path / "cache"):
        place.write_text("a file in the way")
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    search = opened_search(filled)
    queries = draw(5, 91)
    assert found(search, queries) == [plain(filled, query, K) for query in queries]
    assert str(tmp_path / "cache") in caplog.text
    search.close()
