"""Options from a hostile file: one line, in little time and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mutations import damaged, little_memory
from unimetric.cli import main
from unimetric.config import read_options
from unimetric.errors import UserError
from unimetric.packaged_configs import config_path
from unimetric.studies.matrix_file import read_matrix
from unimetric.yaml_files import read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]\n" for number in range(1, 10)
)
MERGED = "a0: &a0 {x0: 1, y0: 1}\n" + "".join(
    f"a{number}: &a{number} {{<<: [{', '.join([f'*a{number - 1}'] * 10)}], x{number}: 1}}\n" for number in range(1, 10)
)
CHAINED = (
    "a0: &a0 "
    + "[" * 40
    + "]" * 40
    + "\n"
    + "".join(f"a{number}: &a{number} {'[' * 40}*a{number - 1}{']' * 40}\n" for number in range(1, 50))
)
REFUSED = {
    "laughs": (LAUGHS, "holds more than"),
    "laughs as an option": (LAUGHS + "data: *a9\n", "holds more than"),
    "merged": (MERGED, "holds more than"),
    "chained": (CHAINED, "nested deeper"),
    "circle": ("data: &a {sources: *a}", "nested deeper"),
    "circles": ("data: &a [*a, *a, *a]", "nested deeper"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep maps": ("{a: " * 50_000, "nested too deeply"),
    "deep blocks": ("- " * 100_000 + "x", "nested too deeply"),
    "sixty": ("data: " + "[" * 60 + "]" * 60, "nested deeper"),
    "digits": ("training: {seed: " + "9" * 10_000 + "}", "10000 characters"),
    "sexagesimal": ("training: {seed: 1" + ":1" * 10_000 + "}", "20001 characters"),
    "octal": ("training: {batch_size: 010}", "line 1: YAML reads 010 as a number to the base of 8"),
    "time of day": ("data:\n  train_datasets: [12:30]", "line 2: YAML reads 12:30 as a number to the base of 8 or 60"),
    "no day": ("training: {seed: 2020-13-45}", "not YAML"),
    "no number": ("training: {seed: !!int x}", "not YAML"),
    "no digits": ("training: {seed: !!int ''}", "not YAML"),
    "no truth": ("training: {seed: !!bool x}", "not YAML"),
    "python name": ("data: !!python/name:os.system", "not YAML"),
    "python call": ("data: !!python/object/apply:os.system ['echo x > /tmp/x']", "not YAML"),
    "python tuple": ("data: {sources: !!python/tuple [a]}", "not YAML"),
    "repeated": ("training:\n  seed: 1\n  seed: 2\n", "line 3 is not YAML: 'seed' is there twice"),
    "repeated section": ("data: {}\n'data': {}\n", "line 2 is not YAML: 'data' is there twice"),
    "own tag": ("data: !anything {}", "not YAML"),
    "list for a name": ("? [a]\n: b", "not YAML"),
    "two documents": ("data: {}\n---\ndata: {}", "not YAML"),
    "zero byte": ("data: {sources: ['\0']}", "not YAML"),
    "too large": ("#" * 2**20 + "\n", "more than 1048576 bytes"),
    "odd name": ("'a\\nb': " + "x" * 10_000, "unknown option"),
    "long": ("'" + "y" * 1000 + "': 1", "unknown option"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = REFUSED[case]
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with little_memory(2**29):
        assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 2000
    assert words in said and str(path) in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError) as caught:
        read_matrix(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


def test_aliases_and_merges_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, x: 4}\nc: *a\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": [2, 3]}, "b": {"x": 4, "y": [2, 3]}, "c": {"x": 1, "y": [2, 3]}}


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n...\n"])
def test_nothing_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_bytes(content)
    assert read_yaml(tmp_path / "empty.yaml") is None


def test_damaged_files_are_refused_or_read(tmp_path: Path, seeds: Iterator[int]) -> None:
    content, path = config_path("puma").read_bytes(), tmp_path / "options.yaml"
    outcomes = Counter[bool]()
    for random in map(Random, seeds):
        for _ in range(60):
            path.write_bytes(damaged(content, random))
            try:
                assert isinstance(read_options(path), dict)
                outcomes[True] += 1
            except UserError as error:
                assert str(error).isprintable() and len(str(error)) < 2000
                assert str(path) in str(error)
                outcomes[False] += 1
    assert outcomes[True] and outcomes[False]
