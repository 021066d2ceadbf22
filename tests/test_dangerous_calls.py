"""No code comes from data: what could run some is not in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "unimetric"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "torch.load", "torch.hub.load", "yaml.unsafe_load"}
OPTIONS = {"shell", "trust_remote_code", "allow_pickle"}


def dangers(tree: ast.AST) -> list[str]:
    """Those of the above that a module imports, calls or switches on, by line."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if (node.module or "").split(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            names = [called] if called in CALLS else []
            on = [k.arg for k in node.keywords if k.arg in OPTIONS and getattr(k.value, "value", True) is not False]
            names += [f"{called}({option}=...)" for option in on]
            if called == "yaml.load" and "_Loader" not in ast.unparse(node):
                names.append(called)
        found += [f"line {node.lineno}: {name}" for name in names]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
    ],
)
def test_each_danger_is_seen(line: str) -> None:
    assert len(dangers(ast.parse(line))) == 1


def test_the_package_has_none() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 150
    found = {str(file.relative_to(SOURCE)): dangers(ast.parse(file.read_text())) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}
