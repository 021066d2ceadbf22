"""Filters of a search: conditions and datasets, and no condition leaves its dataset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from properties import examples
from unimetric.errors import UserError
from unimetric.search import ItemNotFoundError, SearchIndex

VECTOR = np.linspace(1, 2, 16).astype(np.float32)
ANY = Image.new("RGB", (20, 20), (200, 30, 30))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("price < 3", {"0000", "0001"}),
        ("PRICE < 3", {"0000", "0001"}),
        ("price IS NULL", {"0005"}),
        ("colour = 'it''s red' AND price < 6", {"0001", "0003"}),
        ("`in stock` = false AND label = 'c0'", {f"{number:04}" for number in range(12, 16)}),
        ('"in stock" AND price > 15', {"0011"}),
        ("code IN ('0007', '0008')", {"0007", "0008"}),
        ("code LIKE '000%' AND NOT (price >= 1.5)", {"0000"}),
        ("dataset = 'shoes' OR (price = 0)", {"0000", *(f"{number:04}" for number in range(12, 24))}),
    ],
)
def test_conditions(where: str, expected: set[str], index: SearchIndex) -> None:
    (found,) = index.search(ANY, 100, where=where)
    assert {match.metadata["code"] for match in found} == expected


PIECES = [
    "'",
    '"',
    "`",
    "(",
    ")",
    "--",
    "/*",
    "*/",
    ";",
    "\\",
    "1=1",
    " OR ",
    " AND ",
    "dataset",
    " = ",
    "hats",
    "true",
]


@settings(max_examples=examples(120), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_no_condition_leaves_the_dataset(index: SearchIndex, where: str) -> None:
    try:
        (found,) = index.search_vectors(VECTOR, 100, datasets=["shoes"], where=where)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert {match.dataset for match in found} <= {"shoes"}


@pytest.mark.parametrize("where", ["1=1) OR (1=1", "true) OR true OR (true", "1=1 OR 1=1) --", "') OR ('1'='1"])
def test_the_database_alone_would_let_these_escape(where: str, index: SearchIndex) -> None:
    with pytest.raises(UserError, match="condition"):
        index.search_vectors(VECTOR, 100, datasets=["shoes"], where=where)


def test_a_dataset_of_any_name(fill, tmp_path) -> None:
    names = ["it's", 'a"b', "x') OR ('1'='1", "%", "größe"]
    with fill(tmp_path / "db", np.eye(16)[:5], datasets=names) as index:
        assert index.datasets() == dict.fromkeys(sorted(names), 1)
        for name in names:
            (found,) = index.search_vectors(VECTOR, datasets=[name])
            assert [match.dataset for match in found] == [name]
        assert index.delete(dataset="%") == 1
        assert index.count() == 4


@pytest.mark.parametrize("id", ["x' OR '1'='1", "a\0b", "\ud800", "\\", "", "x" * 10**6, "`", "--", "日本"])
def test_an_id_of_any_text_is_looked_up_as_it_is(id: str, index: SearchIndex) -> None:
    # The last one in memory.
    for use in (index.item, index.thumbnail, index.search_item, lambda id: index.prepare() or index.search_item(id)):
        with pytest.raises(ItemNotFoundError) as caught:
            use(id)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_many_ids_and_odd_names_are_deleted(fill, tmp_path) -> None:
    with fill(tmp_path / "db", np.ones((5, 16))) as index:
        odd = [f"it's {number} \ud800" for number in range(2500)]
        assert index.delete(ids=[*odd, "id000001"]) == 1
        assert index.delete(dataset="\ud800") == 0
        assert index.delete(path="/a'b/\\%_") == 0
        assert index.count() == 4
