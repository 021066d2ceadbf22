"""Scores in float64: bit-equal however they are reached, exactly 1 for equal vectors, ties by id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import store

from properties import examples
from unimetric.search import SearchIndex
from unimetric.search.scoring import best_first, cosines

FillIndex = Callable[..., SearchIndex]


@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(60), deadline=None)
def test_a_score_depends_on_the_two_vectors_alone(size: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, size)).astype(np.float32)
    query = rows[random.integers(count)] if seed % 2 else random.normal(size=size).astype(np.float32)
    together = cosines(query, rows)
    assert together.tolist() == [float(cosines(query, rows[place : place + 1])[0]) for place in range(count)]
    assert together[::-1].tolist() == cosines(query, rows[::-1]).tolist()
    wide = rows.astype(np.float64) @ query.astype(np.float64)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(query.astype(np.float64))
    np.testing.assert_allclose(together, wide / lengths, rtol=0, atol=1e-14)


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from([1e-18, 1.0, 1e15]))
@settings(max_examples=examples(60), deadline=None)
def test_an_equal_vector_scores_exactly_one(size: int, seed: int, scale: float) -> None:
    vector = (scale * np.random.default_rng(seed).normal(size=size)).astype(np.float32)
    assert cosines(vector, np.stack([vector, -vector])).tolist() == [1.0, -1.0]


def test_rows_without_a_direction() -> None:
    rows = np.array([[0, 0], [np.nan, 1], [np.inf, 1], [2, 0]], np.float32)
    assert cosines(np.array([1, 0], np.float32), rows).tolist() == [0.0, -1.0, -1.0, 1.0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 30), st.randoms(use_true_random=False))
def test_order_is_that_of_a_plain_sort(values: list[int], k: int, random) -> None:
    ids = [f"{number:03}" for number in range(len(values))]
    random.shuffle(ids)
    expected = sorted(range(len(values)), key=lambda place: (-values[place], ids[place]))[:k]
    assert best_first(np.array(values, np.float64), ids, k).tolist() == expected


@pytest.mark.parametrize("k", [1, 5, 30])
def test_of_many_equal_rows_the_lowest_ids_are_found(k: int, fill: FillIndex, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 16)).astype(np.float32)
    vectors[40:140] = vectors[7]
    with fill(tmp_path / "db", vectors) as index:
        (found,) = index.search_vectors(vectors[7], k)
        assert [match.id for match in found] == [f"id{row:06}" for row in [7, *range(40, 140)][:k]]
        assert {match.score for match in found} == {1.0}


def test_an_item_has_one_score_in_every_search(fill: FillIndex, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    vectors = random.normal(size=(300, 16)).astype(np.float32)
    queries = random.normal(size=(20, 16)).astype(np.float32)
    with fill(tmp_path / "db", vectors) as index:
        batch = index.search_vectors(queries, 10)
        store(index).delete_ids([f"id{row:06}" for row in range(100)])
        for query, found in zip(queries, batch, strict=True):
            assert index.search_vectors(query, 10, where="dataset = 'd'") == index.search_vectors(query, 10)
            left = {match.id: match.score for match in index.search_vectors(query, 200)[0]}
            assert all(left[match.id] == match.score for match in found if match.id in left)
