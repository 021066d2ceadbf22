"""The pages that say how to add a dataset, a loss and a method, followed to the letter on a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def add_lines(text: str, change: str) -> str:
    """Apply a change as the pages print it: a line of context, then the lines to add after it."""
    context = ""
    for line in change.splitlines():
        if line.startswith(" "):
            context = line[1:] + "\n"
            assert text.count(context) == 1, f"{context!r} is no line of the file, or several"
        elif line.startswith("+"):
            added = line[1:] + "\n"
            text = text.replace(context, context + added)
            context = added
    return text


def test_following_the_pages_gives_what_passes_its_tests(tmp_path: Path) -> None:
    """All in one copy and with one start of pytest, which imports torch."""
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    places, words = [], []
    for page in sorted((ROOT / "docs/adding").glob("*.md")):
        commands: list[str] = []
        for language, title, content in BLOCK.findall(page.read_text()):
            if language == "python":
                assert not (tmp_path / title).exists()
                (tmp_path / title).write_text(content)
            elif language == "diff":
                file = tmp_path / title
                file.write_text(add_lines(file.read_text(), content))
            else:
                commands += [line for line in content.splitlines() if line.startswith(".venv/bin/python")]
        (command,) = commands
        place, _, word = command.removeprefix(".venv/bin/python -m pytest ").partition(" -k ")
        places.append(place)
        words.append(word or Path(place).stem)
    tests = ["-m", "pytest", "-v", "-p", "no:cacheprovider", *places, "-k", " or ".join(words)]
    for check in (tests, ["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."]):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *check], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if check is tests:
            assert [word for word in words if not re.search(rf"{word}.* PASSED", done.stdout)] == []
