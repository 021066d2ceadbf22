from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unimetric.errors import UserError
from unimetric.evaluation.labels import as_hashables, number


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, "1", None, (1, 2)], [1, "1", None, (1, 2)]),
        ([("a", 1), ("a", 2)], [("a", 1), ("a", 2)]),
        (("x", b"x"), ["x", b"x"]),
        (np.array([3, 4]), [3, 4]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([None, (1,)], dtype=object), [None, (1,)]),
        (torch.tensor([3, 4]), [3, 4]),
        (range(2), [0, 1]),
    ],
)
def test_values_keep_their_type(values: Any, expected: list[Any]) -> None:
    listed = as_hashables(values, "labels", len(expected), "vectors")
    assert listed == expected
    assert [type(value) for value in listed] == [type(value) for value in expected]


def test_equality_is_python_s() -> None:
    columns, values = number([1, "1", (1,), None], [np.int64(1), 1.0, np.str_("1"), (1.0,), "None"])
    assert [column.tolist() for column in columns] == [[0, 1, 2, 3], [0, 0, 1, 2, 4]]
    assert values == [1, "1", (1,), None, "None"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("ab", "labels: got str; give a list with one value per row"),
        ({"a", "b"}, "labels: got set; give a list with one value per row"),
        ({"a": 1, "b": 2}, "labels: got dict; give a list with one value per row"),
        (7, "labels: got int; give a list with one value per row"),
        (None, "labels: got NoneType; give a list with one value per row"),
        (np.ones((2, 1)), "labels: shape [2, 1]; give one dimension, one value per row"),
        (torch.tensor(1), "labels: shape []; give one dimension, one value per row"),
        (["a"], "labels: 1 values for 2 rows of vectors; give one per row"),
        (
            ["a", torch.tensor(1)],
            "labels: row 1 is a torch tensor; give Python values, such as from .tolist()",
        ),
        (["a", [1]], "labels: row 1 is the unhashable [1]; give strings, numbers or tuples of them"),
        ([float("nan"), 1], "labels: row 0 is nan, which equals nothing; give it a value or drop the row"),
        (
            np.array([1, np.nan]),
            "labels: row 1 is nan, which equals nothing; give it a value or drop the row",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        as_hashables(values, "labels", 2, "vectors")
    assert str(caught.value) == message
