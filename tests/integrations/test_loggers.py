"""Experiment loggers hold the rows of ``log.jsonl``, once each, however often a run is stopped and resumed."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toy_runs import log_rows, make_images, one_thread, options_file, unimetric
from unimetric.errors import UserError
from unimetric.integrations.loggers import LoggerName, chosen_loggers
from unimetric.training.log import TrainingLog

__all__ = ["one_thread"]

OPTIONS = {"training": {"seed": 3, "learning_rate": 0.1}}


def rows(first: int, last: int) -> Iterator[tuple[int, dict[str, float]]]:
    """A row of training at every tenth step, and one of validation at every twentieth."""
    for step in range(first, last + 1, 10):
        yield step, {"loss": 1 / step, "learning_rate": 0.1, "share/a=b": 0.5}
        if step % 20 == 0:
            yield step, {"validation_harmonic": step / 100}


def killed_and_resumed(folder: Path, name: LoggerName) -> None:
    """Log up to step 60, lose everything after step 40, log that part again and 20 steps more."""
    with TrainingLog(folder, 0, [name], OPTIONS) as log:
        for step, values in rows(10, 60):
            log.write(step, **values)
        log.flush()
    with TrainingLog(folder, 40, [name], OPTIONS) as log:
        for step, values in rows(50, 80):
            log.write(step, **values)


EXPECTED = [(step, {f"{name}": value for name, value in values.items()}) for step, values in rows(10, 80)]


def test_csv(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, "csv")
    with (tmp_path / "csv/metrics.csv").open(newline="") as file:
        found = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    assert found == [{"step": step, **values} for step, values in EXPECTED]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss")]
    assert losses == [(step, values["loss"]) for step, values in EXPECTED if "loss" in values]
    assert [event.step for event in events.Scalars("validation_harmonic")] == [20, 40, 60, 80]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "run").mkdir()
    killed_and_resumed(tmp_path / "run", "mlflow")
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("unimetric").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params == {"training.seed": "3", "training.learning_rate": "0.1"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(row.step, row.value) for row in history] == [
        (s, values["loss"]) for s, values in EXPECTED if "loss" in values
    ]
    assert len(client.get_metric_history(run.info.run_id, "share/a_b")) == 8
    # A tracking server that has lost the run, and one that is gone.
    (tmp_path / "run/loggers.json").write_text('{"mlflow": "0123456789abcdef0123456789abcdef"}')
    with pytest.raises(UserError, match=r"--training.loggers mlflow: .*; check MLFLOW_TRACKING_URI"):
        TrainingLog(tmp_path / "run", 40, ["mlflow"], OPTIONS)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed_and_resumed(tmp_path, "wandb")
    wandb.teardown()  # a process of its own writes the files
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert {file.name for file in files} == {
        f"run-{json.loads((tmp_path / 'loggers.json').read_text())['wandb']}.wandb"
    }
    logged: dict[int, dict[str, float]] = {}
    for file in files:
        for row in wandb_rows(file):
            step = int(row.pop("_step"))
            assert not logged.get(step, {}).keys() & row.keys(), f"step {step} is logged twice"
            logged.setdefault(step, {}).update(row)
    expected: dict[int, dict[str, float]] = {}
    for step, values in EXPECTED:
        expected.setdefault(step, {}).update(values)
    assert logged == expected


def wandb_rows(path: Path) -> Iterator[dict[str, float]]:
    """Read the rows in a file of W&B: records of LevelDB's log format, in blocks of 32 KiB after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, pending = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, pending = wandb_internal_pb2.Record.FromString(pending), b""
            if record.HasField("history"):
                values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                if "_step" not in values:
                    values["_step"] = str(record.history.step.num)
                hidden = ("_runtime", "_timestamp")
                yield {name: float(value) for name, value in values.items() if name not in hidden}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_one_line(name: LoggerName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"--training.loggers {name} needs .* pip install 'unimetric\[{name}\]'"):
        chosen_loggers([name])
    assert chosen_loggers(["csv", "csv"]) == ["csv"]


def test_a_logger_that_fails_is_named_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_fabric.loggers import CSVLogger

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(CSVLogger, "log_metrics", refuse)
    with TrainingLog(tmp_path, 0, ["csv"], OPTIONS) as log:
        for step, values in rows(10, 40):
            log.write(step, **values)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("csv has not taken the row of step 10 (ConnectionError: the server is gone)") == 1
    assert "step 20" not in said
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6


def test_training_fills_the_loggers_and_may_change_them_when_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", classes=8)
    options = options_file(
        tmp_path / "options.yaml", training={"steps": 10, "loggers": ["csv"]}, data={"validation_fraction": 0.3}
    )
    run = tmp_path / "run"
    assert unimetric("train", images, "--out", run, "--config", options) == 0
    with (run / "csv/metrics.csv").open(newline="") as file:
        table = [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]
    assert [{name: float(text) for name, text in row.items() if name != "seconds"} for row in table] == log_rows(run)
    assert {"loss", "learning_rate"} <= table[-1].keys() or {"loss", "learning_rate"} <= table[-2].keys()
    assert not (run / "tensorboard").exists()
    assert unimetric("train", "--resume", run, "--training.loggers", "[]") == 0
    capsys.readouterr()
    assert (
        unimetric("train", images, "--out", tmp_path / "other", "--config", options, "--training.loggers", "[x]") == 2
    )
    assert "--training.loggers" in capsys.readouterr().err
