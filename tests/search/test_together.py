"""Several pictures as one query, compared with the mean of the similarities to each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from search_toys import FP32, make_model

from unimetric import UserError
from unimetric.geometry import PoincareBall
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.items import ItemNotFoundError, NewItem


@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_means(index: SearchIndex, images: Path, exact: bool) -> None:
    pictures = sorted(images.glob("*/*/*.png"))[:3]
    vectors = index.embedder.encode(pictures, precision="fp32")
    alone = [{match.id: match.score for match in index.search_vectors(vector, 100)[0]} for vector in vectors]
    found = index.search_together(vectors, k=100, exact=exact)
    assert len(found) == 24
    for match in found:
        assert match.score == pytest.approx(np.mean([scores[match.id] for scores in alone]), abs=1e-5)
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
    assert all(match.is_match == (match.confidence >= 0.5) for match in found)


def test_items_and_images_together(index: SearchIndex, images: Path) -> None:
    first, second = index.sample(2, seed=3)
    picture = index.embedder.encode(Path(first.path), precision="fp32")
    found = index.search_together(picture, [second.id], k=100)
    assert second.id not in {match.id for match in found}
    assert len(found) == 23
    both = index.search_together(ids=[first.id, second.id], k=100)
    assert {first.id, second.id}.isdisjoint(match.id for match in both)
    rest = [match for match in found if match.id != first.id]
    assert [match.id for match in both] == [match.id for match in rest]


def test_the_same_picture_twice_is_one(index: SearchIndex, images: Path) -> None:
    vector = index.embedder.encode(next(images.glob("*/*/*.png")), precision="fp32")
    once, twice = index.search_vectors(vector, 24)[0], index.search_together(np.concatenate([vector, vector]), k=24)
    assert [match.id for match in twice] == [match.id for match in once]
    assert [match.score for match in twice] == pytest.approx([match.score for match in once], abs=1e-5)
    assert index.search_together(vector, k=24) == once


def test_filters_hold(index: SearchIndex) -> None:
    ids = [item.id for item in index.sample(3, seed=1)]
    found = index.search_together(ids=ids, k=5, datasets=["hats"], where="price < 20")
    assert 0 < len(found) <= 5
    assert all(match.dataset == "hats" and match.metadata["price"] < 20 for match in found)


def test_nothing_opposite_and_unknown(index: SearchIndex) -> None:
    vector = np.ones((1, index.embedding_size), np.float32)
    with pytest.raises(UserError, match="give vectors or ids"):
        index.search_together()
    with pytest.raises(UserError, match="as different as can be"):
        index.search_together(np.concatenate([vector, -vector]))
    with pytest.raises(ItemNotFoundError):
        index.search_together(ids=["0" * 32])


def test_in_hyperbolic_space(images: Path, tmp_path: Path) -> None:
    """The point between two is about as far from both, and nearer to them than to the others on average."""
    model = make_model(tmp_path / "model", geometry=PoincareBall())
    embedder = Embedder.from_pretrained(model)
    pictures = sorted(images.glob("*/*/*.png"))
    with SearchIndex.create(tmp_path / "db", model, embedder=embedder, device=FP32) as index:
        index.add([NewItem(path, "set", path=str(number)) for number, path in enumerate(pictures)])
        vectors = embedder.encode([pictures[0], pictures[5]], precision="fp32")
        found = {match.path: match.score for match in index.search_together(vectors, k=24)}
        assert found["0"] == pytest.approx(found["5"], abs=1e-3)
        alone = index.search_vectors(vectors, 24)
        apart = next(match.score for match in alone[0] if match.path == "5")
        assert found["0"] >= apart
