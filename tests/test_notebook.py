"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

import pytest

from toy_runs import one_thread

__all__ = ["one_thread"]

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def test_it_runs_and_finds_the_query_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, since a kernel would first import torch."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in cells if cell.outputs], "clear the outputs before a commit"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    for cell in cells:
        program = ast.parse(cell.source)
        shown = program.body.pop() if isinstance(program.body[-1], ast.Expr) else None
        exec(compile(program, "cell", "exec"), names)
        value = eval(compile(ast.Expression(shown.value), "cell", "eval"), names) if shown else None
    assert value[0] == ("colour-07", 1.0)
