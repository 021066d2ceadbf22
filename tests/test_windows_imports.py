"""No module imports what only Unix has when it is imported itself, so that each can be imported on Windows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import unimetric

UNIX = {"fcntl", "grp", "pwd", "resource", "syslog", "termios"}


def imported_at_once(node: ast.AST) -> Iterator[str]:
    """Names of the modules that are imported outside of functions, conditions and attempts included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (name.name.partition(".")[0] for name in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield str(child.module).partition(".")[0]
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imported_at_once(child)


def test_no_module_of_unix_is_imported() -> None:
    assert set(imported_at_once(ast.parse("if True:\n import pwd, os.path\ndef f():\n import grp"))) == {"pwd", "os"}
    files = sorted(Path(unimetric.__file__).parent.rglob("*.py"))
    assert len(files) > 200
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    assert {path: found for path, tree in trees.items() if (found := UNIX & set(imported_at_once(tree)))} == {}
