"""Configurations that come with the package, by name."""

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
    return _find(text, _CONFIGS, f"--config {text}: no such file, nor a packaged configuration", config_names())


def benchmark_path(text: str) -> Path:
    """Return the file of a benchmark, given by path or packaged name.

    Raises:
        UserError: there is neither.
    """
    return _find(text, _CONFIGS / "benchmark", f"{text}: no such file, nor a packaged benchmark", benchmark_names())


def _find(text: str, folder: Path, problem: str, names: list[str]) -> Path:
    found = next((path for path in (user_path(text), folder / f"{text}.yaml") if path.is_file()), None)
    if found is None and user_path(text).exists():
        raise UserError(f"{problem.partition(':')[0]}: it is not a regular file; name a YAML file")
    if found is None:
        raise UserError(f"{problem}; {nearest_names(text, names)}")
    return found
