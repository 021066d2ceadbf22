"""Search in memory: the answers of a plain exact search, whatever happens to the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import store

from properties import examples
from unimetric.search import SearchIndex
from unimetric.search.conditions import Condition, equals
from unimetric.search.items import ItemNotFoundError, Match
from unimetric.search.memory.blocks import Block, empty_block
from unimetric.search.memory.exact import Span, candidates
from unimetric.search.memory.state import State, caught_up, read_state, selected
from unimetric.search.scoring import cosines
from unimetric.search.stores import lancedb_numbers

SIZE = 16
Queries = np.ndarray


def table(names: range, vectors: np.ndarray, label: str = "a") -> pa.Table:
    ids = [f"id{number:06}" for number in names]
    columns = {name: pa.array(ids) for name in ("id", "path", "content_hash", "fingerprint")}
    columns["dataset"] = pa.array([f"d{number % 3}" for number in names])
    columns["label"] = pa.array([label] * len(names))
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), SIZE)
    columns["thumbnail"] = pa.nulls(len(names), pa.binary())
    columns["price"] = pa.array([float(number % 100) for number in names])
    return pa.table(columns)


def draw(count: int, seed: int) -> np.ndarray:
    """Vectors of which many are equal to another one."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, SIZE)).astype(np.float32)
    vectors[random.integers(0, count, count // 4)] = vectors[random.integers(0, count, count // 4)]
    return vectors


def plain(index: SearchIndex, query: np.ndarray, k: int, keep: Callable[[dict], bool] = lambda row: True) -> list:
    """Ids, scores and labels from the rows of the table themselves."""
    rows = [row for row in store(index).rows(["id", "vector", "label", "dataset", "price"]).to_pylist() if keep(row)]
    if not rows:
        return []
    scores = cosines(query, np.array([row["vector"] for row in rows], np.float32)).tolist()
    ranked = sorted(zip(scores, rows, strict=True), key=lambda entry: (-entry[0], entry[1]["id"]))
    return [(row["id"], score, row["label"]) for score, row in ranked[:k]]


def shown(matches: list[Match]) -> list:
    return [(match.id, match.score, match.label) for match in matches]


def check_item(index: SearchIndex, id: str) -> None:
    """A search for an item is that for the vector that the table has now."""
    stored = store(index).rows_of([id], ["vector"])["vector"].to_pylist()
    if stored:
        nearest = plain(index, np.array(stored[0], np.float32), 13)
        assert shown(index.search_item(id, 12)) == [match for match in nearest if match[0] != id][:12]
    else:
        with pytest.raises(ItemNotFoundError, match=id):
            index.search_item(id)


@pytest.fixture
def filled(model: Path, tmp_path: Path):
    with SearchIndex.create(tmp_path / "db", model) as index:
        store(index).merge(table(range(400), draw(400, 0)))
        yield index


def test_every_change_is_seen_by_the_next_search(filled: SearchIndex) -> None:
    random = np.random.default_rng(1)
    queries = draw(6, 2)
    below = 400
    for step in range(12):
        action = step % 6
        if action == 0:
            store(filled).merge(table(range(below, below + 7), draw(7, 10 + step), "new"))
            below += 7
        elif action == 1:
            store(filled).delete_ids([f"id{number:06}" for number in random.integers(0, below, 9)])
        elif action == 2:
            start = int(random.integers(0, 300))
            rows = table(range(start, start + 20), draw(20, 40 + step), "changed")
            store(filled).merge(rows, insert=step == 2)
        elif action == 3:
            store(filled).compact()
        elif action == 4:
            store(filled).merge(table(range(below - 2, below + 1), draw(3, 70 + step), "again"))
            below += 1
        for query in queries[:3]:
            assert shown(filled.search_vectors(query, 12)[0]) == plain(filled, query, 12)
        for id in [f"id{number:06}" for number in (*random.integers(0, below, 20), below - 1)]:
            check_item(filled, id)
        found = filled.search_vectors(queries, 5, where="price < 30 AND dataset <> 'd1'")
        for query, matches in zip(queries, found, strict=True):
            expected = plain(filled, query, 5, lambda row: row["price"] < 30 and row["dataset"] != "d1")
            assert shown(matches) == expected


def test_the_first_answer_is_that_of_all_others(filled: SearchIndex) -> None:
    query = draw(1, 2)[0]
    answers = [filled.search_vectors(query, 8) for _ in range(5)]
    assert answers == answers[:1] * 5


def test_items_are_searched_without_those_that_were_deleted(filled: SearchIndex) -> None:
    expected = [filled.search_item(f"id{number:06}", 5) for number in range(3)]
    store(filled).delete_ids(["id000009"])
    again = [filled.search_item(f"id{number:06}", 5) for number in range(3)]
    assert [[match for match in found if match.id != "id000009"] for found in expected] == again
    for missing in ("id000009", "id999999", ""):
        with pytest.raises(ItemNotFoundError):
            filled.search_item(missing)


@pytest.mark.usefixtures("readers_look_every_time")
def test_another_process_s_writes_are_seen(filled: SearchIndex) -> None:
    with SearchIndex.open(store(filled).place) as reader:
        queries = draw(4, 3)
        for step, change in enumerate(
            [
                lambda: store(filled).merge(table(range(400, 420), draw(20, 4))),
                lambda: store(filled).delete_ids(["id000003", "id000405"]),
                lambda: store(filled).compact(),
                lambda: store(filled).merge(table(range(300), draw(300, 5), "anew")),
            ]
        ):
            change()
            for query in queries:
                assert shown(reader.search_vectors(query, 8)[0]) == plain(filled, query, 8), step
                where = plain(filled, query, 8, lambda row: row["price"] < 10)
                assert shown(reader.search_vectors(query, 8, where="price < 10")[0]) == where


@pytest.mark.parametrize("gaps", [64, 0])
def test_rows_that_a_compaction_moves_below_newer_ones_are_not_lost(
    gaps: int, filled: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction reserves numbers, another process adds rows with higher ones, then the compaction is committed."""
    monkeypatch.setattr(lancedb_numbers, "_GAPS", gaps)
    rows = store(filled)
    for first in (400, 410, 420, 430):
        rows.merge(table(range(first, first + 10), draw(10, first)))
    rows.delete_ids([f"id{number:06}" for number in (3, *range(420, 430))])
    assert rows.numbers is not None
    whole = read_state(rows, rows.numbers, ["id"])
    assert len(whole) == 429

    def seen_before(places: np.ndarray, tail: np.ndarray) -> State:
        base = whole.base.kept(places)
        return State(whole.version - 1, base, None, len(base), whole.base.kept(tail) if tail.any() else nothing)

    def now(state: State) -> State | None:
        return caught_up(state, rows, rows.numbers, ["id"], 1000)

    nothing = empty_block(rows, ["id"])
    names = np.array(whole.base.rows.column("id").to_pylist())
    old, first, second, last = (
        np.isin(names, [f"id{number:06}" for number in span])
        for span in (range(400), range(400, 410), range(410, 420), range(430, 440))
    )
    none = np.zeros(len(names), bool)
    for base, tail in ((old, none), (old, first), (old | first, second), (old | first | second, none)):
        found = now(seen_before(base, tail))
        assert found is not None
        assert len(found) == 429
    for base, tail in (
        (first, last),
        (old, last),
        (old, first | last),
        (old | second, last),
        (old | second | last, none),
    ):
        assert now(seen_before(base, tail)) is None


@dataclass
class Numbers:
    """Numbers of rows, and those that meet any condition."""

    there: set[int]
    met: set[int]
    version: int = 0
    read: list[int] = field(default_factory=list)

    def select(self, where: Condition, above: int = -1) -> np.ndarray:
        found = np.array(sorted(number for number in self.there & self.met if number > above), np.int64)
        self.read.append(len(found))
        return found


def block(numbers: Sequence[int]) -> Block:
    some = len(numbers)
    return Block.of(np.array(numbers, np.int64), np.ones((some, 2), np.float32), pa.table({"id": pa.nulls(some)}))


@pytest.mark.parametrize("seed", range(20))
def test_conditions_are_evaluated_for_new_rows_whatever_their_numbers(seed: int) -> None:
    """Numbers that a compaction reserved appear below others that were seen, or below some that are gone again."""
    random = np.random.default_rng(seed)
    condition = equals("label", "a")
    numbers = Numbers(set(range(20)), {number for number in range(400) if random.random() < 0.5})
    free = list(range(20, 400))
    state = State(0, block(range(20)), None, 20, block([]))
    for version in range(1, 40):
        for gone in random.choice(sorted(numbers.there), min(3, len(numbers.there)), replace=False).tolist():
            numbers.there.remove(gone)
        for _ in range(3):
            numbers.there.add(free.pop(int(random.integers(0, 6))))
        tail = sorted(number for number in numbers.there if number >= 20)
        dead = ~np.isin(state.base.numbers, list(numbers.there))
        state = replace(state, version=version, dead=dead, alive=int((~dead).sum()), tail=block(tail))
        if random.random() < 0.5:
            assert selected(state, numbers, condition) is None  # another process writes meanwhile
            numbers.version = version
            found = selected(state, numbers, condition)
            assert found is not None
            places = [*state.base.numbers[found.base], *state.tail.numbers[found.tail]]
            assert sorted(places) == sorted(numbers.there & numbers.met)
            assert found.count == len(places)
    # A deletion alone reads nothing.
    numbers.there.discard(tail[-1])
    numbers.read.clear()
    numbers.version = state.version
    selected(state, numbers, condition)
    numbers.version += 1
    assert selected(replace(state, version=numbers.version, tail=block(tail[:-1])), numbers, condition) is not None
    assert len(numbers.read) <= 1


def test_a_column_that_is_added_later_is_empty_in_older_rows(filled: SearchIndex) -> None:
    query = draw(1, 6)[0]
    for _ in range(2):
        filled.search_vectors(query, 3)
    rows = table(range(900, 901), query[None])
    store(filled).merge(rows.append_column("colour", pa.array(["red"])))
    found = filled.search_vectors(query, 400)[0]
    assert found[0].metadata == {"price": 0.0, "colour": "red"}
    assert {match.metadata["colour"] for match in found[1:]} == {None}
    assert [match.id for match in filled.search_vectors(query, 5, where="colour = 'red'")[0]] == ["id000900"]


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 50),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]),
)
@settings(max_examples=examples(80), deadline=None)
def test_no_best_vector_is_missed(count: int, size: int, k: int, seed: int, share: float) -> None:
    """Also among vectors of any length, equal ones, and some that float32 cannot compare."""
    random = np.random.default_rng(seed)
    count *= 30
    vectors = random.normal(size=(count, size)).astype(np.float32)
    vectors[random.integers(0, count, count // 3)] = vectors[0]
    vectors *= 10.0 ** random.integers(-3, 4, (count, 1)).astype(np.float32)
    vectors[random.integers(0, count, 5)] = [[0.0], [np.nan], [np.inf], [1e-30], [1e30]]
    queries = random.normal(size=(3, size)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        inverse = np.where((lengths > 1e-15) & (lengths < 1e15), 1 / lengths, np.inf).astype(np.float32)
    chosen = random.random(count) < share
    cut = count // 2
    spans = [
        Span(vectors[:cut], inverse[:cut], 0, np.flatnonzero(chosen[:cut])),
        Span(vectors[cut:], inverse[cut:], cut, np.flatnonzero(chosen[cut:]) if share < 1 else None),
    ]
    if share == 1:
        spans[0] = Span(vectors[:cut], inverse[:cut])
    allowed = np.flatnonzero(chosen) if share < 1 else np.arange(count)
    for query, places in zip(queries, candidates(queries, spans, k), strict=True):
        assert set(places.tolist()) <= set(allowed.tolist())
        scores = cosines(query, vectors[allowed])
        border = np.sort(scores)[::-1][:k].min(initial=np.inf)
        assert set(allowed[scores > border].tolist()) <= set(places.tolist())
        assert set(allowed[scores >= border].tolist()) <= set(places.tolist())
