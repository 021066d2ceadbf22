"""Odd values for every option of every command: an error is one line with exit code 2, and never a traceback.

Functions of the same signatures replace the commands, so that a value which is accepted starts no work.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toy_runs import unimetric
from unimetric.arguments import Command
from unimetric.cli import COMMANDS
from unimetric.config import RunConfig
from unimetric.config_resolution import typed_config
from unimetric.errors import UserError

LIMITS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
OPTIONS = [(name, option) for name, function in COMMANDS.items() for option in Command(name, function).options]

ODD = [
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1.5",
        "nan",
        "inf",
        "1e400",
        "0x10",
        "1_000",
        "9" * 5000,
        "null",
        "no",
        "2024-13-45",
    ),
    *("[1,", "[no, 2024]", "{2024: 2, no: 3}", "{[1]: 2}", "{1.5: x}", "{null: 1}", "? a", "&a [*a]", "*x", "[" * 3000),
    *(
        "!!python/object:os.system {}",
        "{a: {b: [1, {2: 3}]}}",
        "\x00",
        "\ud800",
        "é\u200b",
        "\n",
        "%s",
        "${HOME}",
        "~nobody/x",
    ),
]
odd_values = st.sampled_from(ODD) | st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
nested: st.SearchStrategy[Any] = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3), max_leaves=8
)


def idle(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def called(**values: Any) -> int:
        check_types(function, values)
        return 0

    return called


def check_types(function: Callable[..., int], values: dict[str, Any]) -> None:
    """A command's values have the types of its signature."""
    hints = typing.get_type_hints(function)
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(value, typing.cast(type, hint))
        elif list[Path] in (hint, *typing.get_args(hint)):
            assert all(isinstance(path, Path) for path in value)
        elif Path in (hint, *typing.get_args(hint)):
            assert value is None or isinstance(value, Path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    idle_commands = {name: idle(function) for name, function in COMMANDS.items()}
    with patch.dict("unimetric.cli.COMMANDS", idle_commands):
        code = unimetric(*arguments)
    error = capsys.readouterr().err
    if code:
        assert code == 2
        assert error.startswith("unimetric: error: ")
        assert error.count("\n") == 1
        assert len(error) < 1500
        assert error.rstrip("\n").isprintable()
    else:
        assert error == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_an_odd_value_for_each_option(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, option in enumerate(option for name, option in OPTIONS if name == command):
        value = ODD[(7 * number) % len(ODD)]
        run(capsys, command, value) if option.positional else run(capsys, command, f"--{option.name}={value}")


def check_one(capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(sorted(COMMANDS)))
    mine = [option for name, option in OPTIONS if name == command]
    arguments = [command]
    for option in data.draw(st.lists(st.sampled_from(mine), max_size=4)):
        value = data.draw(odd_values)
        if option.positional:
            arguments.append(value)
        elif data.draw(st.booleans()):
            arguments += [f"--{option.name}", value]
        else:
            arguments.append(f"--{option.name}{data.draw(st.sampled_from(['', '.x', '+', '.']))}={value}")
    run(capsys, *arguments)


@LIMITS
@given(data=st.data())
def test_odd_command_lines(capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
    check_one(capsys, data)


@pytest.mark.soak
@settings(LIMITS, max_examples=5000, derandomize=False, print_blob=True)
@given(data=st.data())
def test_odd_command_lines_for_long(capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
    check_one(capsys, data)


SECTIONS = sorted(RunConfig.__dataclass_fields__)
FIELDS = sorted({option.name.partition(".")[2] for _, option in OPTIONS if option.is_field and "." in option.name})


@LIMITS
@example(values={"data": {"train_images": {2024: 2, False: 3}}})
@example(values={"data": {"train_datasets": [2024, True]}})
@example(values={"model": {"options": {1: 2}}})
@example(values={2024: {}})
@example(values={"data": {2024: 3}})
@given(
    st.dictionaries(
        st.sampled_from(SECTIONS) | plain, st.dictionaries(st.sampled_from(FIELDS) | plain, nested, max_size=3) | nested
    )
)
def test_odd_configurations(values: dict[Any, Any]) -> None:
    try:
        config = typed_config(values, "mine.yaml")
    except UserError as error:
        assert str(error).startswith("mine.yaml")
    else:
        assert isinstance(config, RunConfig)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.train_images", "{2024: 2, no: 3}"], "2024 is read as a number; write it in quotes, as in '2024'"),
        (["--data.train_images", "{no: 3}"], "False is read as a truth value; write it in quotes, as in 'no'"),
        (["--data.train_images", "{null: 2}"], "None is read as nothing; write it in quotes, as in 'null'"),
        (["--data.train_images", "{2024-01-02: 2}"], "2024-01-02 is read as a date; write it in quotes, as in '2024-"),
        (["--data.train_datasets", "[a, ~]"], "None is read as nothing; write it in quotes"),
        (["--data.train_datasets", "[a, 2024]"], "2024 is read as a number; write it in quotes"),
        (["--data.train_datasets", "[a, 2024-01-02]"], "is read as a date; write it in quotes"),
    ],
)
def test_names_that_yaml_reads_as_something_else(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert unimetric("train", *arguments, "--print_config") == 2
    error = capsys.readouterr().err
    assert words in error
    assert arguments[0] in error
    option = arguments[0].removeprefix("--data.")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"data": {option: yaml.safe_load(arguments[1])}}, sort_keys=False))
    assert unimetric("train", "--config", file, "--print_config") == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(file) in error


def test_quotes_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("train", "--data.train_images", "{'2024': 2, 'no': 3}", "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["train_images"] == {"2024": 2, "no": 3}


def test_no_other_spelling_is_advised_than_the_one_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("[12:30]", "[010]", "[1_000]"):
        assert unimetric("train", "--data.train_datasets", typed, "--print_config") == 2
        assert "is read as a number; write it in quotes\n" in capsys.readouterr().err
