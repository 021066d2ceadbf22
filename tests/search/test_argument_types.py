"""Arguments of another type are refused at the door, in one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_toys import FP32

from unimetric.errors import ArgumentError, UserError
from unimetric.evaluation import evaluate
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.items import NewItem

VECTORS = np.eye(4, dtype=np.float32)
CALLS: dict[str, tuple[Callable[[Any, Any], object], list[object], str]] = {
    "encode": (lambda index, bad: index.embedder.encode(bad), [None, 5, b"JPEG", {"a": 1}], "images is of type"),
    "encode items": (lambda index, bad: index.embedder.encode([bad]), [None, 5], "images holds a"),
    "encode_batches": (lambda index, bad: list(index.embedder.encode_batches(bad)), [None, 5], "images is of type"),
    "batch_size": (
        lambda index, bad: index.embedder.encode([], batch_size=bad),
        [None, "4", 2.5, True],
        "batch_size is of type",
    ),
    "precision": (lambda index, bad: index.embedder.encode([], precision=bad), [None, 16], "precision is of type"),
    "size": (
        lambda index, bad: index.embedder.shortened(bad),
        [None, "8", 8.0],
        "size is of type .*: give a whole number",
    ),
    "from_pretrained": (lambda index, bad: Embedder.from_pretrained(bad), [None, 5, ["x"]], "path is of type"),
    "image_size": (lambda index, bad: Embedder.from_pretrained("x", image_size=bad), ["224", 2.5], "image_size is of"),
    "open": (lambda index, bad: SearchIndex.open(bad), [None, 5, {}], "db is of type .*: give a path"),
    "create": (lambda index, bad: SearchIndex.create("x", bad), [None, 5], "model is of type"),
    "search": (lambda index, bad: index.search(bad), [None, 5, b"JPEG"], "images is of type"),
    "k": (lambda index, bad: index.search([], bad), [None, "5", 5.0], "k is"),
    "datasets": (lambda index, bad: index.search([], datasets=bad), [5, [None], [[1]], {1}], "datasets is of type"),
    "where": (lambda index, bad: index.search([], where=bad), [5, ["x"]], "where is of type .*: give a text"),
    "vectors": (lambda index, bad: index.search_vectors(bad), [None, "x", [["x"]]], "vectors are"),
    "ids": (lambda index, bad: index.search_together(ids=bad), [None, "abc", 5], "ids is of type .*: give a list"),
    "delete": (lambda index, bad: index.delete(ids=bad), ["abc", 5], "ids is of type"),
    "an id to delete": (lambda index, bad: index.delete(ids=["x", bad]), [1, None, b"x"], "an entry of ids is of type"),
    "an id to search": (lambda index, bad: index.search_together(ids=(bad,)), [1, None], "an entry of ids is of type"),
    "an item": (lambda index, bad: index.search_item(bad), [1, None], "id is of type"),
    "a flag": (lambda index, bad: index.search([], exact=bad), [None, "no", 1], "exact is of type .*: give True or"),
    "a flag of items": (lambda index, bad: index.search_item("x", group_copies=bad), ["no", 0], "group_copies is of"),
    "id": (lambda index, bad: index.item(bad), [None, 5], "id is of type"),
    "add": (lambda index, bad: index.add(bad), [None, 5], "items is of type"),
    "add items": (lambda index, bad: index.add([bad]), [None, "a.png", {"image": "a.png"}], "give a NewItem"),
    "n": (lambda index, bad: index.sample(bad), [None, "2", 2.5], "n is of type"),
    "order": (lambda index, bad: index.sample(2, order=bad), ["price"], "order is of type str: give an Order"),
    "seed": (lambda index, bad: index.sample(2, bad), [-1], "seed -1: use 0 or more"),
    "embedder": (
        lambda index, bad: SearchIndex.open(index._store.place, embedder=bad),
        ["x"],
        "embedder is of type str",
    ),
    "evaluate": (lambda index, bad: evaluate(bad, "aabb", ["d"] * 4), [None, [[1.0]]], "vectors: got"),
    "distance": (
        lambda index, bad: evaluate(VECTORS, [1] * 4, ["d"] * 4, distance=bad),
        [None, VECTORS],
        "distance is of",
    ),
    "curvature": (
        lambda index, bad: evaluate(VECTORS, [1] * 4, ["d"] * 4, distance="poincare", curvature=bad),
        [None, "1", torch.ones(2)],
        "curvature is of type",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_types(name: str, catalogue: Path, embedder: Embedder) -> None:
    call, values, message = CALLS[name]
    with SearchIndex.open(catalogue, embedder=embedder, device=FP32) as index:
        for bad in values:
            with pytest.raises(UserError, match=message) as caught:
                call(index, bad)
            assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("field", "bad"),
    [("image", "a.png"), ("image", None), ("dataset", None), ("label", 3), ("path", Path("x")), ("metadata", [1])],
)
def test_new_items(field: str, bad: object) -> None:
    fields: dict[str, Any] = {"image": Path("a.png"), "dataset": "hats", field: bad}
    with pytest.raises(ArgumentError, match=f"{field} is of type {type(bad).__name__}: give "):
        NewItem(**fields)


def test_numbers_of_numpy_and_no_images(index: SearchIndex, images: Path) -> None:
    picture = images / "hats/c0/0.png"
    assert index.search([]) == []
    assert len(index.search(picture, np.int64(2))[0]) == 2
    assert len(index.sample(np.int32(2), np.int64(1))) == 2  # type: ignore[arg-type]
    assert index.embedder.encode(picture, batch_size=np.int64(3)).shape == (1, 16)
    assert [len(vectors) for vectors, _ in index.embedder.encode_batches(str(picture))] == [1]
