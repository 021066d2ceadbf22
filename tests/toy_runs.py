"""Tiny image folders, and runs on them that take a second: a random backbone of six narrow blocks and a small PUMA."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from unimetric.cli import main

OPTIONS: dict[str, Any] = {
    "model": {
        "backbone": "test_vit",
        "weights": "random",
        "image_size": 32,
        "method": "puma",
        "options": {"adapter_bottleneck": 8, "prompts": 4, "prompt_length": 2},
        "embedding_size": 16,
    },
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-4, "proxy_multiplier": 1000.0},
    "data": {"workers": 0},
    "evaluation": {"baseline": False},
    "device": {"accelerator": "cpu", "precision": "fp32"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums do not depend on how many cores are free; to be imported by the tests that train."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_images(root: Path, classes: int = 8, images: int = 5, seed: int = 0) -> Path:
    """Class folders c0, c1, ...: noise of 24 to 40 px around a colour of the class."""
    random = np.random.default_rng(seed)
    for number in range(classes):
        colour = random.integers(0, 255, 3)
        folder = root / f"c{number}"
        folder.mkdir(parents=True)
        for image in range(images):
            height, width = random.integers(24, 40, 2)
            pixels = colour + random.normal(0, 60, (height, width, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    return root


def options_file(path: Path, **changes: dict[str, Any]) -> Path:
    """`OPTIONS` with changes as a YAML file; ``model={"method": "linear", "options": {}}`` changes those two."""
    values = {section: {**OPTIONS.get(section, {}), **changes.get(section, {})} for section in {*OPTIONS, *changes}}
    path.write_text(yaml.safe_dump(values))
    return path


def unimetric(*arguments: object) -> int:
    """Run a command in this process."""
    return main([str(argument) for argument in arguments])


def start(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a command as a process of its own, the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "unimetric.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "500"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


@contextmanager
def at_step(number: int, action: Callable[[], object]) -> Iterator[None]:
    """Call ``action`` in training step ``number`` in this process, the first being 1, before its update."""

    def hook(optimiser: torch.optim.Optimizer, arguments: object, options: object) -> None:
        # The steps of each parameter, or of each of its rows.
        done = max((int(state["step"].max()) for state in optimiser.state.values() if "step" in state), default=0)
        if done + 1 == number:
            action()

    with removed(register_optimizer_step_pre_hook(hook)):
        yield


@contextmanager
def removed(hook: RemovableHandle) -> Iterator[None]:
    """Remove a hook at the end of the block."""
    try:
        yield
    finally:
        hook.remove()


def interrupt() -> None:
    """Press Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def tensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def log_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of ``log.jsonl`` without times."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def numbers(run: Path) -> dict[str, Any]:
    """``metrics.json`` without times, memory, and options that decide no number."""
    metrics = read_json(run / "metrics.json")
    left_out = ("seconds", "training_seconds", "cost", "configuration")
    return {name: value for name, value in metrics.items() if name not in left_out}


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, proxies, their moving averages, optimiser, log and metrics agree to the bit."""
    expected, found = (tensors(run / "checkpoint.safetensors") for run in (one, other))
    assert expected.keys() == found.keys()
    assert any(name.startswith("model.") for name in expected)
    different = [name for name, value in expected.items() if not value.equal(found[name])]
    assert different == []
    assert (one / "model/adapter.safetensors").read_bytes() == (other / "model/adapter.safetensors").read_bytes()
    assert log_rows(one) == log_rows(other)
    assert numbers(one) == numbers(other)
