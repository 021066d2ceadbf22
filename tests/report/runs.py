"""Folders that reports are made of, without a model: images, vectors and numbers that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimetric.data.catalog import Item
from unimetric.evaluation import evaluate
from unimetric.evaluation.budgets import measure_budgets
from unimetric.formats.vectors import MeasuredVectors, write_measured
from unimetric.geometry import Sphere
from unimetric.models.sizes import Sizes

HOSTILE = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'odd' $x_1^{2$ {{ 7 * 7 }}",
    "averylongnamewithoutanyspace" * 8,
    "línea\nnueva 漢字 🦉",
)
"""Names of datasets, and of what is in them, that a careless page would trip over."""

LATIN_HOSTILE_FILE = "<img src=x onerror=alert(1)> & 'q'.png"


def make_run(
    folder: Path,
    names: tuple[str, ...] = ("birds", "cars"),
    *,
    classes: int = 3,
    images: int = 4,
    noise: float = 0.8,
    seed: int = 0,
    pictures: Path | None = None,
    file: str = "{}.png",
) -> Path:
    """A folder as ``unimetric evaluate`` writes it, for a model of this seed; ``pictures`` are made if missing."""
    random, classes_at = np.random.default_rng(seed), np.random.default_rng(99)
    pictures = pictures or folder.parent / f"{folder.name}-pictures"
    items, rows = [], []
    for number, dataset in enumerate(names):
        for label in range(classes):
            centre = classes_at.normal(size=8)
            for image in range(images):
                path = pictures / str(number) / str(label) / file.format(image)
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (30, 20), (80 * number % 256, 60 * label % 256, 40 * image)).save(path)
                items.append(Item(path, f"{dataset} {label}", dataset))
                rows.append(centre + noise * random.normal(size=8))
    return write_run(folder, tuple(items), np.array(rows, dtype=np.float32))


def write_run(folder: Path, items: tuple[Item, ...], vectors: Any, **more: Any) -> Path:
    """``metrics.json`` and ``vectors.parquet`` of items that are query and gallery at once."""
    folder.mkdir(parents=True, exist_ok=True)
    write_measured(folder / "vectors.parquet", MeasuredVectors(items, vectors, items, vectors))
    report = evaluate(vectors, [item.label for item in items], [item.dataset for item in items], ks=(1, 2)).to_dict()
    report["counts"] |= {"skipped_files": 1}
    metrics = {
        **report,
        "budgets": measure_budgets(
            MeasuredVectors(items, vectors, items, vectors), Sizes(nested=(min(4, vectors.shape[1]),)), Sphere()
        ),
        "seconds": 1.0,
        "skipped": [{"path": f"/x/{HOSTILE[0]}.png", "reason": "truncated"}],
        "model": {
            "backbone": "none",
            "method": "linear",
            "image_size": 32,
            "embedding_size": 8,
            "geometry": {"name": "sphere"},
            "trainable_parameters": 10,
        },
        "configuration": {"data": {"sources": [HOSTILE[0], "plain"]}},
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder
