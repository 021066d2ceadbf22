"""Coverage-guided fuzzing of the parsers of foreign bytes, each in a process of its own; see `fuzz_targets`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from properties import SOAK_SECONDS, SOAK_SEED

TARGETS = ("condition", "manifest", "yaml", "mat", "upload", "model", "checkpoint")


@pytest.mark.soak
@pytest.mark.timeout(SOAK_SECONDS + 600)
@pytest.mark.parametrize("target", TARGETS)
def test_no_other_error_than_the_documented_ones(target: str, soak_seconds: float, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    script = Path(__file__).with_name("fuzz_targets.py")
    options = [f"-max_total_time={max(1, int(soak_seconds))}", f"-seed={SOAK_SEED + 1}", "-rss_limit_mb=4096"]
    command = [sys.executable, script, target, tmp_path, *options, f"-artifact_prefix={tmp_path}/"]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace", check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
