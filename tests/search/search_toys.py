"""Small models, thresholds, and a look at what is in a database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimetric.config import DeviceConfig
from unimetric.geometry import PoincareBall
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.stores import open_store
from unimetric.search.stores.base import Store

FillIndex = Callable[..., SearchIndex]
FP32 = DeviceConfig(accelerator="cpu", precision="fp32")


def make_model(folder: Path, seed: int = 0, geometry: str | PoincareBall = "sphere", size: int = 16) -> Path:
    torch.manual_seed(seed)
    backbone = make_backbone("test_vit", weights="random", image_size=32)
    Embedder(backbone, "linear", embedding_size=size, geometry=geometry).eval().save_pretrained(folder)
    return folder


def thresholds() -> dict[str, Any]:
    """As in metrics.json: unified 0.9 at a rate of 0.01, hats 0.5; shoes were too few."""

    def gallery(threshold: float | None, impostors: int) -> dict[str, object]:
        roc = {"thresholds": [0.0, 0.5, 0.9], "false_match_rates": [1.0, 0.1, 0.01], "false_non_match_rates": [0, 0, 0]}
        points = [{"wanted_false_match_rate": rate, "threshold": threshold} for rate in (0.1, 0.01)]
        answers = {"scores": [0.0, 0.5, 0.9], "right": [0.1, 0.5, 0.95]} if threshold else None
        return {
            "impostors": impostors,
            "operating_points": points,
            "roc": roc if threshold else None,
            "answers": answers,
        }

    return {"unified": gallery(0.9, 999), "separate": {"hats": gallery(0.5, 9), "shoes": gallery(None, 3)}}


def store(index: SearchIndex) -> Store:
    return index._store


def dump(db: Path) -> list[dict[str, object]]:
    """All rows by id."""
    opened = open_store(db)
    return sorted(opened.rows(opened.column_names).to_pylist(), key=lambda row: str(row["id"]))


def new_picture(path: Path, colour: tuple[int, int, int] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 30), colour).save(path)
    return path


def recall(index: SearchIndex, vectors: np.ndarray, exact: bool = False) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = np.random.default_rng(5).normal(size=(20, 16)).astype(np.float32)
    found = 0
    for vector, matches in zip(queries, index.search_vectors(queries, 10, exact=exact), strict=True):
        best = {f"id{row:06}" for row in np.argsort(-(unit @ vector))[:10]}
        found += len(best & {match.id for match in matches})
    return found / 200
