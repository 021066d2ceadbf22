"""Size and prose of the source code: the numbers that CONTRIBUTING.md names as limits.

python benchmarks/house.py [FOLDER]     # src/unimetric by default
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OPENINGS = ("What", "Whether", "How", "Where", "Who")
WORDS = re.compile(r"\b(mend(s|ed|ing)?|told|tells?|says?|said|stands?|stood)\b", re.IGNORECASE)


def main() -> None:
    """Print the numbers of a folder of source code as JSON."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "unimetric"
    print(json.dumps(measured(folder), indent=2))


def measured(folder: Path) -> dict[str, Any]:
    """Lines, files, longest file and functions, and docstrings of all Python files in a folder.

    Returns:
        ``lines``, ``files``, ``longest_file``, ``files_over_400``, ``longest_function``, ``functions_over_60``,
        ``docstrings``, ``question_openings`` (docstrings that open with one of `OPENINGS`), ``odd_words`` (lines of
        docstrings with one of `WORDS`, some of which are good English in places).
    """
    files = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    lengths = {str(path.relative_to(folder)): text.count("\n") for path, text in files.items()}
    functions: dict[str, int] = {}
    docstrings: list[str] = []
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(folder)}:{node.name}"
                functions[name] = (node.end_lineno or node.lineno) - node.lineno + 1
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstrings += _docstring(node)
    return {
        "lines": sum(lengths.values()),
        "files": len(files),
        "longest_file": max(lengths.items(), key=lambda item: item[1]),
        "files_over_400": {name: length for name, length in lengths.items() if length > 400},
        "longest_function": max(functions.items(), key=lambda item: item[1]),
        "functions_over_60": {name: length for name, length in functions.items() if length > 60},
        "docstrings": len(docstrings),
        "question_openings": sum(text.startswith(OPENINGS) for text in docstrings),
        "odd_words": sum(bool(WORDS.search(line)) for text in docstrings for line in text.splitlines()),
    }


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield text


if __name__ == "__main__":
    main()
