"""All reads of a process are of one version of the database, which never goes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pytest
from search_toys import FillIndex, make_model, store

from unimetric.geometry import PoincareBall
from unimetric.search import DatabaseError, SearchIndex
from unimetric.search.items import ItemNotFoundError
from unimetric.search.stores import lancedb, lancedb_tables
from unimetric.search.stores.base import Store
from unimetric.search.stores.lancedb_versions import Followed

VECTORS = np.random.default_rng(3).normal(size=(30, 16)).astype(np.float32)
NEW = "id000029"


def rows(numbers: range) -> pa.Table:
    columns = {name: [f"{name}{row:06}" for row in numbers] for name in ("id", "path", "content_hash", "fingerprint")}
    columns |= {"dataset": ["new" if row == 29 else "d" for row in numbers], "label": ["x"] * len(numbers)}
    flat = pa.array(VECTORS[numbers.start : numbers.stop].ravel())
    columns |= {"vector": pa.FixedSizeListArray.from_arrays(flat, 16), "thumbnail": pa.nulls(len(numbers), pa.binary())}
    return pa.table(columns)


def searched(index: SearchIndex, **options: object) -> bool:
    (found,) = index.search_vectors(VECTORS[29], 1, **options)
    return found[0].id == NEW


def there(read: Callable[[str], object]) -> bool:
    try:
        read(NEW)
    except ItemNotFoundError:
        return False
    return True


SEES: dict[str, Callable[[SearchIndex], bool]] = {
    "search": searched,
    "exact search": lambda index: searched(index, exact=True),
    "search with a condition": lambda index: searched(index, where="label = 'x'"),
    "search for several": lambda index: NEW in {found[0].id for found in index.search_vectors(VECTORS[20:], 1)},
    "more like this": lambda index: there(index.search_item),
    "item": lambda index: there(index.item),
    "count": lambda index: index.count() == 30,
    "datasets": lambda index: "new" in index.datasets(),
    "sample": lambda index: NEW in {item.id for item in index.sample(99)},
}


@pytest.fixture
def writer(fill: FillIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchIndex]:
    """A database that others look at once an hour for changes."""
    monkeypatch.setattr(lancedb_tables, "READERS_SEE_WRITES_WITHIN", timedelta(hours=1))
    with fill(tmp_path / "db", np.empty((0, 16))) as index:
        store(index).merge(rows(range(29)))
        yield index


def reader_of(index: SearchIndex) -> SearchIndex:
    return SearchIndex.open(store(index).place)


@pytest.mark.parametrize("first", SEES)
def test_all_reads_are_of_one_version(first: str, writer: SearchIndex) -> None:
    with reader_of(writer) as reader:
        store(writer).merge(rows(range(29, 30)))
        for kind in (first, *SEES):
            assert not SEES[kind](reader), kind
        # A change looks for the newest version first, even if there turns out to be nothing to write.
        store(reader).rows_of([NEW], ["id"], newest=True)
        for kind in (first, *SEES):
            assert SEES[kind](reader), kind


@pytest.mark.parametrize("first", SEES)
def test_own_writes_bring_those_of_others(first: str, writer: SearchIndex) -> None:
    with reader_of(writer) as reader:
        for kind in (first, *SEES):
            assert not SEES[kind](reader), kind
        store(writer).merge(rows(range(29, 30)))
        reader.delete(ids=["id000000"])
        store(reader).merge(rows(range(1)))
        for kind in (first, *SEES):
            assert SEES[kind](reader), kind


@pytest.mark.filterwarnings("ignore:optimize")
@pytest.mark.parametrize("first", SEES)
def test_rows_of_a_version_that_was_removed_are_read_from_the_newest(
    first: str, writer: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction removes versions older than an hour, even if readers are still at one."""
    monkeypatch.setattr(lancedb, "_KEPT_VERSIONS", timedelta(0))
    for is_used in (False, True):
        with reader_of(writer) as reader:
            for _ in range(2 if is_used else 0):
                assert not searched(reader)
            store(writer).merge(rows(range(29, 30)))
            store(writer).delete_ids(["id000003"])
            store(writer).compact()
            SEES[first](reader)
            assert reader.item("id000004").path == "path000004"
            assert SEES["search"](reader)
            assert SEES["item"](reader)
        store(writer).delete_ids([NEW])


class Table:
    """A table of LanceDB; ``during`` is called while it moves to the newest version."""

    def __init__(self) -> None:
        self.version = 1
        self.newest = 1
        self.during: Callable[[], None] = lambda: None

    def checkout_latest(self) -> None:
        self.version = self.newest
        self.during()


@pytest.mark.usefixtures("readers_look_every_time")
@pytest.mark.parametrize("kind", ["int8", "float16", "bit", "hyperbolic"])
def test_a_row_that_is_deleted_between_two_reads_leaves_room_for_the_next(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "hyperbolic":
        model = make_model(tmp_path / "model", geometry=PoincareBall())
    vector_type = "float32" if kind == "hyperbolic" else kind
    with SearchIndex.create(tmp_path / "db", model, vector_type=vector_type) as writer:
        table = rows(range(29))
        place = table.column_names.index("vector")
        short = pa.array((VECTORS[:29] / 100).ravel())
        store(writer).merge(table.set_column(place, "vector", pa.FixedSizeListArray.from_arrays(short, 16)))
        with reader_of(writer) as reader:
            query = VECTORS[5] / 100
            best = [match.id for match in reader.search_vectors(query, 6)[0]]
            rows_of = type(store(reader)).rows_of

            def deleted_before(opened: Store, ids: list[str], columns: list[str], **options: bool) -> pa.Table:
                if opened is store(reader):
                    store(writer).delete_ids(best[1:3])
                return rows_of(opened, ids, columns, **options)

            monkeypatch.setattr(type(store(reader)), "rows_of", deleted_before)
            (found,) = reader.search_vectors(query, 4)
            assert [match.id for match in found] == [best[0], *best[3:]]
            sample = [item.id for item in reader.sample(27)]
            assert len(sample) == 27
            best[1:3] = sample[:2]
            assert len(reader.sample(25)) == 25


def test_a_read_that_fails_at_the_newest_version_is_not_made_again(tmp_path: Path) -> None:
    asked = []

    def broken(table: object) -> None:
        asked.append(table)
        raise ValueError("damaged")

    with pytest.raises(DatabaseError, match="damaged"):
        Followed(str(tmp_path), Table()).read(broken)
    assert len(asked) == 1


def test_a_version_that_is_read_during_a_move_is_not_kept() -> None:
    table = Table()
    followed = Followed("db", table)
    seen = []

    def another_thread_reads() -> None:
        thread = Thread(target=lambda: seen.append(followed.version))
        thread.start()
        thread.join()
        # A further commit of the same change.
        table.version = 3

    table.newest, table.during = 2, another_thread_reads
    assert followed.version == 1
    followed.refresh()
    assert (seen, followed.version) == ([2], 3)
    with followed.moving():
        table.version = 4
        assert followed.version == 4
        table.version = 5
    assert followed.version == 5
