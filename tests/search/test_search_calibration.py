"""Match or no match, and the confidence, from what a measurement says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from search_toys import FP32, thresholds

from unimetric.commands.index import ThresholdOptions, index_sources
from unimetric.errors import UserError
from unimetric.evaluation.thresholds import ABSENT_SHARE, calibrate
from unimetric.search import SearchIndex
from unimetric.search.calibration import POSSIBLE, STRONG, Calibration, read_calibration, strength_of

scores = st.lists(st.floats(-1, 1, width=32), min_size=40, max_size=80)


def measured(genuine: NDArray[np.float64], impostors: NDArray[np.float64]) -> Calibration:
    values = calibrate(genuine, impostors, np.where(genuine > impostors, 1.0, 0.0), rates=(0.1,)).to_dict()
    return Calibration.from_dict(json.loads(json.dumps({"unified": values, "separate": {}})))


@given(scores, st.integers(0, 2**31))
def test_confidence_grows_with_the_score(genuine: list[float], seed: int) -> None:
    values = np.array(genuine)
    calibration = measured(values, np.random.default_rng(seed).permutation(values))
    found = calibration.confidences(list(np.linspace(-2, 2, 41)), ["anything"] * 41)
    assert all(value is not None and 0 < value < 1 for value in found)
    assert found == sorted(found)


def test_confidence_is_the_share_of_right_answers() -> None:
    """On further queries, some of whose classes are absent, a confidence is kept to within the error of sampling."""
    rng = np.random.default_rng(0)

    def queries(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return rng.normal(0.6, 0.15, count), rng.normal(0.45, 0.1, count)

    calibration = measured(*queries(2000))
    genuine, impostors = queries(20_000)
    absent = rng.random(20_000) < ABSENT_SHARE
    answers = np.where(absent, impostors, np.maximum(genuine, impostors))
    right = ~absent & (genuine > impostors)
    confidence = np.array(calibration.confidences(list(answers), [""] * len(answers)))
    for low, high in [(0, POSSIBLE), (POSSIBLE, STRONG), (STRONG, 1)]:
        chosen = (confidence >= low) & (confidence < high)
        assert chosen.sum() > 500
        assert right[chosen].mean() == pytest.approx(confidence[chosen].mean(), abs=0.04)


def test_without_enough_queries_nothing_is_claimed() -> None:
    few = measured(np.linspace(0.5, 0.9, 20), np.linspace(0.1, 0.4, 20))
    assert few.confidences([0.9], [""]) == [None]
    assert strength_of(0.9, 1.0, None) is None
    assert strength_of(0.9999, 1.0, None) == "identical"
    # Equal scores, and scores that are the worse the higher they are, make no difference between answers.
    same = measured(np.full(40, 0.5), np.full(40, 0.5))
    assert same.confidences([0.1], [""]) == same.confidences([0.9], [""])
    worse = measured(np.linspace(0.1, 0.5, 40), np.concatenate([np.zeros(20), np.full(20, 0.9)]))
    assert worse.confidences([0.1], [""]) == worse.confidences([0.9], [""])


def test_thresholds_of_datasets() -> None:
    calibration = Calibration.from_dict(thresholds())
    assert calibration.threshold(0.01) == 0.9
    assert calibration.threshold(0.01, ["hats"]) == 0.5
    assert calibration.threshold(0.01, ["hats", "shoes"]) == 0.9
    assert calibration.threshold(0.01, ["gloves"]) == 0.9
    # Too few queries for a threshold of their own: that of all stands for it.
    assert calibration.separate["shoes"]["roc"] is None
    assert calibration.threshold(0.01, ["shoes"]) == 0.9
    assert calibration.confidences([0.9, 0.9], ["shoes", "gloves"]) == [0.95, 0.95]
    with pytest.raises(UserError, match=r"0\.05.*calibrated at 0\.1, 0\.01"):
        calibration.threshold(0.05)


@pytest.mark.parametrize("damage", [{}, {"unified": 3, "separate": {}}, {"unified": {"roc": None}, "separate": {}}])
def test_damaged_thresholds(damage: object, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"thresholds": damage}))
    with pytest.raises(UserError, match="measure the model again"):
        read_calibration(tmp_path / "metrics.json")


def test_is_match_by_the_confidence(index: SearchIndex) -> None:
    assert index.threshold_of() is None
    (everything,) = index.search_vectors(index.embedder.encode([index.sample(1)[0].path], precision="fp32"), 24)
    assert everything[0].strength == "identical"
    for match in everything[1:]:
        confidence = float(np.interp(match.score, [0.0, 0.5, 0.9], [0.1, 0.5, 0.95]))
        assert match.confidence == pytest.approx(confidence)
        assert match.strength == ("strong" if confidence >= 0.9 else "possible" if confidence >= 0.5 else "weak")
        assert match.is_match == (confidence >= 0.5)
    assert {"identical", "possible", "weak"} <= {match.strength for match in everything}


def test_the_same_picture_is_a_match_of_a_model_without_strong_answers(
    images: Path, model: Path, tmp_path: Path
) -> None:
    weak = thresholds()
    for gallery in (weak["unified"], *weak["separate"].values()):
        gallery["answers"] = {"scores": [0.0, 1.0], "right": [0.1, 0.3]}
    (tmp_path / "metrics.json").write_text(json.dumps({"thresholds": weak}))
    chosen = ThresholdOptions(metrics=str(tmp_path))
    index_sources(model, [str(images)], str(tmp_path / "db"), thresholds=chosen, device=FP32)
    with SearchIndex.open(tmp_path / "db", device=FP32) as index:
        ((first, *others),) = index.search(index.sample(1)[0].path, 24)
    assert (first.strength, first.is_match) == ("identical", True)
    assert {(match.strength, match.is_match) for match in others} == {("weak", False)}


def test_is_match_by_the_threshold_of_a_rate(catalogue: Path) -> None:
    with SearchIndex.open(catalogue, false_match_rate=0.01) as index:
        assert index.threshold_of() == 0.9
        (everything,) = index.search_vectors(index.embedder.encode([index.sample(1)[0].path], precision="fp32"), 24)
        assert any(match.is_match for match in everything)
        assert [match.is_match for match in everything] == [match.score >= 0.9 for match in everything]
        (hats,) = index.search_vectors(np.ones(16, np.float32), 24, datasets=["hats"])
        assert [match.is_match for match in hats] == [match.score >= 0.5 for match in hats]
        (shoes,) = index.search_vectors(np.ones(16, np.float32), 24, datasets=["shoes"])
        assert [match.is_match for match in shoes] == [match.score >= 0.9 for match in shoes]


def test_another_rate(catalogue: Path, model: Path, tmp_path: Path) -> None:
    with SearchIndex.open(catalogue, false_match_rate=0.1) as index:
        assert index.false_match_rate == 0.1
    with pytest.raises(UserError, match=r"false_match_rate is 0\.3"):
        SearchIndex.open(catalogue, false_match_rate=0.3)
    with pytest.raises(UserError, match="no calibrated thresholds"):
        SearchIndex.create(tmp_path / "db", model, false_match_rate=0.01, device=FP32)
    assert not (tmp_path / "db").exists()
