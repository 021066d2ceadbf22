from __future__ import annotations

import math
import warnings
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from unimetric.errors import UserError
from unimetric.evaluation import CopyWarning, LabelWarning, evaluate
from unimetric.evaluation.labels import as_hashables, factorize


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
    columns, values = factorize([1, "1", (1,), None], [np.int64(1), 1.0, np.str_("1"), (1.0,), "None"])
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
        ([float("nan"), 1], "labels: row 0 is nan, a missing value; give it a value or drop the row"),
        (np.array([1, np.nan]), "labels: row 1 is nan, a missing value; give it a value or drop the row"),
    ],
)
def test_what_cannot_be_compared_is_refused(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        as_hashables(values, "labels", 2, "vectors")
    assert str(caught.value) == message


VECTORS = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])


@pytest.mark.parametrize(
    "missing",
    [None, "", " \u00a0", "\u200b", math.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), Decimal("nan")],
)
@pytest.mark.parametrize("argument", ["labels", "datasets", "gallery labels", "gallery datasets"])
def test_missing_values_are_refused_alike(missing: Any, argument: str) -> None:
    columns = {name: ["a", "a", "b", "b"] for name in ("labels", "datasets", "gallery labels", "gallery datasets")}
    columns["datasets"] = columns["gallery datasets"] = ["d"] * 4
    columns[argument] = [columns[argument][0], missing, columns[argument][2], missing]
    labels, datasets, gallery_labels, gallery_datasets = columns.values()
    with pytest.raises(UserError, match=rf"^{argument}: row 1 is .*, a missing value.*; give ") as caught:
        evaluate(VECTORS, labels, datasets, gallery=(VECTORS, gallery_labels, gallery_datasets))
    assert "\n" not in str(caught.value)


def test_columns_of_tables() -> None:
    expected = evaluate(VECTORS, ["a", "a", "b", "b"], ["d"] * 4)
    for labels in (
        pd.Series(["a", "a", "b", "b"], index=[7, 7, 8, 9]),
        pd.Categorical(["a", "a", "b", "b"]),
        pa.chunked_array([["a", "a"], ["b", "b"]]),
        pa.array(["a", "a", "b", "b"]).dictionary_encode(),
    ):
        assert evaluate(VECTORS, labels, ["d"] * 4).unified == expected.unified
    for column in (pa.array(["a", None, "b", "b"]), pd.Series(["a", None, "b", "b"])):
        with pytest.raises(UserError, match=r"labels: row 1 is .*, a missing value"):
            evaluate(VECTORS, column, ["d"] * 4)


@pytest.mark.parametrize(
    ("twin", "other"),
    [
        ("wren ", "wren"),
        ("wren\u00a0", "wren"),
        ("Wren", "wren"),
        ("Zaunko\u0308nig", "Zaunk\u00f6nig"),
        ("0.0", "0"),
        ("01", "1"),
        ("1", 1),
        ("black_footed", "black footed"),
    ],
)
def test_near_twins_are_named_and_counted_as_different(twin: Any, other: Any) -> None:
    with pytest.warns(LabelWarning, match=r"^dataset 'd': .* are counted as different$"):
        report = evaluate(VECTORS, [twin, other, "b", "b"], ["d"] * 4)
    assert report.counts.queries_without_positive == 2
    with pytest.warns(LabelWarning, match=r"^dataset 'd': .* are counted as different$"):
        evaluate(VECTORS, [other] * 4, ["d"] * 4, gallery=(VECTORS, [twin, twin, other, other], ["d"] * 4))
    if str(twin) != str(other):
        with pytest.warns(LabelWarning, match=r"^datasets: .* are counted as different$"):
            evaluate(VECTORS, ["x"] * 4, [twin, twin, other, other])


def test_labels_that_differ_in_more_are_not_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(VECTORS, ["a", "a", "1", "10"], ["d"] * 4)
        evaluate(VECTORS, ["a", "a", "A", "A"], ["d", "d", "e", "e"])
        evaluate(VECTORS, [("a", 1), ("a", 1), ("A", 1), ("A", 1)], ["d"] * 4)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda t: t.to_sparse(), "got a sparse tensor; give a dense one"),
        (lambda t: t.to_sparse_csr() if t.ndim == 2 else t.to_sparse(), "got a sparse tensor"),
        (lambda t: t.to("meta"), "got a meta tensor; give one that holds numbers"),
        (lambda t: torch.nested.nested_tensor([t[:1], t[1:]]), "got a nested tensor; give a dense one"),
        (lambda t: np.ma.masked_array(t.numpy(), t.numpy() > 0.5), "got a masked array; fill or drop"),
        (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "got a quantised tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*prototype")
@pytest.mark.filterwarnings("ignore:.*Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*:DeprecationWarning")
def test_unusual_tensors_are_refused_in_one_line(tensor: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^vectors: {message}"):
        evaluate(tensor(VECTORS), ["a", "a", "b", "b"], ["d"] * 4)
    with pytest.raises(UserError, match=f"^labels: {message}"):
        evaluate(VECTORS, tensor(torch.tensor([0.0, 0.0, 1.0, 1.0])), ["d"] * 4)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
def test_queries_that_find_themselves_are_warned_of(distance: str) -> None:
    """Without ids, a gallery that holds the queries makes every nearest neighbour right."""
    vectors = np.random.default_rng(0).uniform(-1, 1, size=(12, 7))
    labels, datasets, ids = list("abcabcabcabc"), ["d"] * 12, list(range(12))
    options: dict[str, Any] = {"distance": distance, "resamples": 1}
    with pytest.warns(CopyWarning, match="12 of 12 queries have the same vector as a gallery item: .* give ids"):
        assert evaluate(vectors, labels, datasets, (vectors, labels, datasets), **options).unified["recall@1"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = evaluate(vectors, labels, datasets, **options).unified
        assert (
            evaluate(vectors, labels, datasets, (vectors, labels, datasets, ids), ids=ids, **options).unified == alone
        )
        # A few copies are usual.
        evaluate(vectors[:6], labels[:6], datasets[:6], (vectors[4:], labels[4:], datasets[4:]), **options)
