"""Metamorphic tests: what must not change an answer does not, by a graph and exactly.

``make soak`` asks 10,000 queries, ``make test`` a few hundred.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from search_toys import store

from unimetric.search import SearchIndex
from unimetric.search.items import Match
from unimetric.search.memory import search as memory_search

SIZE, ROWS, K = 16, 2500, 10
Answer = list[tuple[str, float]]


def draw(count: int, seed: int) -> np.ndarray:
    """Members of classes, of which a tenth equals another one."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(200, SIZE))
    vectors = (centres[random.integers(0, 200, count)] + 0.4 * random.normal(size=(count, SIZE))).astype(np.float32)
    vectors[random.integers(0, count, count // 10)] = vectors[random.integers(0, count, count // 10)]
    return vectors


def table(numbers: range, vectors: np.ndarray) -> pa.Table:
    ids = [f"id{number:06}" for number in numbers]
    columns = {name: pa.array(ids) for name in ("id", "path", "label", "content_hash", "fingerprint")}
    columns["dataset"] = pa.array([f"d{number % 4}" for number in numbers])
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), SIZE)
    columns["thumbnail"] = pa.nulls(len(numbers), pa.binary())
    columns["price"] = pa.array([float(number % 50) for number in numbers])
    return pa.table(columns)


@contextmanager
def graphs() -> Iterator[None]:
    """Search the rows below by a graph, which otherwise takes many more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_search, "EXACT_ROWS", 300)
        yield


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("metamorphic") / "db"
    with graphs(), SearchIndex.create(place, model) as index:
        for start in range(0, ROWS, 500):
            store(index).merge(table(range(start, start + 500), draw(500, start)))
        index.prepare()
    return place


@pytest.fixture(params=["graph", "exact"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def most(way: str) -> float:
    """The share of rows that more candidates may show to be missing; none when all rows are compared."""
    return 0.01 if way == "graph" else 0.0


@pytest.fixture
def index(way: str, made: Path, tmp_path: Path) -> Iterator[SearchIndex]:
    with (
        graphs() if way == "graph" else nullcontext(),
        SearchIndex.open(shutil.copytree(made, tmp_path / "db")) as opened,
    ):
        opened.prepare()
        yield opened


@pytest.fixture(params=[200, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def queries(request: pytest.FixtureRequest) -> np.ndarray:
    # Half of them are rows of the database.
    return np.concatenate([draw(request.param // 2, 1000), draw(500, 0)[np.arange(request.param // 2) % 500]])


def shown(answers: list[list[Match]]) -> list[Answer]:
    return [[(match.id, match.score) for match in found] for found in answers]


def test_what_must_not_change_an_answer_does_not(index: SearchIndex, queries: np.ndarray, most: float) -> None:
    expected = shown(index.search_vectors(queries, K))
    assert all(answer == sorted(answer, key=lambda entry: (-entry[1], entry[0])) for answer in expected)

    order = np.random.default_rng(3).permutation(len(queries))
    shuffled = shown(index.search_vectors(queries[order], K))
    assert [shuffled[place] for place in np.argsort(order)] == expected, "order of the queries"
    alone = [shown(index.search_vectors(query, K))[0] for query in queries]
    assert alone == expected, "one query at a time"
    for where in ("price >= 0", "price IS NOT NULL", "TRUE", "id <> 'none'"):
        assert shown(index.search_vectors(queries, K, where=where)) == expected, where
    assert_no_less(expected, shown(index.search_vectors(queries, 2 * K)), "k against the first of 2k", most)

    with SearchIndex.open(store(index).place) as again:
        again.prepare()
        assert shown(again.search_vectors(queries, K)) == expected, "restart"
    pairs = [
        ("price < 5", "NOT (price >= 5)"),
        ("dataset = 'd1' OR dataset = 'd2'", "dataset IN ('d2', 'd1')"),
        ("price BETWEEN 3 AND 20", "price >= 3 AND price <= 20"),
    ]
    for one, other in pairs:
        found = shown(index.search_vectors(queries, K, where=one))
        assert found == shown(index.search_vectors(queries, K, where=other)), (one, other)
    within = shown(index.search_vectors(queries, K, datasets=["d1", "d2"]))
    assert within == shown(index.search_vectors(queries, K, where=pairs[1][0]))


def test_changes_that_cancel_leave_answers_as_they_were(index: SearchIndex, queries: np.ndarray, most: float) -> None:
    exact = shown(index.search_vectors(queries, K, exact=True))
    rows = store(index).rows(store(index).column_names)
    some = rows.slice(100, 80)
    changes: list[tuple[str, Callable[[], object]]] = [
        ("delete and add again", lambda: (store(index).delete_ids(some["id"].to_pylist()), store(index).merge(some))),
        ("write again", lambda: store(index).merge(some)),
        ("add and delete", lambda: (store(index).merge(extra()), store(index).delete_ids(extra()["id"].to_pylist()))),
        ("compaction", lambda: store(index).compact()),
    ]
    for name, change in changes:
        change()
        assert shown(index.search_vectors(queries, K, exact=True)) == exact, name
        assert_no_less(shown(index.search_vectors(queries, K)), exact, name, most)


def extra() -> pa.Table:
    return table(range(9000, 9040), draw(40, 77))


def assert_no_less(fewer: list[Answer], more: list[Answer], name: str, most: float) -> None:
    """A search that looks at more candidates finds what another one does, or nearer rows; nearly always the same."""
    missing = 0
    for one, other in zip(fewer, more, strict=True):
        assert [score for _, score in other[: len(one)]] >= [score for _, score in one], name
        missing += len(set(other[: len(one)]) - set(one))
    assert missing <= most * sum(map(len, fewer)), (name, missing)
