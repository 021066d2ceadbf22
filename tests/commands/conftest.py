from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from toy_runs import make_images, one_thread, options_file, unimetric

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets with 4 + 3 test classes, 20 + 15 test images."""
    root = tmp_path_factory.mktemp("sources")
    return [make_images(root / "a", classes=8), make_images(root / "b", classes=6, seed=1)]


@pytest.fixture(scope="session")
def run(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; only to be read."""
    root = tmp_path_factory.mktemp("trained")
    options = options_file(root / "options.yaml", training={"steps": 5})
    assert unimetric("train", *sources, "--out", root / "run", "--config", options) == 0
    return root / "run"


@pytest.fixture(scope="session")
def run_on_a_file(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose backbone's weights are a file, and that file; only to be read."""
    root = tmp_path_factory.mktemp("from-a-file")
    torch.manual_seed(3)
    vit = timm.create_model("test_vit", num_classes=0)
    save_file(vit.state_dict(), root / "vit.safetensors")
    options = options_file(
        root / "options.yaml", training={"steps": 2}, model={"weights": str(root / "vit.safetensors")}
    )
    assert unimetric("train", *sources, "--out", root / "run", "--config", options) == 0
    return root / "run", root / "vit.safetensors"
