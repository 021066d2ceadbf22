"""Configurations that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from unimetric.errors import UserError, nearest_names
from unimetric.files import user_path

_CONFIGS = Path(__file__).parent / "configs"


def config_names() -> list[str]:
    """Return the names of the packaged run configurations, sorted."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml"))


def benchmark_names() -> list[str]:
    """Return the names of the packaged benchmarks, sorted."""
    return sorted(path.stem for path in (_CONFIGS / "benchmark").glob("*.yaml"))


def config_path(text: str) -> Path:
    """Return the file of a run configuration, given by path or packaged name.

    Raises:
        UserError: there is neither.
    """
    path = user_path(text)
    if path.is_file():
        return path
    packaged = _CONFIGS / f"{text}.yaml"
    if packaged.is_file():
        return packaged
    raise UserError(
        f"--config {text}: no such file, nor a packaged configuration; {nearest_names(text, config_names())}"
    )


def benchmark_path(text: str) -> Path:
    """Return the file of a benchmark, given by path or packaged name.

    Raises:
        UserError: there is neither.
    """
    path = user_path(text)
    if path.is_file():
        return path
    packaged = _CONFIGS / "benchmark" / f"{text}.yaml"
    if packaged.is_file():
        return packaged
    raise UserError(f"{text}: no such file, nor a packaged benchmark; {nearest_names(text, benchmark_names())}")
