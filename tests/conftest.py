"""Settings of the whole suite: no model hub is reached, and random tests draw from a seed that is printed."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from fork_server import Commands
from properties import SOAK_SECONDS, SOAK_SEED

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Disable garbage collection while modules and tests are collected; these objects are long-lived.
gc.disable()

# The same examples in every run, however slow the machine.
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draws of torch that name no generator depend on the test's name, not on what ran before."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(zlib.crc32(item.nodeid.encode()))


def pytest_report_header() -> str:
    return f"soak tests: SOAK_SEED={SOAK_SEED} SOAK_SECONDS={SOAK_SECONDS:g}"


@pytest.fixture(
    params=["quick", pytest.param("soak", marks=[pytest.mark.soak, pytest.mark.timeout(SOAK_SECONDS + 600)])]
)
def seeds(request: pytest.FixtureRequest) -> Iterator[int]:
    """The seeds of a random test's rounds: 0 alone in ``make test``.

    Under ``make soak``: ``SOAK_SEED`` and those after it, until the test has used its share of ``SOAK_SECONDS``. Each
    seed is printed, so a failure shows the one that it came from.
    """
    return _seeds(SOAK_SEED, _share(request.session)) if request.param == "soak" else iter([0])


def _seeds(first: int, seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    seed = first
    while seed == first or time.monotonic() < end:
        print(f"seed {seed}")
        yield seed
        seed += 1


def _share(session: pytest.Session) -> float:
    random = {item.nodeid for item in session.items if "soak_seconds" in getattr(item, "fixturenames", ())}
    for item in session.items:
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("seeds") == "soak":
            random.add(item.nodeid)
    tests = len(random)
    return SOAK_SECONDS * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) / max(1, tests)


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """The share of ``SOAK_SECONDS`` of one test under ``make soak``."""
    return _share(request.session)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A process that starts commands without their imports; what they print is in its ``log``."""
    with Commands(tmp_path_factory.mktemp("commands") / "said.txt") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser without a window. Its event loop runs until the module ends, and no other one can beside it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium: install it with apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which finds barriers for people with disabilities in a page."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root and a kernel that allows it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
