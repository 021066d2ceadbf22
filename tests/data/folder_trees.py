"""Folders of empty files, and what is read from them."""

from __future__ import annotations

import random
from pathlib import Path

from unimetric.data.sources.folder import read_folder


def make(root: Path, *names: str) -> Path:
    """Create files below ``root`` in a scrambled order; a trailing slash makes a folder."""
    for name in random.Random(0).sample(names, len(names)):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def found(root: Path, name: str | None = None) -> dict[str, list[tuple[str, str, str | None]]]:
    return {
        dataset.name: [(item.path.relative_to(root).as_posix(), item.label, item.role) for item in dataset.items]
        for dataset in read_folder(root, name)
    }


def ignored(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for dataset in read_folder(root) for path in dataset.ignored]


def unusable(root: Path) -> dict[str, str]:
    return {e.path.relative_to(root).as_posix(): e.reason for dataset in read_folder(root) for e in dataset.unusable}
