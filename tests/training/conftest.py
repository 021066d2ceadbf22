from __future__ import annotations

from pathlib import Path

import pytest

from toy_runs import make_images, one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets; 4 + 3 train classes, 35 train images."""
    root = tmp_path_factory.mktemp("sources")
    return [make_images(root / "a", classes=8), make_images(root / "b", classes=6, seed=1)]
