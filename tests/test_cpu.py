"""Cores are counted as a container allows them, and OpenMP's variables are set before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unimetric.cpu import available_cores


def fake(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "25000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (
            {
                "proc/self/cgroup": "0::/system.slice/job.service\n",
                "sys/fs/cgroup/system.slice/job.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/docker/ab\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
    ids=["none", "v2", "v2 unlimited", "v2 fraction", "v2 below one", "v2 above", "v2 parent", "v1", "v1 unlimited"],
)
def test_cores_are_limited_by_the_quota(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    assert available_cores(fake(tmp_path, files)) == cores


def test_cores_are_limited_by_the_affinity_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5}, raising=False)
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}
    assert available_cores(fake(tmp_path, files)) == 2


def test_without_affinity_masks_all_cores_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert available_cores(tmp_path) == 12


def child(module: str, expression: str, **variables: str) -> str:
    known = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in known}
    code = f"import sys, os, {module}; print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["unimetric", "unimetric.cli", pytest.param("unimetric.bulk.worker", marks=pytest.mark.soak)]
)
def test_the_wait_policy_is_set_before_torch_is_imported(module: str) -> None:
    """Importing the worker imports torch."""
    found = child(module, "(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)")
    assert found == str(("passive", module == "unimetric.bulk.worker"))


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_user_s_choice_is_kept(variable: str) -> None:
    chosen = "active" if variable == "OMP_WAIT_POLICY" else "7"
    found = child("unimetric", f"(os.environ[{variable!r}], os.environ.get('OMP_WAIT_POLICY'))", **{variable: chosen})
    assert found == str((chosen, "active" if variable == "OMP_WAIT_POLICY" else None))
