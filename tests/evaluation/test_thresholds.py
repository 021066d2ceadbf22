from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from properties import examples
from unimetric.errors import UserError
from unimetric.evaluation.thresholds import Calibration, calibrate

# Few values, so that most scores occur more than once.
SCORE = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, math.nan])
QUERY = st.tuples(SCORE, SCORE)


def arrays(queries: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Genuine and impostor scores, and hits; ties go to the right answer."""
    genuine, impostors = np.array(queries, dtype=np.float64).reshape(-1, 2).T
    hits = np.where(np.isnan(genuine), np.nan, ~(genuine < impostors))
    return genuine, impostors, hits


def rates(queries: list[tuple[float, float]], threshold: float) -> tuple[float, float, float]:
    """False matches, false non-matches, identified: counted one by one."""
    genuine = [pair for pair in queries if not math.isnan(pair[0])]
    impostors = [wrong for _, wrong in queries if not math.isnan(wrong)]
    return (
        sum(wrong >= threshold for wrong in impostors) / len(impostors),
        sum(right < threshold for right, _ in genuine) / len(genuine),
        sum(right >= threshold and not right < wrong for right, wrong in genuine) / len(genuine),
    )


@settings(max_examples=examples(200))
@given(queries=st.lists(QUERY, min_size=1, max_size=60), wanted=st.floats(0.05, 0.95))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(queries: list[tuple[float, float]], wanted: float) -> None:
    calibration = calibrate(*arrays(queries), rates=[wanted])
    (point,) = calibration.operating_points
    impostors = [wrong for _, wrong in queries if not math.isnan(wrong)]
    assert calibration.impostors == len(impostors)
    if len(impostors) < 3 / wanted:
        assert point.threshold is None
        assert point.impostors_needed > len(impostors)
        return
    assert point.threshold is not None
    assert point.impostors_needed <= len(impostors)
    assert point.false_match_rate is not None
    assert point.false_match_rate <= wanted
    below = [score for pair in queries for score in pair if score < point.threshold]
    # The next lower score would let in too many.
    assert sum(wrong >= max(below) for wrong in impostors) / len(impostors) > wanted
    if calibration.genuine:
        assert (point.false_match_rate, point.false_non_match_rate, point.identified) == pytest.approx(
            rates(queries, point.threshold)
        )
    else:
        assert point.false_non_match_rate is None


@settings(max_examples=examples(200))
@given(queries=st.lists(QUERY, min_size=1, max_size=40))
def test_the_curve_and_the_equal_error_rate_are_counted(queries: list[tuple[float, float]]) -> None:
    calibration = calibrate(*arrays(queries))
    if not calibration.genuine or not calibration.impostors:
        assert calibration.roc is None
        assert calibration.equal_error_rate is None
        return
    assert calibration.roc is not None
    scores = sorted({score for pair in queries for score in pair if not math.isnan(score)})
    curve = [rates(queries, score)[:2] for score in scores]
    assert calibration.roc.thresholds == tuple(scores)
    found = zip(calibration.roc.false_match_rates, calibration.roc.false_non_match_rates, strict=True)
    assert np.array(list(found)) == pytest.approx(np.array(curve))
    gap = min(abs(match - other) for match, other in curve)
    equal = min((match + other) / 2 for match, other in curve if abs(match - other) <= gap + 1e-12)
    assert calibration.equal_error_rate == pytest.approx(equal)
    assert calibration.equal_error_threshold in scores


def scored(queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    genuine, impostors = generator.normal(0.7, 0.1, queries), generator.normal(0.5, 0.1, queries)
    return genuine, impostors, (genuine > impostors).astype(float)


def test_agrees_with_scikit_learn() -> None:
    genuine, impostors, hits = scored(5000)
    calibration = calibrate(genuine, impostors, hits)
    truth = np.repeat([1, 0], 5000)
    false, true, thresholds = roc_curve(truth, np.concatenate([genuine, impostors]), drop_intermediate=False)
    assert calibration.roc is not None
    at = {threshold: (f, 1 - t) for threshold, f, t in zip(thresholds, false, true, strict=True)}
    expected = np.array([at[threshold] for threshold in calibration.roc.thresholds])
    np.testing.assert_allclose(calibration.roc.false_match_rates, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(calibration.roc.false_non_match_rates, expected[:, 1], atol=1e-12)
    best = np.abs(false - (1 - true)).argmin()
    assert calibration.equal_error_rate == pytest.approx((false[best] + 1 - true[best]) / 2, abs=1e-12)
    # Two normal distributions, two deviations apart, cross where each has 15.87 % beyond.
    assert calibration.equal_error_rate == pytest.approx(0.1587, abs=0.01)
    assert calibration.equal_error_threshold == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("points", [2, 3, 10, 33])
def test_few_points_show_the_whole_curve(points: int) -> None:
    roc = calibrate(*scored(4000), points=points).roc
    assert roc is not None
    assert 2 <= len(roc.thresholds) <= points
    assert roc.false_match_rates[0] == 1
    assert roc.false_non_match_rates[0] == 0
    assert roc.false_match_rates[-1] <= 1 / 4000
    assert list(roc.thresholds) == sorted(roc.thresholds)
    if points == 33:
        steps = np.diff(roc.false_non_match_rates)
        assert steps.max() < 0.1
        assert sum(0 < rate <= 0.01 for rate in roc.false_match_rates) >= 3


def test_distances_calibrate_like_similarities() -> None:
    """Only the order of scores matters: minus a distance has other thresholds and the same rates."""
    genuine, impostors, hits = scored(3000)
    cosines, distances = calibrate(genuine, impostors, hits), calibrate(-np.exp(-genuine), -np.exp(-impostors), hits)
    assert cosines.equal_error_rate == distances.equal_error_rate
    for one, other in zip(cosines.operating_points, distances.operating_points, strict=True):
        assert (one.false_match_rate, one.false_non_match_rate, one.identified) == (
            other.false_match_rate,
            other.false_non_match_rate,
            other.identified,
        )
    assert distances.equal_error_threshold is not None
    assert distances.equal_error_threshold < 0


def test_too_few_impostors_are_told() -> None:
    points = calibrate(*scored(300)).operating_points
    assert [point.impostors_needed for point in points] == [30, 300, 3000, 30_000]
    assert [point.threshold is None for point in points] == [False, False, True, True]
    assert calibrate(*scored(299)).operating_points[1].threshold is None


def test_a_rate_is_not_lost_to_rounding() -> None:
    """0.29 * 100 is below 29, 29 / 100 is 0.29."""
    impostors = np.arange(100) / 100
    (point,) = calibrate(impostors + 0.3, impostors, np.ones(100), rates=[0.29]).operating_points
    assert point.false_match_rate == 0.29
    assert point.threshold == pytest.approx(0.705)


def test_all_impostors_at_the_top() -> None:
    """If even the highest score lets in too many, the threshold lies just above it."""
    ones = np.ones(40)
    (point,) = calibrate(ones, ones, ones, rates=[0.1]).operating_points
    assert point.threshold == math.nextafter(1, 2)
    assert (point.false_match_rate, point.false_non_match_rate, point.identified) == (0, 1, 0)


def test_nothing_to_calibrate() -> None:
    nothing = np.full(3, np.nan)
    calibration = calibrate(nothing, nothing, nothing)
    assert (calibration.genuine, calibration.impostors, calibration.roc) == (0, 0, None)
    plain = calibration.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"false-match rate: .*; give a number between 0 and 1, such as 0.01"):
        calibrate(*scored(10), rates=[rate])


def test_a_calibration_is_plain_json() -> None:
    calibration: Calibration = calibrate(*scored(3000))
    plain = calibration.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [
        "genuine",
        "impostors",
        "equal_error_rate",
        "equal_error_threshold",
        "operating_points",
        "roc",
        "answers",
        "sets",
        "consistency",
    ]
