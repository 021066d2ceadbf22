"""Distances that embeddings moved: against a plain computation, and for moves whose effect is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unimetric.data.catalog import Item
from unimetric.geometry import PoincareBall, Sphere
from unimetric.training.drift import NEIGHBOURS, compare_embeddings, describe_drift

ITEMS = [Item(Path(f"{number}.png"), f"c{number % 6}", f"d{number % 2}") for number in range(48)]


def embeddings(seed: int, noise: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(6, 8))
    vectors = centres[[number % 6 for number in range(48)]] + noise * random.normal(size=(48, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearest(query: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    similarity = query.astype(np.float64) @ gallery.T.astype(np.float64)
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1)[:, :k]


def test_what_did_not_move() -> None:
    vectors = embeddings(1)
    drift = compare_embeddings(vectors, vectors, ITEMS, Sphere())
    assert drift["neighbours_kept"] == 1 and not drift["reindex"]
    assert drift["cosine"]["mean"] == pytest.approx(1) and len(set(drift["recall_at_1"].values())) == 1


def test_against_a_plain_computation() -> None:
    old, new = embeddings(1), embeddings(2)
    drift = compare_embeddings(old, new, ITEMS, Sphere())
    before, after = nearest(old, old, NEIGHBOURS), nearest(new, new, NEIGHBOURS)
    kept = [len({*one} & {*other}) / NEIGHBOURS for one, other in zip(before.tolist(), after.tolist(), strict=True)]
    assert drift["neighbours_kept"] == pytest.approx(np.mean(kept))
    assert drift["cosine"]["mean"] == pytest.approx((old * new).sum(1).mean(), abs=1e-6)
    for name, query, gallery in [("old", old, old), ("new", new, new), ("new_in_old", new, old)]:
        recalls = []
        for dataset in (0, 1):
            rows = np.arange(dataset, 48, 2)
            found = rows[nearest(query[rows], gallery[rows], 1)[:, 0]]
            recalls.append(np.mean(found % 6 == rows % 6))
        expected = 2 / (1 / recalls[0] + 1 / recalls[1])
        assert drift["recall_at_1"][name] == pytest.approx(expected), name


def test_a_turn_keeps_all_neighbours_and_makes_an_old_index_useless() -> None:
    old = embeddings(1, noise=0.1)
    new = np.roll(old, 1, axis=1)
    drift = compare_embeddings(old, new, ITEMS, Sphere())
    assert drift["neighbours_kept"] == 1 and drift["recall_at_1"]["old"] == drift["recall_at_1"]["new"]
    assert drift["reindex"]
    text = " ".join(describe_drift({"measured_on": "here", "images": 48, **drift}))
    assert "100.0% of the 10 nearest neighbours" in text and "Rebuild old indexes" in text


def test_without_two_images_of_a_class_reindexing_is_advised() -> None:
    items = [Item(Path(f"{number}.png"), f"c{number}", "d") for number in range(48)]
    drift = compare_embeddings(embeddings(1), embeddings(1), items, Sphere())
    assert drift["recall_at_1"] == {"old": None, "new": None, "new_in_old": None} and drift["reindex"]


def test_in_the_ball() -> None:
    points = 0.4 * embeddings(1)
    drift = compare_embeddings(points, points, ITEMS, PoincareBall())
    assert drift["neighbours_kept"] == 1 and not drift["reindex"]
