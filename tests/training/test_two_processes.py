"""Two processes of half a batch are one process of a whole one."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from forked import ForkedCommand, forked_ranks
from toy_runs import at_step, interrupt, log_rows, options_file, read_json, start, tensors, unimetric

TWO = ["--device.processes", 2]


def options_without_noise(path: Path, sampling: dict[str, Any] | None = None, **changes: Any) -> Path:
    model = {"options": {"adapter_bottleneck": 8, "prompts": 4, "prompt_length": 2, "adapter_drop": 0.0}}
    training = {"epochs": 2, "selection": "best", **changes}
    data = {"validation_fraction": 0.3}
    return options_file(path, model=model, training=training, data=data, sampling=sampling or {})


def test_the_same_updates_as_one_process(sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a run that starts from the discriminant and samples by the losses.

    The port that Fabric would choose is another program's by then.
    """
    sampling = {"name": "adaptive", "options": {"round_steps": 2, "sharpness": 5.0}}
    options = options_without_noise(tmp_path / "options.yaml", sampling=sampling, start="discriminant")
    assert unimetric("train", *sources, "--out", tmp_path / "one", "--config", options) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("STANDALONE_PORT", str(taken.getsockname()[1]))
        process = start("train", *sources, "--out", tmp_path / "two", "--config", options, *TWO)
        out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert out.count("puma: ") == 1
    one, two = (tensors(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if not name.startswith("best."):
            # A gradient of nothing but rounding is divided by itself in Adam: a twentieth of one step of 1e-3.
            torch.testing.assert_close(
                two[name], value, rtol=1e-4, atol=5e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    rows = [log_rows(tmp_path / name) for name in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert [row["loss"] for row in rows[0] if "loss" in row] == pytest.approx(
        [row["loss"] for row in rows[1] if "loss" in row], rel=1e-4
    )
    assert read_json(tmp_path / "two/metrics.json")["counts"] == read_json(tmp_path / "one/metrics.json")["counts"]


def test_bad_input_is_said_once(sources: list[Path], tmp_path: Path) -> None:
    options = options_without_noise(tmp_path / "options.yaml")
    arguments = ["train", *sources, "--out", tmp_path / "run", "--config", options, *TWO]
    process = ForkedCommand([*arguments, "--loss.name", "arcfase"], tmp_path / "log")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 2
    assert error.count("unknown --loss.name 'arcfase'") == 1
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_several_machines_need_a_port(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    options = options_without_noise(tmp_path / "options.yaml")
    out = ["--out", tmp_path / "run", "--config", options]
    assert unimetric("train", *sources, *out, "--device.machines", 2) == 2
    assert "--device.machines 2: MASTER_PORT is not set" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_both_continue_from_what_a_run_that_ends_has_saved(sources: list[Path], tmp_path: Path) -> None:
    """The first process waits for the lock of the run, and the other one for the first."""
    options = options_without_noise(tmp_path / "options.yaml", selection="last")
    run, later = tmp_path / "run", tmp_path / "later"
    with at_step(2, interrupt):
        assert unimetric("train", *sources, "--out", run, "--config", options) == 130
    shutil.copytree(run, later)
    with at_step(4, interrupt):
        assert unimetric("train", "--resume", later) == 130
    lock = FileLock(run / "train.lock")
    lock.acquire()
    with forked_ranks(["train", "--resume", run, *TWO], tmp_path) as processes:
        first = processes[0]
        while not first.log.exists() or "is in use" not in first.log.read_text():
            assert first.poll() is None, first.log.read_text()
            time.sleep(0.01)
        (later / "checkpoint.safetensors").replace(run / "checkpoint.safetensors")
        lock.release()
        error = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], error
    assert f"Continuing {run} after step 4 of 6" in error


def test_ctrl_c_stops_both_after_the_same_step(sources: list[Path], tmp_path: Path) -> None:
    """With the proxies divided, which makes no difference to the one process that goes on alone."""
    changes = {"start": "discriminant", "shard_proxies": True, "epochs": 20, "selection": "last"}
    options = options_without_noise(tmp_path / "options.yaml", **changes)
    run = tmp_path / "run"
    with forked_ranks(["train", *sources, "--out", run, "--config", options, *TWO], tmp_path) as (first, second):
        deadline = time.monotonic() + 200
        while not (run / "checkpoint.safetensors").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        first.send_signal(signal.SIGTERM)  # the first process only: it has to tell the other
        error = "".join(process.communicate(timeout=120)[1] for process in (first, second))
    assert first.returncode == 130, error
    assert error.count("continue with: unimetric train --resume") == 1
    assert "Traceback" not in error
    resume = ["train", "--resume", run, "--training.shard_proxies", "false"]
    assert unimetric(*resume, "--device.processes", 1) == 0
    assert read_json(run / "metrics.json")["training_steps"] == 60
