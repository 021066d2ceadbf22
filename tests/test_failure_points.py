"""Every write, flush, rename and removal of the commands that write fails in turn; the same command again completes.

Nothing that was acknowledged is lost, nothing is there twice, nothing has to be repaired, and no part passes for the
whole.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from failure_points import Failure, read_points
from fork_server import Commands
from toy_runs import log_rows, make_images, numbers, options_file, tensors, unimetric
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.errors import DatabaseMissingError
from unimetric.search.stores import open_store
from unimetric.search.upgrade.state import upgrade_state
from unimetric.training.checkpoint import saved_step

QUICK, SOAK = 3, int(os.environ.get("SOAK_POINTS", "10000"))
"""Failures of each command, at most, in ``make test`` and in ``make soak``."""
SEED = os.environ.get("SOAK_SEED", "0")
FP32 = ("--device.accelerator", "cpu", "--device.precision", "fp32")


@dataclass(frozen=True)
class Inputs:
    """Images, and two finished models of different embedding sizes; only to be read."""

    images: Path
    model: Path
    newer: Path
    options: Path
    database: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    images = make_images(root / "images", classes=4, images=2)
    options = options_file(root / "options.yaml", training={"epochs": 2, "batch_size": 4})
    newer = options_file(root / "newer.yaml", model={"embedding_size": 8, "method": "linear", "options": {}})
    for name, config in (("model", options), ("newer", newer)):
        assert unimetric("train", images, "--out", root / name, "--config", config, "--training.steps", 1) == 0
    assert unimetric("index", root / "model", images, "--db", root / "db", *FP32) == 0
    return Inputs(images, root / "model", root / "newer", options, root / "db")


@dataclass(frozen=True)
class Case:
    """A command that writes into a folder.

    Attributes:
        arguments: Of the command, also where it is run again.
        state: What is there in the end, for a comparison.
        check: Checks what is there after a failure, given what the command printed.
        begin: Fills the folder before the command.
    """

    arguments: Callable[[Inputs, Path], list[object]]
    state: Callable[[Path], Any]
    check: Callable[[Path, str, Any], None]
    begin: Callable[[Inputs, Path], object] = lambda inputs, folder: None


def rows(db: Path) -> dict[str, dict[str, Any]]:
    """All rows of a database by id, also of one that was not made yet."""
    try:
        store = open_store(db)
    except DatabaseMissingError:
        return {}
    found = store.rows(store.column_names).to_pylist()
    assert len({row["id"] for row in found}) == len(found), "a row is there twice"
    return {row["id"]: row for row in found}


def check_index(folder: Path, said: str, whole: dict[str, dict[str, Any]]) -> None:
    found = rows(folder / "db")
    assert found.items() <= whole.items()
    acknowledged = [int(number) for number in re.findall(r"(\d+) rows written;", said)]
    assert len(found) >= max(acknowledged, default=0)


def check_upgrade(folder: Path, said: str, whole: dict[str, dict[str, Any]]) -> None:
    found = rows(folder / "db")
    assert found.keys() == whole.keys(), "rows are lost"
    with SearchIndex.open(folder / "db") as index:
        size = index.embedding_size
        assert all(len(row["vector"]) == size for row in found.values())
        (matches,) = index.search_vectors(next(iter(found.values()))["vector"], k=3)
        assert len({match.id for match in matches}) == 3
    state = upgrade_state(folder / "db")
    acknowledged = [int(number) for number in re.findall(r"(\d+) of \d+ rows are embedded", said)]
    assert state is None or state.embedded >= max(acknowledged, default=0)


def run_state(folder: Path) -> Any:
    run = folder / "run"
    weights = {name: value.tolist() for name, value in tensors(run / "checkpoint.safetensors").items()}
    model = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    return weights, model, log_rows(run), numbers(run), sorted(path.name for path in run.iterdir())


def check_run(folder: Path, said: str, whole: Any) -> None:
    run = folder / "run"
    acknowledged = [int(number) for number in re.findall(r"checkpoint of step (\d+) is kept", said)]
    checkpoint = run / "checkpoint.safetensors"
    step = (saved_step(checkpoint) or 0) if checkpoint.exists() else 0
    assert step >= max(acknowledged, default=0)
    if checkpoint.exists():
        tensors(checkpoint)
    if (run / "model/config.json").exists():
        Embedder.from_pretrained(run)
    if (run / "metrics.json").exists():
        assert numbers(run) == whole[3]


def start_or_resume(inputs: Inputs, folder: Path) -> list[object]:
    run = folder / "run"
    if (run / "config.yaml").exists():
        return ["train", "--resume", run]
    return ["train", inputs.images, "--config", inputs.options, "--out", run]


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files by their paths, without temporary ones, whose names begin with a dot and may be cut off."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_files(folder: Path, said: str, whole: dict[str, str]) -> None:
    """Every file under its final name is whole."""
    found = contents(folder)
    assert found.items() <= whole.items()
    assert {f"out/{name}" for name in re.findall(r"(\S+) is written", said)} <= found.keys()


SMALL = ("--batch_size", 2, *FP32)
CASES = {
    "index": Case(
        lambda inputs, folder: [
            *("index", inputs.model, inputs.images, "--db", folder / "db", "--commit_rows", 2, *SMALL)
        ],
        lambda folder: rows(folder / "db"),
        check_index,
    ),
    "upgrade": Case(
        lambda inputs, folder: [
            *("upgrade", folder / "db", "--model", inputs.newer, "--live", "now", "--sample", 4),
            *("--commit_rows", 2, *SMALL),
        ],
        lambda folder: rows(folder / "db"),
        check_upgrade,
        lambda inputs, folder: shutil.copytree(inputs.database, folder / "db"),
    ),
    "train": Case(start_or_resume, run_state, check_run),
    "export": Case(
        lambda inputs, folder: ["export", inputs.model, "--out", folder / "out/model.onnx", "--overwrite"],
        contents,
        check_files,
    ),
    "prepare": Case(
        lambda inputs, folder: [
            *("prepare", inputs.images, "--out", folder / "out", "--side", 40, "--format", "raw", "--workers", 1)
        ],
        contents,
        check_files,
    ),
    "embed": Case(
        lambda inputs, folder: [
            *("embed", inputs.model, inputs.images, "--out", folder / "out", "--shard", "1/1", "--shard_rows", 4),
            *SMALL,
        ],
        contents,
        check_files,
    ),
}


class Trial:
    """Runs of a command, each in a new folder of the same name, since paths are stored."""

    def __init__(self, name: str, inputs: Inputs, commands: Commands, root: Path) -> None:
        self.case, self._inputs, self._commands = CASES[name], inputs, commands
        self._folder, self._report = root / "work", root / "points.json"
        self._begin()
        assert self._run(Failure(str(self._folder), str(self._report)))[0] == 0, commands.log.read_text()
        self.whole = self.case.state(self._folder)
        self.points = read_points(self._report)

    def fails(self, number: int, kind: str) -> None:
        """Let one point fail, check, run the command again, and compare."""
        self._begin()
        self._report.unlink()
        code, said = self._run(Failure(str(self._folder), str(self._report), number, kind))
        # Loggers write in threads of their own, so the order may differ by a place or two.
        assert len(read_points(self._report)) == number + 1
        assert "Traceback" not in said, said
        assert code in ((-9, 0, 2) if kind in ("torn", "after") else (-9,) if kind == "kill" else (0, 2)), said
        if code == 2:
            assert said.strip().splitlines()[-1].startswith("unimetric: error: "), said
        self.case.check(self._folder, said, self.whole)
        code, said = self._run()
        # An upgrade that was complete cannot be run again.
        assert code == 0 or "there is nothing to upgrade" in said, said
        assert self.case.state(self._folder) == self.whole

    def _begin(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self.case.begin(self._inputs, self._folder)

    def _run(self, failure: Failure | None = None) -> tuple[int, str]:
        arguments = self.case.arguments(self._inputs, self._folder)
        answer = self._commands.run(*arguments, failure=failure)
        return answer["code"], self._commands.log.read_text()


LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]
# Exporting takes seconds, and writes its one file as others do.
RUNS = [("quick", name) for name in CASES if name != "export"] + [
    pytest.param("soak", name, marks=LONG) for name in CASES
]


@pytest.mark.parametrize(("share", "name"), RUNS)
def test_every_write_fails_once(share: str, name: str, inputs: Inputs, commands: Commands, tmp_path: Path) -> None:
    trial = Trial(name, inputs, commands, tmp_path)
    failures = [(number, kind) for number, point in enumerate(trial.points) for kind in point.kinds]
    assert len(failures) > 10
    most = QUICK if share == "quick" else SOAK
    failures = random.Random(f"{name} {SEED}").sample(failures, min(most, len(failures)))
    failed = []
    for number, kind in failures:
        print(f"point {number} of {len(trial.points)}, {kind}: {trial.points[number]}")
        try:
            trial.fails(number, kind)
        except AssertionError as error:
            failed.append(f"{number} {kind} {trial.points[number]}: {error}"[:1500])
            # A long run may be stopped before its end.
            print(failed[-1])
    assert not failed, "\n".join(failed)
