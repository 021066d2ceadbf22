"""Manifests of four empty files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unimetric.data.catalog import Dataset
from unimetric.data.sources.manifest import read_manifest

IMAGES = ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")


@pytest.fixture(autouse=True)
def four_images(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in IMAGES:
        (tmp_path / name).touch()


def read_csv(tmp_path: Path, content: str | bytes, name: str | None = None) -> list[Dataset]:
    file = tmp_path / "birds.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifest(file, name)


def read_parquet(tmp_path: Path, columns: dict[str, Any]) -> list[Dataset]:
    file = tmp_path / "birds.parquet"
    pq.write_table(pa.table(columns), file)
    return read_manifest(file)


def labels(datasets: Sequence[Dataset]) -> list[str]:
    return [item.label for dataset in datasets for item in dataset.items]
