"""`make bench`: every short form can be started, and its results are read; what it measures is not tested here."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def short_forms() -> dict[str, Any]:
    return {benchmark.name: benchmark for benchmark in runpy.run_path(str(BENCHMARKS / "all.py"))["BENCHMARKS"]}


NAMES = ["embed", "train_step", "data", "evaluate", "search", "serve", "startup"]


def test_none_is_forgotten(short_forms: dict[str, Any]) -> None:
    assert sorted(short_forms) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_the_committed_result(name: str, short_forms: dict[str, Any]) -> None:
    result = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    rows = list(short_forms[name].rows(result))
    assert rows
    assert all(math.isfinite(row.ratio) and row.ratio > 0 for row in rows)
    assert len({row.figure for row in rows}) == len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_its_options_exist(
    name: str,
    short_forms: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    known = capsys.readouterr().out.replace(",", " ").split()
    given = [argument for argument in short_forms[name].arguments(tmp_path) if argument.startswith("--")]
    assert [option for option in given if option not in known and f"[{option}" not in known] == []
