"""Match or no match, and the confidence, from what a measurement says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_toys import FP32, thresholds

from unimetric.errors import UserError
from unimetric.evaluation.thresholds import calibrate
from unimetric.search import SearchIndex
from unimetric.search.calibration import Calibration, read_calibration

scores = st.lists(st.floats(-1, 1, width=32), min_size=40, max_size=80)


def measured(genuine: list[float], impostors: list[float]) -> Calibration:
    values = calibrate(np.array(genuine), np.array(impostors), np.ones(len(genuine), bool), rates=(0.1,)).to_dict()
    return Calibration.from_dict(json.loads(json.dumps({"unified": values, "separate": {}})))


@given(scores, scores)
def test_confidence_is_the_share_of_impostors_below(genuine: list[float], impostors: list[float]) -> None:
    calibration = measured(genuine, impostors)
    curve = calibration.unified["roc"]
    previous = 0.0
    for threshold in curve["thresholds"]:
        confidence = calibration.confidence(threshold)
        assert confidence is not None
        share = sum(impostor < threshold for impostor in impostors) / len(impostors)
        limit = len(impostors) / (len(impostors) + 1)
        assert confidence == pytest.approx(min(share, limit), abs=1e-12)
        assert previous <= confidence + 1e-12
        previous = confidence
    assert calibration.confidence(-2) == 0
    assert calibration.confidence(2) == pytest.approx(limit)


def test_thresholds_of_datasets() -> None:
    calibration = Calibration.from_dict(thresholds())
    assert calibration.threshold(0.01) == 0.9
    assert calibration.threshold(0.01, ["hats"]) == 0.5
    assert calibration.threshold(0.01, ["hats", "shoes"]) == 0.9
    assert calibration.threshold(0.01, ["gloves"]) == 0.9
    # Too few queries for a threshold of their own: that of all stands for it.
    assert calibration.separate["shoes"]["roc"] is None
    assert calibration.threshold(0.01, ["shoes"]) == 0.9
    assert calibration.confidence(0.9, ["shoes"]) == calibration.confidence(0.9)
    with pytest.raises(UserError, match=r"0\.05.*calibrated at 0\.1, 0\.01"):
        calibration.threshold(0.05)


@pytest.mark.parametrize("damage", [{}, {"unified": 3, "separate": {}}, {"unified": {"roc": None}, "separate": {}}])
def test_damaged_thresholds(damage: object, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"thresholds": damage}))
    with pytest.raises(UserError, match="measure the model again"):
        read_calibration(tmp_path / "metrics.json")


def test_is_match_by_the_threshold(index: SearchIndex) -> None:
    assert index.threshold == 0.9
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
