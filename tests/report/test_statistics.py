"""Bootstrap and confusion against closed forms and brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimetric.report.statistics import (
    bootstrap_harmonic_means,
    bootstrap_means,
    domain_confusion,
    harmonic_mean,
    interval,
    share_above,
)


def test_resampled_means_of_hits_are_binomial() -> None:
    hits = np.array([1.0] * 30 + [0.0] * 70)
    means = bootstrap_means(hits, 20_000)
    assert means.mean() == pytest.approx(0.3, abs=0.002)
    assert means.std() == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.02)
    low, high = interval(means)
    assert low == pytest.approx(0.21, abs=0.011)
    assert high == pytest.approx(0.39, abs=0.011)


def test_the_bootstrap_of_few_values_is_the_exact_distribution() -> None:
    values = np.array([0.0, 0.25, 1.0])
    exact = [np.mean(drawn) for drawn in product(values, repeat=3)]
    means = bootstrap_means(values, 50_000)
    for mean in set(exact):
        share = np.isclose(exact, mean).mean()
        assert np.isclose(means, mean).mean() == pytest.approx(share, abs=0.01)


def test_columns_are_drawn_together() -> None:
    hits = np.array([1.0, 0.0] * 20)
    means = bootstrap_means(np.stack([hits, 1 - hits, hits], axis=1))
    assert means[:, 0] + means[:, 1] == pytest.approx(1)
    assert np.array_equal(means[:, 0], means[:, 2])


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40))
def test_an_interval_holds_the_mean_and_stays_within_the_range(values: list[float]) -> None:
    low, high = interval(bootstrap_means(np.array(values), 500))
    assert 0 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= 1


def test_harmonic_mean() -> None:
    assert harmonic_mean(np.array([[0.5, 1.0], [0.0, 1.0]])) == pytest.approx([2 / 3, 0.0])
    same = bootstrap_harmonic_means([np.ones(5), np.full(9, 0.5)])
    assert same == pytest.approx(2 / 3)


def test_probability_of_better() -> None:
    means = np.array([[0.1, 0.2], [0.2, 0.1], [0.1, 0.2], [0.1, 0.1]])
    assert share_above(means) == 0.625
    equal = np.tile([[0.0, 0.0], [1.0, 1.0]], (10, 1))
    assert share_above(bootstrap_means(equal)) == 0.5
    # Three of 100 queries got better, none worse: P is 1 less half of the chance to draw none of them.
    pairs = np.array([[0.0, 1.0]] * 3 + [[1.0, 1.0]] * 97)
    assert share_above(bootstrap_means(pairs, 50_000)) == pytest.approx(1 - 0.97**100 / 2, abs=0.003)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=30))
def test_confusion_counts_pairs(pairs: list[tuple[str, str]]) -> None:
    shares, queries = domain_confusion([one for one, _ in pairs], [other for _, other in pairs], "abcd")
    for row, name in enumerate("abcd"):
        own = [other for one, other in pairs if one == name]
        assert queries[row] == len(own)
        for column, other in enumerate("abcd"):
            assert shares[row, column] == pytest.approx(own.count(other) / max(1, len(own)))
