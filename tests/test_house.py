"""Size and prose of the source code stay within the limits that CONTRIBUTING.md names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_files_stay_short_and_docstrings_open_plainly() -> None:
    spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    measured = house.measured(ROOT / "src" / "unimetric")
    assert measured["files"] > 200
    assert measured["files_over_400"] == {}
    assert measured["question_openings"] <= 0.02 * measured["docstrings"]
