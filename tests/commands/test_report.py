"""`unimetric report`, `compare` and `inspect`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toy_runs import options_file, read_json, unimetric
from unimetric import Embedder
from unimetric.formats.vectors import read_measured


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_the_vectors_of_a_run_are_those_of_its_model(run: Path) -> None:
    measured = read_measured(run / "vectors.parquet")
    assert len(measured.query) == read_json(run / "metrics.json")["counts"]["queries"]
    paths = [item.path for item in measured.query]
    vectors = Embedder.from_pretrained(run).encode(paths, batch_size=32, precision="fp32")
    np.testing.assert_allclose(measured.query_vectors, vectors, atol=1e-5)


def test_a_report_needs_no_images(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("report", copy) == 0
    page = (copy / "report.html").read_text()
    assert ">Prompts<" in page
    assert f"{100 * read_json(copy / 'metrics.json')['unified']['recall@1']:.1f}" in page
    # The same page comes out again.
    assert unimetric("report", copy, "--out", copy / "again.html") == 0
    assert (copy / "again.html").read_text() == page
    assert "again.html" in capsys.readouterr().err


def test_a_folder_without_vectors_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "vectors.parquet").unlink()
    assert unimetric("report", copy) == 2
    assert "vectors.parquet does not exist; write it again with: unimetric evaluate" in capsys.readouterr().err


def test_an_evaluation_has_a_report_of_its_own(copy: Path) -> None:
    assert unimetric("evaluate", copy) == 0
    assert unimetric("report", copy / "evaluation") == 0
    page = (copy / "evaluation/report.html").read_text()
    assert "copy/evaluation" in page
    assert ">Prompts<" in page
    assert "nothing was trained in it" in page


def test_a_page_without_its_model_says_what_it_lacks(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "model")
    assert unimetric("report", copy) == 0
    assert "--model" in capsys.readouterr().err
    page = (copy / "report.html").read_text()
    assert "The prompts are left out" in page
    assert ">Prompts<" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "NONE"], "not a folder"),
        (["report", "EMPTY"], "unimetric train"),
        (["report", "RUN/model"], "unimetric evaluate"),
        (["report", "RUN", "--out", "page.pdf"], "name a .html file"),
        (["report", "RUN", "--neighbours", "0"], "--neighbours is 0"),
        (["report", "RUN", "--mistakes", "-1"], "--mistakes is -1"),
        (["compare", "RUN"], "two runs or more"),
        (["compare", "RUN", "RUN"], "twice"),
        (["inspect", "RUN", "NONE.png"], "file not found"),
        (["inspect", "RUN", "IMAGE", "-k", "0"], "-k is 0"),
        (["inspect", "RUN", "IMAGE", "--out", "x.jpg"], "name a .png file"),
    ],
)
def test_refusals(
    arguments: list[str],
    words: str,
    run: Path,
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": run, "NONE": tmp_path / "none", "EMPTY": tmp_path / "empty", "IMAGE": sources[0] / "c5/0.png"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    before = set(run.rglob("*"))
    assert unimetric(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert set(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"metrics.json": b"no json"}, "unimetric evaluate"),
        ({"metrics.json": b'{"unified": {"recall@1": 1.0}}'}, "lacks separate, harmonic, counts, model"),
        ({"metrics.json": None}, "unimetric train --resume"),
        ({"vectors.parquet": b"no parquet"}, "unimetric evaluate"),
        ({"vectors.parquet": None}, "write it again with: unimetric evaluate"),
        ({"model.method": None}, "names no model"),
    ],
)
def test_a_run_that_lacks_something_names_the_command_that_makes_it(
    damage: dict[str, bytes | None], words: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = read_json(copy / "metrics.json")
    for name, content in damage.items():
        if name == "model.method":
            del metrics["model"]["method"]
        elif content is not None:
            (copy / name).write_bytes(content)
        elif (copy / name).is_dir():
            shutil.rmtree(copy / name)
        else:
            (copy / name).unlink()
    if "metrics.json" not in damage:
        (copy / "metrics.json").write_text(json.dumps(metrics))
    assert unimetric("report", copy) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("unimetric: error: ")
    assert words in error
    assert not (copy / "report.html").exists()


def test_compare(run: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("compare", run, copy, "--out", tmp_path / "page.html") == 0
    out = capsys.readouterr().out
    # The same run twice: no difference, and no probability either way.
    assert len(re.findall(r"0\.0 \[0\.0, 0\.0\] +P 0\.500\n", out)) == 4
    page = (tmp_path / "page.html").read_text()
    assert page.count("<small>0.0 [0.0, 0.0]</small><small>P 0.500</small>") == 4
    # The intervals are those of metrics.json, to the digit.
    for part in ("harmonic", "unified"):
        low, high = (f"{100 * end:.1f}" for end in read_json(run / "metrics.json")["intervals"][part]["recall@1"])
        assert f"[{low}, {high}]" in out
        assert f"{low}–{high}" in page


def test_runs_on_different_images_are_not_compared(
    run: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.test_datasets", "[a]"]
    assert unimetric("evaluate", run, "--out", tmp_path / "a", *data) == 0
    capsys.readouterr()
    assert unimetric("compare", run, tmp_path / "a") == 2
    assert "different images" in capsys.readouterr().err
    # Without fingerprints, by the images themselves.
    for folder in (copy, tmp_path / "a"):
        metrics = read_json(folder / "metrics.json")
        del metrics["provenance"]
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert unimetric("compare", copy, tmp_path / "a") == 2
    assert "in one of them only" in capsys.readouterr().err


def test_inspect(copy: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = read_measured(copy / "vectors.parquet")
    row = next(row for row, item in enumerate(measured.query) if item.dataset == "a")
    image = measured.query[row].path
    assert unimetric("inspect", copy, image, "-k", 3, "--device.precision", "fp32") == 0
    out = capsys.readouterr().out
    cosines = measured.query_vectors @ measured.query_vectors[row]
    cosines[row] = -2
    nearest = [measured.query[other].path.name for other in np.argsort(-cosines)[:3]]
    assert f"{cosines.max():.3f}" in out
    assert all(name in out for name in nearest)
    assert "weights of the prompts" in out
    with Image.open(copy / "inspect" / f"{image.stem}.png") as drawn:
        assert drawn.format == "PNG"
    # An image that was never measured has neighbours, too, but none is right or wrong.
    Image.new("RGB", (30, 30), "red").save(tmp_path / "<new>.png")
    assert unimetric("inspect", copy, tmp_path / "<new>.png", "--out", tmp_path / "x.png") == 0
    assert "not one of the measured images" in capsys.readouterr().out


def test_a_method_without_prompts(sources: list[Path], tmp_path: Path) -> None:
    frozen = ["--model.method", "frozen", "--model.options", "{}"]
    options = options_file(tmp_path / "options.yaml", data={"sources": [str(source) for source in sources]})
    assert unimetric("evaluate", "--config", options, *frozen, "--out", tmp_path / "out") == 0
    assert unimetric("report", tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert ">Prompts<" not in page
    assert "left out:" not in page
