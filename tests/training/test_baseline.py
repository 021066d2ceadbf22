"""Training is compared with the frozen backbone on the same queries, which is measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toy_runs import make_images, options_file, read_json, unimetric
from unimetric.evaluation.evaluate_split import Evaluator
from unimetric.training import baseline
from unimetric.training.baseline import comparison_lines


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the methods that are measured from now on."""
    names: list[str] = []
    original = Evaluator.__call__

    def measure(self: Evaluator, embedder: Any, *arguments: Any) -> Any:
        names.append(embedder.method_name)
        return original(self, embedder, *arguments)

    monkeypatch.setattr(Evaluator, "__call__", measure)
    return names


def test_the_frozen_backbone_is_measured_once(
    sources: list[Path],
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = measured(monkeypatch)
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1}, evaluation={"baseline": True})
    first, second = tmp_path / "first", tmp_path / "second"
    assert unimetric("train", *sources, "--out", first, "--config", options) == 0
    assert names == ["puma", "frozen"]
    printed = capsys.readouterr()
    assert printed.out.index("frozen backbone") < printed.out.index("puma")
    assert "Training changed Recall@1 by" in printed.err
    assert unimetric("train", *sources, "--out", second, "--config", options) == 0
    assert names == ["puma", "frozen", "puma"]
    one, other = (read_json(run / "metrics.json") for run in (first, second))
    assert one["baseline"] == other["baseline"]

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


def test_other_images_or_a_damaged_file_are_measured_again(
    sources: list[Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = measured(monkeypatch)
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1}, evaluation={"baseline": True})
    assert unimetric("train", sources[0], "--out", tmp_path / "0", "--config", options) == 0
    (kept,) = cache.rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert unimetric("train", sources[0], "--out", tmp_path / "1", "--config", options) == 0
    with np.load(kept, allow_pickle=False) as file:
        assert "metrics" in file
    assert unimetric("train", sources[1], "--out", tmp_path / "2", "--config", options) == 0
    assert names == ["puma", "frozen"] * 3


def test_another_file_behind_boxes_or_other_code_is_measured_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = measured(monkeypatch)
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1}, evaluation={"baseline": True})
    pictures = sorted(make_images(tmp_path / "pictures").glob("*/*.png"))
    lines = [f"{path},{path.parent.name},1,1,20,20" for path in pictures]
    manifest = tmp_path / "boxes.csv"
    manifest.write_text("\n".join(["path,label,x,y,width,height", *lines]) + "\n")
    for number, changed in enumerate(("nothing", "nothing", "file", "code")):
        if changed == "file":
            Image.new("RGB", (40, 40), "red").save(pictures[-1])
        if changed == "code":
            monkeypatch.setattr(baseline, "code_version", lambda: {"version": "next", "sha256": "0"})
        assert unimetric("train", manifest, "--out", tmp_path / str(number), "--config", options) == 0
    assert names == ["puma", "frozen", "puma", "puma", "frozen", "puma", "frozen"]


def test_it_can_be_turned_off(sources: list[Path], tmp_path: Path, cache: Path) -> None:
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    assert "baseline" not in read_json(tmp_path / "run/metrics.json")
    assert not cache.exists() or not [*cache.rglob("*.npz")]


def test_a_dataset_that_got_worse_is_a_warning() -> None:
    better = {"difference": 0.1, "low": 0.05, "high": 0.15, "probability": 1.0}
    worse = {"difference": -0.02, "low": -0.04, "high": 0.01, "probability": 0.2}
    difference = {"separate": {"birds": better, "cars": worse}, "harmonic": better, "unified": better}
    lines = [*comparison_lines({"difference": difference})]
    assert [warning for _, warning in lines] == [False, True]
    assert "+10.0 [+5.0, +15.0] harmonic" in lines[0][0]
    assert "'cars' got worse" in lines[1][0]
    assert "-2.0 [-4.0, +1.0]" in lines[1][0]
