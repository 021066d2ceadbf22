"""`unimetric search` with an exported file: the same answers without torch, and never from another model's file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from search_toys import make_model

from toy_runs import unimetric
from unimetric import Embedder
from unimetric.models.export import export_model
from unimetric.models.onnx_runtime import ExportedEmbedder

TORCH_TOO = ("torch", "torchvision", "timm", "peft", "transformers", "lightning_fabric", "scipy", "matplotlib")
CPU = ("--device.accelerator", "cpu", "--device.precision", "fp32")

CHILD = f"""
import sys
from unimetric.cli import main
code = main(sys.argv[1:])
print(sorted(set({TORCH_TOO}) & sys.modules.keys()), file=sys.stderr)
sys.exit(code)
"""


def export(model: Path, out: Path, precision: str = "fp32") -> Path:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    export_model(Embedder.from_pretrained(model).eval(), out, "onnx", pixels, precision)
    return out


def saying(file: Path, copy: Path, **metadata: object) -> Path:
    """A copy that says other things of itself."""
    import onnx

    model = onnx.load(file)
    about = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, about | {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(model, copy)
    return copy


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database's model as a file."""
    return export(model, tmp_path_factory.mktemp("exported") / "own.onnx")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model as a file."""
    folder = tmp_path_factory.mktemp("foreign")
    return export(make_model(folder / "model", seed=1), folder / "foreign.onnx")


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Path:
    """A run folder that holds the database's model."""
    shutil.copytree(model, tmp_path / "run/model")
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["model.onnx", "model/model.onnx"])
def test_the_same_answers_without_torch(
    place: str,
    run: Path,
    exported: Path,
    catalogue: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(exported, run / place)
    pictures = [images / "hats/c1/2.png", images / "shoes/c0/0.png"]
    options = ["--dataset", "hats", "--where", "price < 20", "-k", "4", "--json"]
    assert unimetric("search", catalogue, *pictures, *options, "--model", run, "--engine", "torch", *CPU) == 0
    said = capsys.readouterr()
    assert f"Embedded by {run} (fused, fp32 products, cpu)." in "".join(said.err.splitlines())
    # As a process that has imported nothing yet; from the model's folder the run's file is found, and the other way.
    arguments = ["search", str(catalogue), *map(str, pictures), *options, "--model", str(run / "model")]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    assert child.stderr.splitlines() == [f"Embedded by {run / place} (onnxruntime, fp32, cpu).", "[]"]
    for expected, found in zip(json.loads(said.out), json.loads(child.stdout), strict=True):
        scores = [[match.pop(name) for match in expected["matches"]] for name in ("score", "confidence")]
        others = [[match.pop(name) for match in found["matches"]] for name in ("score", "confidence")]
        np.testing.assert_allclose(others, scores, atol=1e-4)
        assert found == expected
        assert found["is_match"] is not None
        assert found["matches"][0]["metadata"]["price"] < 20


def test_a_file_is_used_unasked_only_if_it_fits(
    run: Path, foreign: Path, catalogue: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ("search", catalogue, images / "hats/c1/2.png", "--model", run)
    shutil.copy(foreign, run / "model.onnx")
    assert unimetric(*search, *CPU) == 0
    said = capsys.readouterr()
    answer = said.out
    assert f"note: {run / 'model.onnx'} is of another model (fingerprint" in said.err
    assert "it is not used" in said.err
    assert f"Embedded by {run} (fused" in said.err
    assert unimetric(*search, "--engine", "onnx") == 2
    assert "model.onnx is of another model" in capsys.readouterr().err
    assert unimetric("search", catalogue, images / "hats/c1/2.png", "--model", foreign) == 2
    assert "foreign.onnx is of another model" in capsys.readouterr().err
    (run / "model.onnx").write_bytes(b"cut off")
    assert unimetric(*search, *CPU) == 0
    said = capsys.readouterr()
    assert said.out == answer
    assert "model.onnx is damaged, or no ONNX file" in said.err


def test_a_named_file_and_one_of_an_extended_model(
    exported: Path,
    catalogue: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = ("search", catalogue, images / "hats/c1/2.png", "--model")
    assert unimetric(*search, exported) == 0
    assert f"Embedded by {exported} (onnxruntime" in "".join(capsys.readouterr().err.splitlines())
    fingerprint = ExportedEmbedder(exported).fingerprint
    assert unimetric(*search, saying(exported, tmp_path / "other.onnx", fingerprint="other")) == 2
    extended = saying(exported, tmp_path / "extended.onnx", fingerprint="other", compatible_with=[fingerprint])
    capsys.readouterr()
    assert unimetric(*search, extended) == 0
    assert f"Embedded by {extended} (onnxruntime" in "".join(capsys.readouterr().err.splitlines())


def test_a_file_of_int8_products(
    run: Path, model: Path, catalogue: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = ("--device.accelerator", "cpu", "--device.precision", "int8")
    search = ("search", catalogue, images / "hats/c1/2.png", "--model", run)
    assert unimetric(*search, "--engine", "onnx", *int8) == 2
    assert "model.int8.onnx does not exist: write it with unimetric export" in capsys.readouterr().err
    file = export(model, run / "model.int8.onnx", "int8")
    # Unasked it is not taken.
    assert unimetric(*search, *CPU) == 0
    assert "(fused, fp32 products, cpu)" in capsys.readouterr().err
    for options in ((*search, *int8), (*search[:-1], file)):
        assert unimetric(*options) == 0
        said = capsys.readouterr()
        assert f"Embedded by {file} (onnxruntime, int8, cpu)." in "".join(said.err.splitlines())
        first = next(line for line in said.out.splitlines() if line.lstrip().startswith("1 "))
        assert str(images / "hats/c1/2.png") in first
    assert unimetric(*search[:-1], file, *CPU) == 2
    assert "model.int8.onnx computes in int8: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "onxn"], "--engine is 'onxn': did you mean 'onnx'"),
        (["--engine", "onnx", "--model", "RUN"], "model.onnx does not exist: write it with unimetric export"),
        (["--engine", "torch", "--model", "RUN/model.onnx"], "--engine is torch, which does not run"),
        (["--model", "RUN/model.onnx"], "model.onnx: No such file"),
        (["--engine", "onnx", "--device.precision", "bf16"], "--device asks for auto and bf16"),
        (["--model", "RUN/model.onnx", "--device.accelerator", "cuda"], "--device asks for cuda and auto"),
    ],
)
def test_refused(
    arguments: list[str],
    words: str,
    run: Path,
    catalogue: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    assert unimetric("search", catalogue, images / "hats/c0/0.png", *arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert words in error


def test_what_a_file_cannot_do_is_done_by_torch(
    run: Path, exported: Path, catalogue: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(exported, run / "model.onnx")
    bf16 = ("--device.accelerator", "cpu", "--device.precision", "bf16")
    assert unimetric("search", catalogue, images / "hats/c1/2.png", "--model", run, *bf16) == 0
    said = capsys.readouterr().err
    assert f"Embedded by {run} (fused, bf16" in said
    assert "note" not in said
