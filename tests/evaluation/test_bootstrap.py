from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unimetric.errors import UserError
from unimetric.evaluation import paired_bootstrap
from unimetric.evaluation.statistics import Difference, harmonic_mean, percentile_interval, resampled_means


def drawn_one_by_one(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.array([values[generator.integers(len(values), size=len(values))].mean(axis=0) for _ in range(resamples)])


@settings(max_examples=30, deadline=None)
@example(queries=90_000, metrics=2, seed=3)  # so many that the resamples are drawn in several blocks
@given(queries=st.integers(1, 60), metrics=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_resamples_are_those_of_a_loop(queries: int, metrics: int, seed: int) -> None:
    values = np.random.default_rng(seed + 1).random((queries, metrics))
    means = resampled_means(values, 25, seed)
    np.testing.assert_allclose(means, drawn_one_by_one(values, 25, seed), rtol=0, atol=1e-7)


def test_resamples_follow_the_distribution_of_all_resamples() -> None:
    values = np.array([0.0, 0.25, 1.0])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=3)])
    means = resampled_means(values[:, None], 20_000, seed=5)[:, 0]
    expected, counts = np.unique(every, return_counts=True)
    for mean, share in zip(expected, counts / len(every), strict=True):
        assert np.isclose(means, mean, atol=1e-6).mean() == pytest.approx(share, abs=0.015)


def test_means_of_hits_are_exact() -> None:
    """So that resamples without a hit are zero, and ties between runs are ties."""
    hits = (np.arange(30) % 3 == 0).astype(float)[:, None]
    sums = resampled_means(hits, 500) * 30
    np.testing.assert_allclose(sums, np.rint(sums), rtol=0, atol=1e-12)
    assert resampled_means(hits[:2], 500).min() == 0


@pytest.mark.parametrize("value", [1.0, 0.0, 1 / 3, 0.1])
def test_one_value_for_all_has_no_width(value: float) -> None:
    assert (resampled_means(np.full((17, 1), value)) == value).all()


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        sample = (generator.random(120) < 0.7).astype(float)
        low, high = percentile_interval(resampled_means(sample[:, None], 300, trial)[:, 0])
        held += low <= 0.7 <= high
    assert 0.90 <= held / 300 <= 0.99


def test_the_harmonic_mean_of_a_zero_is_zero() -> None:
    assert harmonic_mean([0.5, 0.0]) == 0
    assert harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3)


def runs(seed: int, better: float = 0.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    first, second = {}, {}
    for name, queries in [("birds", 80), ("cars", 40)]:
        easy = generator.random(queries)
        second[name] = (easy < 0.6).astype(float)
        first[name] = (easy < 0.6 + better).astype(float)
    return first, second


def test_a_run_and_itself_cannot_be_told_apart() -> None:
    first, _ = runs(0)
    nothing = Difference(0.0, 0.0, 0.0, 0.5)
    same = paired_bootstrap(first, first)
    assert same.datasets == {"birds": nothing, "cars": nothing}
    assert same.harmonic == same.overall == nothing


def test_pairs_tell_apart_what_two_intervals_would_not() -> None:
    first, second = runs(1, better=0.06)
    comparison = paired_bootstrap(first, second)
    overall = comparison.overall
    assert overall.difference == pytest.approx(
        np.concatenate([*first.values()]).mean() - np.concatenate([*second.values()]).mean()
    )
    assert overall.probability > 0.95
    assert 0 <= overall.low < overall.difference < overall.high
    one, other = (
        resampled_means(np.concatenate([*run.values()])[:, None], seed=s)[:, 0] for s, run in enumerate([first, second])
    )
    low, high = percentile_interval(one - other)
    assert low < 0 < overall.high - overall.low < (high - low) / 2


def test_changing_sides_changes_the_sign() -> None:
    first, second = runs(2, better=0.02)
    forth, back = paired_bootstrap(first, second), paired_bootstrap(second, first)
    for one, other in [(forth.overall, back.overall), (forth.harmonic, back.harmonic)]:
        assert one.difference == -other.difference
        assert one.low == pytest.approx(-other.high)
        assert one.probability == pytest.approx(1 - other.probability)


def test_the_parts_of_a_comparison_are_those_of_its_datasets() -> None:
    first, second = runs(3, better=0.1)
    comparison = paired_bootstrap(first, second)
    means = [[run[name].mean() for name in run] for run in (first, second)]
    assert [part.difference for part in comparison.datasets.values()] == pytest.approx(np.subtract(*means).tolist())
    assert comparison.harmonic.difference == pytest.approx(harmonic_mean(means[0]) - harmonic_mean(means[1]))


def test_queries_without_a_positive_take_no_part() -> None:
    first, second = runs(4, better=0.05)
    longer = [{name: np.append(values, np.nan) for name, values in run.items()} for run in (first, second)]
    gone = {"flowers": np.array([np.nan])}
    assert paired_bootstrap(longer[0] | gone, longer[1] | gone) == paired_bootstrap(first, second)


ONE: Any = {"birds": np.ones(3)}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (ONE, {}, "dataset 'birds' was measured in one run only; measure both on the same datasets"),
        (
            ONE,
            {"birds": np.ones(4)},
            "dataset 'birds': 3 queries in one run, 4 in the other; measure both on the same images",
        ),
        (
            ONE,
            {"birds": np.array([1, np.nan, 1])},
            "dataset 'birds': query 1 could be scored in one run only; measure both with the same gallery",
        ),
        (
            {"birds": np.array([np.nan])},
            {"birds": np.array([np.nan])},
            "no query was scored in these runs; measure them on queries whose classes are in the gallery",
        ),
    ],
)
def test_runs_that_do_not_pair_are_refused(first: Any, second: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        paired_bootstrap(first, second)
    assert str(caught.value) == message
