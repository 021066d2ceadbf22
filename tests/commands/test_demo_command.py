"""`unimetric demo`, on toy data: what it compares, how it goes on, what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from toy_runs import assert_same_run, at_step, interrupt, options_file, read_json, unimetric
from unimetric.commands.demo import run_demo
from unimetric.config import RunConfig, run_config
from unimetric.data.images import is_image_name
from unimetric.errors import UserError
from unimetric.search import SearchIndex
from unimetric.training.interrupt import Interrupted


@dataclass(frozen=True)
class Finished:
    folder: Path
    rows: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def options(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("options") / "options.yaml"
    return options_file(place, data={"sources": [str(source) for source in sources]})


@pytest.fixture(scope="module")
def config(options: Path) -> RunConfig:
    return run_config(yaml.safe_load(options.read_text()), "the options")


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A demo that ended; only to be read."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return Finished(folder, run_demo(config, folder))


def test_it_compares_the_frozen_backbone_with_puma(finished: Finished) -> None:
    (frozen_name, frozen), (name, trained) = finished.rows
    assert (frozen_name, name) == ("frozen", "puma")
    assert frozen == read_json(finished.folder / "frozen/metrics.json")
    assert trained == read_json(finished.folder / "metrics.json")
    page = (finished.folder / "report.html").read_text()
    assert f"{100 * trained['unified']['recall@1']:.1f}" in page
    assert "The most confident mistakes" in page
    assert (frozen["model"]["method"], frozen["model"]["trainable_parameters"]) == ("frozen", 0)
    assert (trained["model"]["method"], trained["training_steps"]) == ("puma", 12)
    assert frozen["model"]["fingerprint"] == trained["model"]["fingerprint"]
    for part in ("queries", "gallery", "datasets"):
        assert frozen["counts"][part] == trained["counts"][part]


def test_its_images_can_be_searched(config: RunConfig, finished: Finished) -> None:
    with SearchIndex.open(finished.folder / "catalogue.db") as index:
        files = [path for source in config.data.sources for path in Path(source).rglob("*") if is_image_name(path)]
        assert index.count() == len(files)
        (example,) = index.sample(1)
        (match, *_) = index.search(Path(example.path), 3)[0]
        assert match.id == example.id


def test_it_goes_on_where_it_was_stopped(config: RunConfig, finished: Finished, tmp_path: Path) -> None:
    with at_step(7, interrupt), pytest.raises(Interrupted, match="after step 7 of 12"):
        run_demo(config, tmp_path / "run")
    assert [name for name, _ in run_demo(config, tmp_path / "run")] == ["frozen", "puma"]
    assert_same_run(finished.folder, tmp_path / "run")


def test_stopped_it_says_to_run_it_again(options: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--config", options, "--out", tmp_path / "run"]
    with at_step(7, interrupt):
        assert unimetric(*command) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == ("unimetric: stopped after step 7 of 12, nothing is lost; run the same command again to continue")
    assert unimetric(*command) == 0
    errors = capsys.readouterr().err
    assert "after step 7 of 12" in errors
    stages = [line for line in errors.splitlines() if line.startswith("Stage ")]
    assert [line.split(":")[0] for line in stages] == [f"Stage {number} of 4" for number in (1, 2, 3, 4)]
    assert all(line.endswith(" left") for line in stages[1:])
    said = errors.replace("\n", "")
    assert f"The page with the mistakes is {tmp_path / 'run/report.html'}" in said
    assert f"unimetric serve {tmp_path / 'run/catalogue.db'}" in said


@pytest.mark.parametrize("other", ["options", "version"])
def test_a_run_of_another_configuration_is_refused(
    other: str, config: RunConfig, finished: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.folder, out)
    if other == "options":
        config = replace(config, training=replace(config.training, epochs=4))
    else:
        (out / "config.yaml").write_text("training:\n  an_option_of_old: 1\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="another configuration") as refused:
        run_demo(config, out)
    assert f"delete {out}, or choose another --out" in str(refused.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
