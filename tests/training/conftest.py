from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_runs import make_images


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums do not depend on how many cores are free, in this process or another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets; 4 + 3 train classes, 35 train images."""
    root = tmp_path_factory.mktemp("sources")
    return [make_images(root / "a", classes=8), make_images(root / "b", classes=6, seed=1)]
