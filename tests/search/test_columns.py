"""Ranges and choices of columns, compared with plain Python over the rows, and their kinds in sources."""

from __future__ import annotations

import math
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_toys import FP32, new_picture

from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.columns import MOST_CHOICES, ColumnSummary
from unimetric.search.indexing import source_items
from unimetric.search.items import NewItem


def by_name(index: SearchIndex) -> dict[str, ColumnSummary]:
    return {column.name: column for column in index.columns()}


def test_ranges_and_choices(index: SearchIndex) -> None:
    columns = by_name(index)
    assert {name: column.kind for name, column in columns.items()} == index.metadata_columns
    price = columns["price"]
    assert (price.low, price.high, price.missing) == (0, 34.5, 1)
    assert columns["colour"].choices == (("blue", 12), ("it's red", 12))
    assert columns["colour"].low is None
    assert columns["in stock"].choices == ((False, 12), (True, 12))
    assert columns["code"].distinct == 24


def test_odd_values(model: Path, embedder: Embedder, tmp_path: Path) -> None:
    values = [
        {"size": math.nan, "day": date(2024, 2, 29), "at": datetime(2024, 1, 1, 12, 30), "name": f"n{0}"},
        {"size": None, "day": None, "at": None, "name": ""},
        {"size": -2.5, "day": date(1999, 12, 31), "at": datetime(2020, 1, 1), "name": None},
        *({"size": 3, "day": None, "at": None, "name": f"n{number}"} for number in range(MOST_CHOICES)),
    ]
    picture = new_picture(tmp_path / "a.png")
    with SearchIndex.create(tmp_path / "db", model, embedder=embedder, device=FP32) as index:
        assert index.columns() == []
        index.add([NewItem(picture, "set", path=str(number), metadata=row) for number, row in enumerate(values)])
        columns = by_name(index)
        assert (columns["size"].low, columns["size"].high, columns["size"].missing) == (-2.5, 3, 2)
        assert (columns["day"].low, columns["day"].high) == (date(1999, 12, 31), date(2024, 2, 29))
        assert columns["at"].high == datetime(2024, 1, 1, 12, 30)
        assert columns["name"].distinct == MOST_CHOICES + 1
        assert columns["name"].choices == ()
        index.delete(path=str(values.index(values[1])))
        index.delete(ids=[match.id for match in index.search(picture, 1000)[0] if not match.metadata["name"]])
        assert len(by_name(index)["name"].choices) == MOST_CHOICES


@pytest.mark.parametrize("name", ["price", "colour", "in stock", "code"])
def test_every_choice_and_range_is_a_condition_that_holds(index: SearchIndex, images: Path, name: str) -> None:
    picture = next(images.glob("*/*/*.png"))
    column = by_name(index)[name]
    for value, count in column.choices:
        literal = str(value) if not isinstance(value, str) else "'" + value.replace("'", "''") + "'"
        found = index.search(picture, 100, where=f"`{name}` = {literal}")[0]
        assert len(found) == count
        assert {match.metadata[name] for match in found} == {value}
    if column.low is not None:
        found = index.search(picture, 100, where=f"`{name}` >= {column.low} AND `{name}` <= {column.high}")[0]
        assert len(found) == 24 - column.missing


def test_numbers_of_a_parquet_file_are_not_called_text(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(own.glob("hats/*/*.png"))[:2]
    pq.write_table(pa.table({"path": [str(first)], "label": ["x"], "size": [38]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(f"path,label,size\n{second},x,M\n")
    items, _ = source_items([str(tmp_path / "a.parquet"), str(tmp_path / "b.csv")])
    assert [item.metadata["size"] for item in items] == [38, "M"]
    assert "is text" not in capsys.readouterr().err
