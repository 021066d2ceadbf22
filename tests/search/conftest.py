from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from search_toys import FP32, make_model, store, thresholds

from toy_runs import make_images, one_thread
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.stores import lancedb_tables

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; only to be read."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def embedder(model: Path) -> Embedder:
    return Embedder.from_pretrained(model)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, hats and shoes, of 3 classes with 4 images each; only to be read."""
    root = tmp_path_factory.mktemp("images")
    make_images(root / "hats", classes=3, images=4)
    make_images(root / "shoes", classes=3, images=4, seed=1)
    return root


@pytest.fixture(scope="session")
def catalogue(images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of both datasets with prices, made by the command; only to be read."""
    from unimetric.commands.index import ThresholdOptions, index_sources

    root = tmp_path_factory.mktemp("catalogue")
    manifest = root / "all.csv"
    lines = ["path,label,dataset,price,colour,in stock,code"]
    for number, path in enumerate(sorted(images.glob("*/*/*.png"))):
        price = "" if number == 5 else f"{number * 1.5}"
        colour = "it's red" if number % 2 else "blue"
        lines.append(f"{path},{path.parent.name},{path.parts[-3]},{price},{colour},{number < 12},{number:04}")
    manifest.write_text("\n".join(lines) + "\n")
    (root / "metrics.json").write_text(json.dumps({"thresholds": thresholds()}))
    index_sources(model, [str(manifest)], str(root / "db"), thresholds=ThresholdOptions(metrics=str(root)), device=FP32)
    return root / "db"


@pytest.fixture
def index(catalogue: Path, embedder: Embedder):
    with SearchIndex.open(catalogue, embedder=embedder, device=FP32) as opened:
        yield opened


@pytest.fixture
def readers_look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look for the writes of others before each read, not once in a while."""
    monkeypatch.setattr(lancedb_tables, "READERS_SEE_WRITES_WITHIN", timedelta(0))


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return Path(shutil.copytree(images, tmp_path / "images"))


@pytest.fixture
def fill(model: Path) -> Callable[..., SearchIndex]:
    """Makes a database of given vectors [N, 16], without images."""

    def make(db: Path, vectors: np.ndarray, datasets: list[str] | None = None, model: Path = model) -> SearchIndex:
        index = SearchIndex.create(db, model)
        count = len(vectors)
        names = ["id", "dataset", "label", "path", "content_hash", "fingerprint"]
        columns = {name: [f"{name}{row:06}" for row in range(count)] for name in names}
        columns["dataset"] = datasets or ["d"] * count
        flat = pa.array(vectors.astype(np.float32).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        columns["thumbnail"] = pa.nulls(count, pa.binary())
        store(index).merge(pa.table(columns))
        return index

    return make
