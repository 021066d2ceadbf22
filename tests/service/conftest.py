"""A real database on disk, and real servers in processes of their own."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from serving import Server, start_server
from toy_runs import make_images, options_file, unimetric


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
