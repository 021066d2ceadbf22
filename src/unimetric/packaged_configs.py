"""Configurations that come with the package, by name."""

from pathlib import Path

from unimetric.errors import UserError, nearest_names
from unimetric.files import user_path

_CONFIGS = Path(__file__).parent / "configs"


def config_names() -> list[str]:
    """Return the names of the packaged run configurations, sorted."""
    return _names(_CONFIGS)


def config_path(text: str) -> Path:
    """Return the file of a run configuration, given by path or packaged name; a `UserError` if there is neither."""
    return _find(text, _CONFIGS, f"--config {text}: no such file, nor a packaged configuration")


def benchmark_path(text: str) -> Path:
    """Return the file of a benchmark, given by path or packaged name; a `UserError` if there is neither."""
    return _find(text, _CONFIGS / "benchmark", f"{text}: no such file, nor a packaged benchmark")


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _find(text: str, folder: Path, problem: str) -> Path:
    found = next((path for path in (user_path(text), folder / f"{text}.yaml") if path.is_file()), None)
    if found is None and user_path(text).exists():
        raise UserError(f"{problem.partition(':')[0]}: it is not a regular file; name a YAML file")
    if found is None:
        raise UserError(f"{problem}; {nearest_names(text, _names(folder))}")
    return found
