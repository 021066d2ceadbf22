"""Training is compared with the frozen backbone on the same queries."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_runs import options_file, read_json, unimetric
from unimetric.training.baseline import comparison_lines


def test_the_frozen_backbone_is_measured_on_the_same_queries(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1}, evaluation={"baseline": True})
    run = tmp_path / "run"
    assert unimetric("train", *sources, "--out", run, "--config", options) == 0
    printed = capsys.readouterr()
    assert printed.out.index("frozen backbone") < printed.out.index("puma")
    assert "Training changed Recall@1 by" in printed.err
    one = read_json(run / "metrics.json")

    evaluated = tmp_path / "evaluated"
    frozen = ["--model.method", "frozen", "--model.options", "{}"]
    assert (
        unimetric(
            "evaluate",
            *frozen,
            "--out",
            evaluated,
            "--config",
            options,
            "--data.sources",
            f"[{','.join(map(str, sources))}]",
        )
        == 0
    )
    expected = read_json(evaluated / "metrics.json")
    difference = one["baseline"]["difference"]
    for part in ("harmonic", "unified"):
        assert one["baseline"]["frozen"][part] == expected[part]
        change = one[part]["recall@1"] - expected[part]["recall@1"]
        assert difference[part]["difference"] == pytest.approx(change, abs=1e-12)
        assert difference[part]["low"] <= change <= difference[part]["high"]
    for name, scores in expected["separate"].items():
        change = one["separate"][name]["recall@1"] - scores["recall@1"]
        assert difference["separate"][name]["difference"] == pytest.approx(change, abs=1e-12)


def test_it_can_be_turned_off(sources: list[Path], tmp_path: Path) -> None:
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    assert "baseline" not in read_json(tmp_path / "run/metrics.json")


def test_a_dataset_that_got_worse_is_a_warning() -> None:
    better = {"difference": 0.1, "low": 0.05, "high": 0.15, "probability": 1.0}
    worse = {"difference": -0.02, "low": -0.04, "high": 0.01, "probability": 0.2}
    difference = {"separate": {"birds": better, "cars": worse}, "harmonic": better, "unified": better}
    lines = [*comparison_lines({"difference": difference})]
    assert [warning for _, warning in lines] == [False, True]
    assert "+10.0 [+5.0, +15.0] harmonic" in lines[0][0]
    assert "'cars' got worse" in lines[1][0]
    assert "-2.0 [-4.0, +1.0]" in lines[1][0]
