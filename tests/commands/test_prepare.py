"""`unimetric prepare`, and the commands that read what it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from toy_runs import make_images, options_file, read_json, unimetric

FP32 = ["--device.precision", "fp32"]


def test_raw_cache_gives_the_same_run_and_the_same_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images", classes=4, images=4)
    (images / "c0/9.png").write_bytes(b"")
    cache = tmp_path / "cache"
    assert unimetric("prepare", images, "--out", cache, "--side", "40", "--format", "raw") == 0
    said = capsys.readouterr().err
    size = sum(file.stat().st_size for file in cache.glob("??/*"))
    assert "16 images written, 0 unchanged; 1 files skipped." in said
    assert f"{size:,} bytes on the disk" in said
    assert f"skipped {images / 'c0/9.png'}: empty file" in said
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1})
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    assert unimetric("train", images, "--config", options, "--out", plain) == 0
    assert unimetric("train", images, "--config", options, "--out", cached, "--data.cache", cache) == 0
    assert "1 of 17 images are not in the cache" in capsys.readouterr().err
    one, other = (read_json(run / "metrics.json") for run in (plain, cached))
    assert one["separate"] == other["separate"]
    for name, more in (("one", []), ("two", ["--cache", cache])):
        assert unimetric("embed", plain, images, "--out", tmp_path / f"{name}.npz", *FP32, *more) == 0
    with np.load(tmp_path / "one.npz") as first, np.load(tmp_path / "two.npz") as second:
        np.testing.assert_array_equal(first["vectors"], second["vectors"])
    capsys.readouterr()
    assert unimetric("train", "--resume", cached, "--data.cache", "null") == 2
    assert "--data.cache is None, but" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--out is missing"),
        (["--out", "cache", "--side", "0"], "--side is 0: use a whole number from 1"),
        (["--out", "cache", "--format", "gif"], "--format is 'gif': valid: jpeg, raw"),
        (["--out", "cache", "--workers", "257"], "--workers is 257: use auto, or 1 to 256"),
        (["--out", "cache", "--workers", "0"], "--workers is 0: use a whole number from 1 or auto"),
    ],
)
def test_mistakes_are_said_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_images(tmp_path / "images", classes=2, images=1)
    assert unimetric("prepare", images, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_nothing_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"")
    assert unimetric("prepare", tmp_path / "images", "--out", tmp_path / "cache") == 2
    assert "none of 1 images can be read" in capsys.readouterr().err


def test_a_cache_of_too_small_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images", classes=4, images=2)
    assert unimetric("prepare", images, "--out", tmp_path / "cache", "--side", "20") == 0
    options = options_file(tmp_path / "options.yaml")
    out = tmp_path / "run"
    assert unimetric("train", images, "--config", options, "--out", out, "--data.cache", tmp_path / "cache") == 2
    assert "an input of 32 is cut from 37; prepare another one with --side 37 or more" in capsys.readouterr().err
    assert not out.exists()
