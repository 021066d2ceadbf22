"""The script for machines with a GPU: it refuses to run without one, and its rehearsal passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forked import ForkedCommand

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    process = ForkedCommand([], tmp_path / "log", str(SCRIPT))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    (line,) = error.splitlines()
    assert line.startswith("gpu.py: ")
    assert "no CUDA device" in line
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.soak
def test_its_rehearsal_passes(tmp_path: Path) -> None:
    ended = run(tmp_path, "--rehearse", "--out", "report.md")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = (tmp_path / "report.md").read_text()
    assert "All checks passed." in report
    parts = ("Vectors", "training step", "Losses", "Evaluation", "Commands", "DistributedDataParallel", "One image")
    for part in (*parts, "Embedding", "Training steps"):
        assert f"## {part}" in report or f"## A {part}" in report
