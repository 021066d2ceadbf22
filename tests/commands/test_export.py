"""`unimetric export`: where the file goes, what it is checked on, and what is refused before any work."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from toy_runs import unimetric
from unimetric import Embedder
from unimetric.commands.export import _images
from unimetric.data.images import decode_image
from unimetric.data.transforms import EvaluationTransform

TORCH = ("--format", "torch")


def test_a_run_is_checked_on_its_own_images_and_a_file_never_replaced_unasked(
    run: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.pt2"
    out.write_bytes(b"old")
    assert unimetric("export", run, *TORCH, "--out", out) == 2
    assert "m.pt2 exists: add --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"old"
    assert unimetric("export", run, *TORCH, "--out", out, "--overwrite") == 0
    said = "".join(capsys.readouterr())
    assert "on 64 images" in said
    assert "noise" not in said
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]
    embedder = Embedder.from_pretrained(run)
    path = sorted(sources[0].glob("*/*.png"))[3]
    image = embedder.transform(decode_image(path))[None]
    module = torch.export.load(io.BytesIO(out.read_bytes())).module()
    expected = embedder.encode(path, precision="fp32")
    np.testing.assert_allclose(module(image).detach().numpy(), expected, atol=1e-5)


def test_without_data_noise_is_used_and_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "model", tmp_path / "new/model")
    assert unimetric("export", tmp_path / "new", *TORCH) == 0
    assert (tmp_path / "new/model.pt2").is_file()
    said = " ".join("".join(capsys.readouterr()).split())
    assert "64 of the images it was checked on are noise: no run's configuration" in said
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["sources"] = [str(tmp_path / "gone")]
    (tmp_path / "new/config.yaml").write_text(yaml.safe_dump(config))
    pixels, real, reason = _images(tmp_path / "new", EvaluationTransform(32, (0.5,) * 3, (0.5,) * 3))
    assert (pixels.shape, real) == ((64, 3, 32, 32), 0)
    assert "gone" in reason


def test_every_image_of_a_small_run_is_used(run: Path, sources: list[Path], tmp_path: Path) -> None:
    images = [sorted(folder.iterdir())[:4] for folder in sorted(sources[0].iterdir())[:4]]
    for path in (path for few in images for path in few):
        (tmp_path / "few" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "few" / path.parent.name / path.name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"sources": [str(tmp_path / "few")], "test_datasets": []}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    pixels, real, reason = _images(tmp_path, EvaluationTransform(32, (0.5,) * 3, (0.5,) * 3))
    assert real == len({each.numpy().tobytes() for each in pixels[:real]}) == 16
    assert reason == "the run has only 16 images that can be read"


def test_int8_has_a_file_of_its_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    shutil.copytree(run, tmp_path / "run")
    assert unimetric("export", tmp_path / "run", "--precision", "int8") == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"The model is in {tmp_path / 'run/model.int8.onnx'}: on 64 images, its vectors are within" in said
    assert not (tmp_path / "run/model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "onxn"], "--format is 'onxn': did you mean 'onnx'"),
        ([*TORCH, "--out", "model.onnx"], "model.onnx: a file of --format torch ends in .pt2"),
        ([*TORCH, "--out", "."], "ends in .pt2"),
    ],
)
def test_refused(arguments: list[str], words: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("export", run, *arguments) == 2
    assert words in capsys.readouterr().err


def test_an_ensemble_needs_a_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("export", run, run / "model", *TORCH) == 2
    assert "--out is missing: name the .pt2 file for the ensemble" in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("export", tmp_path / "nowhere", *TORCH) == 2
    assert "nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert unimetric("export", run) == 2
    assert "needs the package onnxscript: pip install 'unimetric[export]'" in capsys.readouterr().err
