"""A real database on disk, and real servers in processes of their own."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from forked import ForkedCommand
from toy_runs import make_images, options_file, unimetric

TOKEN = "a token for the tests"


@dataclass
class Server:
    """A service in a process of its own."""

    process: ForkedCommand | subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit code, and what was said since it was started."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        said = self.log.read_text()
        self.log.unlink()
        return code, said


def start_server(
    *arguments: object, ready: bool = True, script: str | None = None, program: Sequence[str] = (), **environment: str
) -> Server:
    """Start ``unimetric serve`` on a free port, and wait until it answers searches.

    Args:
        arguments: Of the command.
        ready: Wait for the model.
        script: Python file that stands in for ``unimetric serve``.
        program: Arguments of a new Python, instead of a process forked from one that has the slow imports behind it.
        environment: Variables besides those of this process.
    """
    handle, name = tempfile.mkstemp(prefix="serve-", suffix=".log")
    variables = {"OMP_NUM_THREADS": "1", "COLUMNS": "500", "UNIMETRIC_TOKEN": "", "UNIMETRIC_READ_TOKEN": ""}
    variables = {**os.environ, **variables, **environment}
    given = [*map(str, arguments), "--port", "0"]
    process: ForkedCommand | subprocess.Popen[bytes]
    if program:
        command = [sys.executable, *program, *given]
        process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=handle)
    else:
        process = ForkedCommand(given if script else ["serve", *given], Path(name), script, variables)
    os.close(handle)
    while True:
        ended = process.poll() is not None
        said = Path(name).read_text()
        if found := re.search(r"served on (http://\S+?);", said):
            break
        assert not ended, f"no server: {said}"
        time.sleep(0.01)
    server = Server(process, found[1], Path(name))
    if ready:
        with server.client() as client:
            until = time.monotonic() + 60
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
    return server


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with calibrated thresholds; only to be read."""
    root = tmp_path_factory.mktemp("service-run")
    sources = [make_images(root / "red", classes=8), make_images(root / "sea", classes=6, seed=1)]
    options = options_file(root / "options.yaml", training={"steps": 5})
    assert unimetric("train", *sources, "--out", root / "run", "--config", options) == 0
    return root / "run"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Images of three catalogues by the catalogue's name, one of them hostile."""
    root = tmp_path_factory.mktemp("service-images")
    return {
        name: sorted(make_images(root / str(seed), classes=4, images=4, seed=seed).rglob("*.png"))
        for seed, name in enumerate(("hats", "shoes", "<b>O'Brien & sons</b>"))
    }


@pytest.fixture(scope="session")
def make_database(
    toy_run: Path, images: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """Makes databases of the images, with prices."""

    def make() -> Path:
        root = tmp_path_factory.mktemp("service-database")
        with (root / "items.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "dataset", "price"))
            for dataset, paths in images.items():
                for number, path in enumerate(paths):
                    writer.writerow((path, f"{path.parent.name} <i>", dataset, number))
        # So few queries calibrate no smaller rate.
        options = ("--db", root / "db", "--device.accelerator", "cpu", "--false_match_rate", 0.1)
        assert unimetric("index", toy_run, root / "items.csv", *options) == 0
        return root / "db"

    return make


@pytest.fixture(scope="session")
def database(make_database: Callable[[], Path]) -> Path:
    """Only to be read."""
    return make_database()


@pytest.fixture(scope="session")
def server(database: Path) -> Iterator[Server]:
    """A running service that takes no changes."""
    started = start_server(database, "--max_upload_bytes", 300_000, "--max_pixels", 1_000_000)
    yield started
    code, said = started.stop()
    assert code == 0
    assert "Traceback" not in said, said


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), seed: int = 0, **options: Any) -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
