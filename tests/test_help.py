"""Help pages: short, complete, and within the terminal's width; tab completion of commands and options."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from toy_runs import unimetric
from unimetric.arguments import Command
from unimetric.cli import COMMANDS


def page(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert unimetric(*arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (80, 100, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        for option in ("--help", "--help-all"):
            lines = page(capsys, command, option).splitlines()
            assert max(map(len, lines)) <= width
        if width == 100:
            assert len(page(capsys, command, "--help").splitlines()) <= 50


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_one_line_for_an_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = page(capsys, command, "--help").splitlines()
    continued = [line for line in lines if line.startswith(" " * 32)]
    long_names = [line for line in lines if len(line) > 30 and re.fullmatch(r"  --\S+( \S+)?", line)]
    assert len(continued) == len(long_names), "a description begins on the line below a long name only"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = Command(command, COMMANDS[command]).options
    assert [option.name for option in options if not option.text] == []
    text = page(capsys, command, "--help-all")
    assert [option.title for option in options if option.title not in text] == []
    common = page(capsys, command, "-h")
    assert [option.title for option in options if option.common and option.title not in common] == []
    hidden = [option for option in options if not option.common]
    assert (f"{len(hidden)} more options, and details: unimetric {command} --help-all" in common) == bool(hidden)
    cut = [
        option.name for option in options if option.text.replace("``", "").rstrip(".") not in " ".join(common.split())
    ]
    assert ("--help-all" in common) == bool(cut)


def test_help_lists_only_options_that_a_command_uses(capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, "evaluate", "--help-all")
    assert not any(word in text for word in ("--training.", "--loss.", "--sampling.", "--device.processes"))
    for command in COMMANDS:
        assert ("--device.processes" in page(capsys, command, "--help-all")) == (command == "train")


def test_defaults_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(page(capsys, "train", "--help-all").split())
    assert "--training.learning_rate N Base rate; every group of parameters multiplies it. [0.0001]" in text
    assert "Steps over which the rate rises linearly from 0. [0]" in text
    assert "Mirror half of the training images. [true]" in text
    assert "None" not in text
    assert "``" not in text


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["tr"], {"train"}),
        (["search", "--fal"], {"--false_match_rate"}),
        (["train", "--training.schedule", ""], {"step", "cosine", "constant"}),
        (["datasets", ""], {"list", "check"}),
        (["serve", "--originals", ""], {"true", "false"}),
        (["train", "--data.split", ""], {"auto", "given", "test-only"}),
        (["search", "-"], {"-k", "--where", "--help-all", "--debug"}),
        (["--"], {"--help", "--version", "--print_completion"}),
    ],
)
def test_bash_completes(
    words: list[str], completed: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "unimetric"
    script.write_text(page(capsys, "--print_completion", "bash"))
    typed = " ".join(f"'{word}'" for word in ["unimetric", *words])
    code = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; "
        f"_shtab_unimetric unimetric '{words[-1]}' '{words[-2] if len(words) > 1 else 'unimetric'}'; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert completed <= set(done.stdout.split())


def test_bash_completes_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.json").touch()
    script = page(capsys, "--print_completion", "bash")
    for words in (
        ["index", "--metrics"],
        ["index", "--calibrate"],
        ["extend", "run", "--data"],
        ["evaluate", "--ensemble"],
    ):
        code = (
            f"{script}\ncd {tmp_path}; COMP_WORDS=(unimetric {' '.join(words)} met); COMP_CWORD={len(words) + 1}; "
            f"_shtab_unimetric unimetric met '{words[-1]}'; printf '%s' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "metrics.json", words


def test_zsh_has_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    script = page(capsys, "--print_completion=zsh")
    assert script.startswith("#compdef unimetric")
    assert all(command in script for command in COMMANDS)


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("--print_completion", "fish") == 2
    assert "valid: bash, zsh" in capsys.readouterr().err
