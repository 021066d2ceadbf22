"""The order of a column, in answers and in a look through the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimetric.errors import ArgumentError
from unimetric.search import SearchIndex
from unimetric.search.items import Match
from unimetric.search.sorting import Order, in_order, sorted_matches

values = st.none() | st.floats(-1e9, 1e9)


@given(st.lists(values), st.booleans())
def test_a_stable_order_with_missing_values_last(column: list[float | None], descending: bool) -> None:
    rows = list(enumerate(column))
    found = in_order(rows, lambda row: row[1], descending)
    present = [row for row in rows if row[1] is not None]
    expected = sorted(present, key=lambda row: -row[1] if descending else row[1])
    assert found == [*expected, *(row for row in rows if row[1] is None)]


@given(st.lists(st.text()))
def test_any_texts_have_an_order(texts: list[str]) -> None:
    found = in_order(texts, lambda text: text, False)
    assert sorted(found) == sorted(texts)
    assert in_order(found, lambda text: text, False) == found


def test_numbers_in_texts_count_as_numbers() -> None:
    names = ["IMG_10", "img_9", "IMG_0008", "a", "", "10", "9"]
    assert in_order(names, lambda name: name, False) == ["", "9", "10", "a", "IMG_0008", "img_9", "IMG_10"]


def test_matches_come_before_what_is_none() -> None:
    def match(id: str, price: float | None, is_match: bool | None) -> Match:
        return Match(id, 0.5, "d", id, id, {"price": price}, is_match, None)

    found = [
        match("a", 3, True),
        match("b", 1, False),
        match("c", None, True),
        match("d", 2, True),
        match("e", 0, False),
    ]
    assert [row.id for row in sorted_matches(found, Order("price"))] == ["d", "a", "c", "e", "b"]
    assert [row.id for row in sorted_matches(found, Order("price", descending=True))] == ["a", "d", "c", "b", "e"]
    unjudged = [replace(row, is_match=None) for row in found]
    assert [row.id for row in sorted_matches(unjudged, Order("label", descending=True))] == ["e", "d", "c", "b", "a"]


def test_the_rows_of_a_database_in_order(index: SearchIndex) -> None:
    everything = index.sample(100, order=Order("price"))
    assert len(everything) == 24
    prices = [item.metadata["price"] for item in everything if item.metadata["price"] is not None]
    assert prices == sorted(prices)
    pages = [index.sample(5, order=Order("price"), offset=offset) for offset in range(0, 30, 5)]
    assert [item for page in pages for item in page] == everything
    cheap = index.sample(100, where="price < 5", order=Order("path", descending=True))
    assert {item.path for item in cheap} == {
        item.path for item in everything if item.metadata["price"] is not None and item.metadata["price"] < 5
    }
    assert cheap == index.sample(100, where="price < 5", order=Order("path"))[::-1]
    random = [item for offset in range(0, 24, 6) for item in index.sample(6, seed=3, offset=offset)]
    assert len({item.id for item in random}) == 24
    with pytest.raises(ArgumentError, match=r"sort: no column 'prize'; .*price"):
        index.sample(1, order=Order("prize"))
    assert index.sample(0) == index.sample(3, offset=24) == []
