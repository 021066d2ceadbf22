"""``--strict``: a query whose class is nowhere else in the gallery stops a command before it begins to work."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_runs import make_images, options_file, read_json, unimetric


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Six classes; c5, which is measured on, has one image."""
    images = make_images(tmp_path / "alone", classes=6, images=4)
    for path in sorted((images / "c5").glob("*.png"))[1:]:
        path.unlink()
    return images


def test_training_stops_before_it_begins(alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_file(tmp_path / "options.yaml", training={"steps": 2})
    assert unimetric("train", alone, "--out", tmp_path / "run", "--config", options, "--strict") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "c5/0.png: the gallery holds no other image of its class 'c5'" in error
    assert "as of 1 of 9 queries" in error
    assert not (tmp_path / "run").exists()


def test_measuring_stops_or_counts(alone: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", run, "--data.sources", f"[{alone}]", "--out", tmp_path / "out"]
    assert unimetric(*command, "--strict") == 2
    assert "leave out --strict to count them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert unimetric(*command) == 0
    assert read_json(tmp_path / "out/metrics.json")["counts"]["queries_without_positive"] == 1
    assert "1 of them without a positive, skipped" in capsys.readouterr().out
    assert unimetric("report", tmp_path / "out") == 0
    assert "Queries without another image of their class" in (tmp_path / "out/report.html").read_text()


def test_nothing_is_trained_where_nothing_can_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "single", classes=6, images=1)
    options = options_file(tmp_path / "options.yaml", training={"steps": 2})
    assert unimetric("train", images, "--out", tmp_path / "run", "--config", options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "single/c3/0.png: the gallery holds no other image of its class" in error
    assert "as of 3 of 3 queries: add images of these classes" in error
    assert "--strict" not in error
    assert not (tmp_path / "run").exists()


def test_a_trained_model_is_saved_where_the_test_images_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "bad", classes=4, images=2)
    for label in ("c2", "c3"):
        (images / label / "1.png").write_bytes(b"")
    options = options_file(tmp_path / "options.yaml", training={"steps": 2})
    assert unimetric("train", images, "--out", tmp_path / "run", "--config", options) == 2
    assert f"the trained model is saved in {tmp_path / 'run/model'}" in capsys.readouterr().err
    assert not (tmp_path / "run/metrics.json").exists()
    for label in ("c2", "c3"):
        (images / label / "1.png").write_bytes((images / label / "0.png").read_bytes())
    assert unimetric("embed", tmp_path / "run", images, "--out", tmp_path / "v.parquet") == 0
    assert unimetric("train", "--resume", tmp_path / "run") == 0
    assert read_json(tmp_path / "run/metrics.json")["separate"]["bad"]["recall@1"] == 1
