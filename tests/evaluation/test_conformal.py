"""Sets with a promised probability: the limit against its definition, and the coverage that follows from it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.conformal import FLOOR_WEIGHT, calibrate_sets, queries_needed, set_limit, shortfall
from unimetric.evaluation import evaluate

levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])
similarities = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=120)


def limit(genuine: np.ndarray, impostors: np.ndarray, level: float, delta: float | None = None) -> float | None:
    sets = calibrate_sets(genuine, impostors, gallery=len(genuine), perfect=1.0)
    return set_limit(sets.queries, sets.ranks, sets.shortfalls, level, delta)


@given(genuine=similarities, seed=st.integers(0, 99), level=levels)
def test_the_limit_is_the_quantile_of_the_definition(genuine: list[float], seed: int, level: float) -> None:
    own = np.array(genuine)
    others = np.random.default_rng(seed).uniform(-1, 1, len(own))
    values = sorted(max(max(a, b) - a, FLOOR_WEIGHT * (1 - a)) for a, b in zip(own, others, strict=True))
    place = math.ceil((len(own) + 1) * Fraction(str(level)))
    expected = values[place - 1] if place <= len(values) else None
    found = limit(own, others, level)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-12)
    assert (len(own) >= queries_needed(level)) == (expected is not None)


@settings(max_examples=30)
@given(seed=st.integers(0, 9999), count=st.integers(20, 90), level=st.sampled_from([0.8, 0.9, 0.95]))
def test_each_in_turn_is_covered_as_promised(seed: int, count: int, level: float) -> None:
    # Of n + 1 exchangeable queries each is as likely to be the new one, so this is the probability itself.
    generator = np.random.default_rng(seed)
    genuine, impostors = generator.uniform(-1, 1, (2, count))
    covered = 0
    for new in range(count):
        found = limit(np.delete(genuine, new), np.delete(impostors, new), level)
        own = shortfall(genuine[new : new + 1], max(genuine[new], impostors[new]), 1.0)[0]
        covered += found is not None and own <= found + 1e-12
        if found is None:
            return
    assert level <= covered / count < level + 1 / count + 1e-9


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("queries", [30, 59, 100, 128])
def test_the_rank_with_delta_is_the_largest_that_the_binomial_allows(queries: int, level: float, delta: float) -> None:
    miss = 1 - Fraction(str(level))

    def tail(rank: int) -> Fraction:
        terms = (math.comb(queries, i) * miss**i * (1 - miss) ** (queries - i) for i in range(rank))
        return sum(terms, Fraction(0))

    largest = max(rank for rank in range(queries) if tail(rank) <= delta)
    shortfalls = np.arange(queries, 0, -1) / queries
    ranks = range(1, queries + 1)
    found = set_limit(queries, list(ranks), shortfalls.tolist(), level, delta)
    assert found == (None if largest == 0 else shortfalls[largest - 1])
    assert (queries >= queries_needed(level, delta)) == (largest > 0)


@pytest.mark.parametrize(("level", "delta"), [(0.5, 0.5), (0.5, 0.25), (0.5, 0.125), (0.95, 0.05), (0.99, 0.001)])
def test_as_many_queries_as_are_needed_are_enough(level: float, delta: float) -> None:
    needed = queries_needed(level, delta)
    assert set_limit(needed, [1], [0.3], level, delta) == 0.3
    assert set_limit(needed - 2, [1], [0.3], level, delta) is None


def test_with_delta_few_calibrations_fall_short() -> None:
    # Shortfalls uniform from 0 to 0.4: the coverage of a limit is the limit / 0.4.
    generator = np.random.default_rng(0)
    coverage = []
    for _ in range(1000):
        genuine = generator.uniform(0, 1, 200)
        found = limit(genuine, np.full(200, -1.0), 0.9, delta=0.1)
        assert found is not None
        coverage.append(found / FLOOR_WEIGHT)
    short = np.mean(np.array(coverage) < 0.9)
    assert 0.03 < short <= 0.1 + 3 * math.sqrt(0.09 / 1000)


def test_many_queries_keep_few_ranks_and_the_promise() -> None:
    genuine = np.linspace(0, 1, 50_000)
    sets = calibrate_sets(genuine, np.full(len(genuine), np.nan), gallery=7, perfect=1.0)
    assert (sets.queries, sets.gallery) == (50_000, 7)
    assert len(sets.ranks) < 250
    found = set_limit(sets.queries, sets.ranks, sets.shortfalls, 0.95)
    assert found is not None
    covered = np.mean(shortfall(genuine, genuine, 1.0) <= found)
    assert 0.95 <= covered < 0.9526


def test_a_query_without_a_positive_is_no_calibration_query() -> None:
    sets = calibrate_sets(np.full(3, np.nan), np.zeros(3), gallery=9, perfect=1.0)
    assert (sets.queries, sets.ranks, sets.shortfalls) == (0, (), ())
    assert set_limit(0, (), (), 0.5) is None


@pytest.mark.parametrize(("distance", "perfect"), [("cosine", 1.0), ("euclidean", 0.0), ("poincare", 0.0)])
def test_a_report_has_the_sets_of_every_gallery(distance: str, perfect: float) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 4)) / 4
    labels, datasets = [row % 5 for row in range(60)], ["a" if row < 40 else "b" for row in range(60)]
    report = evaluate(vectors, labels, datasets, distance=distance, resamples=2)
    plain = report.to_dict()["thresholds"]
    for name, rows in {"a": slice(0, 40), "b": slice(40, 60)}.items():
        found = report.per_query.separate
        own, other = found.best_positive[rows], found.best_negative[rows]
        sets = plain["separate"][name]["sets"]
        assert (sets["queries"], sets["gallery"]) == (len(own), len(own))
        assert sets["shortfalls"][0] == pytest.approx(shortfall(own, np.fmax(own, other), perfect).max())
    assert plain["unified"]["sets"]["gallery"] == 60
