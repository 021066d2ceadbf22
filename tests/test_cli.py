"""The command line: no torch before it is needed, and every mistake in one clear line with exit code 2."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cli_failures import Failure, data, fails, options, out
from toy_runs import make_images, one_thread, options_file, read_json, start, tensors, unimetric
from unimetric.cli import COMMANDS, main

__all__ = ["data", "fails", "one_thread", "options", "out"]


@pytest.mark.parametrize("code", ["import unimetric", "from unimetric.cli import main; main(['--help'])", "HELP"])
def test_torch_is_not_loaded_before_it_is_needed(code: str) -> None:
    if code == "HELP":
        code = "from unimetric.cli import main; main(['train', '--help'])"
    script = f"""
import sys
try:
    {code}
except SystemExit as stop:
    assert not stop.code
heavy = [name for name in ("torch", "timm", "numpy", "PIL", "pyarrow", "lightning_fabric") if name in sys.modules]
print(heavy, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    if "main" in code:
        assert "usage: unimetric" in done.stdout


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("train", "evaluate", "embed", "demo"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("unimetric 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'"]),
        (["--vresion"], ["unknown option --vresion", "did you mean '--version'"]),
        (["train", "A", "--out", "OUT", "--training.epocs", "3"], ["--training.epocs", "'--training.epochs'"]),
        (["train", "A", "--out", "OUT", "--training.epochs", "many"], ["--training.epochs is 'many'", "whole number"]),
        (["train", "A", "--out", "OUT", "--training.epochs", "0"], ["--training.epochs is 0"]),
        (
            ["train", "A", "--out", "OUT", "--training.schedule", "cosin"],
            ["--training.schedule is 'cosin'", "'cosine'"],
        ),
        (
            ["train", "A", "--out", "OUT", "--data.workers", "many"],
            ["--data.workers is 'many'", "a whole number or auto"],
        ),
        (["train", "A", "--out", "OUT", "--data.strict", "perhaps"], ["--data.strict is 'perhaps'", "true or false"]),
        (["train", "A", "--out", "OUT", "B"], ["arguments: B", "side by side"]),
        (["train", "A"], ["--out is missing"]),
        (["train", "--out", "OUT"], ["no source is given"]),
        (["train", "A", "--out"], ["--out", "expected one argument"]),
        (["embed", "A"], ["SOURCE is missing"]),
        (["embed", "A", "A"], ["--out is missing"]),
        (["embed", "A", "A", "--o", "v.npz"], ["unknown option --o", "'--out'"]),
        (["train", "A", "--out", "OUT", "--training.epoc", "3"], ["--training.epoc;", "'--training.epochs'"]),
        (["train", "A", "--ou", "OUT"], ["unknown option --ou", "'--out'"]),
        (["evaluate", "A", "--model.metho", "frozen"], ["unknown option --model.metho", "'--model.method'"]),
        (["train", "A", "--out", "OUT", "--model.backbone", "vit_tiny_patch16_242"], ["'vit_tiny_patch16_224'"]),
        (["train", "A", "--out", "OUT", "--model.backbone", "resnet50"], ["resnet", "not supported"]),
        (
            ["train", "A", "--out", "OUT", "--loss.name", "arcfase"],
            ["unknown --loss.name 'arcfase'", "did you mean 'arcface'"],
        ),
        (["train", "A", "--out", "OUT", "--loss.options.margn", "1"], ["'margn'", "did you mean 'margin'"]),
        (["train", "A", "--out", "OUT", "--model.method", "pumma"], ["--model.method 'pumma'", "did you mean 'puma'"]),
        (["train", "A", "--out", "OUT", "--model.options.prompt", "1"], ["'prompt'", "'prompts'"]),
        (["train", "A", "--out", "OUT", "--data.split", "first-hlaf"], ["'first-hlaf'", "'first-half'"]),
        (["train", "A", "--out", "OUT", "--data.validation_fraction", "0.9"], ["fraction is 0.9"]),
        (["train", "A", "--out", "OUT", "--model.image_size", "33"], ["--model.image_size is 33", "use 32 or 48"]),
        (["train", "A", "--out", "OUT", "--model.weights", "none.pt"], ["--model.weights none.pt", "no such file"]),
        (["train", "--resume", "OUT"], ["OUT is not a run folder"]),
        (["train", "FORMT:A", "--out", "OUT"], ["FORMT:A"]),
        (["train", "A", "--out", "OUT", "--config"], ["--config", "expected one argument"]),
        (["train", "A", "--out", "OUT", "--config", "pumma"], ["--config pumma", "did you mean 'puma'"]),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], words: list[str], data: Path, options: Path, out: Path, fails: Failure
) -> None:
    places = {"A": str(data), "OUT": str(out), "FORMT:A": f"formt:{data}"}
    if arguments[0] == "train" and "--config" not in arguments and "--resume" not in arguments:
        arguments = ["train", "--config", str(options), *arguments[1:]]
    error = fails(*[places.get(argument, argument) for argument in arguments])
    for word in words:
        assert places.get(word.split()[0], word.split()[0]) + word.removeprefix(word.split()[0]) in error


def empty(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def one_class(folder: Path) -> str:
    return str(make_images(folder, classes=1))


def two_classes(folder: Path) -> str:
    return str(make_images(folder, classes=2))


def flat(folder: Path) -> str:
    return str(make_images(folder, classes=1) / "c0")


def manifest(text: str) -> Any:
    def write(folder: Path) -> str:
        make_images(folder, classes=4, images=2)
        (folder / "list.csv").write_text(text)
        return str(folder / "list.csv")

    return write


ROWS = "".join(f"c{number}/{image}.png,c{number},train\n" for number in range(4) for image in range(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: str(folder), ["there is no file or folder", "DATA"]),
        (empty, ["no images in DATA", "looked for files that end in"]),
        (one_class, ["one class only ('c0')", "add classes"]),
        (two_classes, ["only one class is left to train on ('c0'", "add classes"]),
        (flat, ["no class folders", "put each class in a folder of its own"]),
        (manifest(f"path,label,split\n{ROWS}"), ["the query side is empty", "train-only"]),
        (manifest("path,kind\nc0/0.png,c0\n"), ["has no column 'label'", "list.csv"]),
        (
            manifest("path,label\nc0/0.png,c0\n" + "".join(f"x{number}.png,c1\n" for number in range(7))),
            ["names 7 missing images", "x0.png", "x4.png", "..."],
        ),
        (manifest("path,label\n"), ["list.csv is empty"]),
    ],
)
def test_data_that_cannot_be_used(
    make: Any, words: list[str], options: Path, out: Path, tmp_path: Path, fails: Failure
) -> None:
    source = make(tmp_path / "data")
    error = fails("train", source, "--out", out, "--config", options)
    for word in words:
        assert word.replace("DATA", str(tmp_path / "data")) in error
    assert "x5.png" not in error


def test_out_under_a_file(data: Path, options: Path, tmp_path: Path, fails: Failure) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        error = fails("train", data, "--out", tmp_path / place, "--config", options)
        assert f"{tmp_path / place}" in error
        assert "choose another path" in error
    assert (tmp_path / "file").read_bytes() == b""


def test_out_on_an_existing_run(data: Path, options: Path, tmp_path: Path, fails: Failure) -> None:
    run = tmp_path / "run"
    assert unimetric("train", data, "--out", run, "--config", options) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = fails("train", data, "--out", run, "--config", options)
    assert f"{run} holds a run already" in error
    assert f"unimetric train --resume {run}" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_line_break_in_a_name_stays_one_line(options: Path, out: Path, tmp_path: Path, fails: Failure) -> None:
    error = fails("train", tmp_path / "two\nlines", "--out", out, "--config", options)
    assert "two lines" in error


def test_a_deleted_folder_is_named(tmp_path: Path) -> None:
    script = (
        "import os, sys; from unimetric.cli import main; os.rmdir(os.getcwd()); sys.exit(main(['search', 'db', 'x']))"
    )
    folder = tmp_path / "gone"
    folder.mkdir()
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "unimetric: error: the current folder was deleted; change to another one\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_may_lack_the_characters_of_a_name(encoding: str) -> None:
    script = (
        "import sys; from unimetric import cli\n"
        "cli.COMMANDS['\u65e5\\udcff'] = lambda: print('\u65e5\\udcff') or 0\n"
        "sys.exit(cli.main(['\u65e5\\udcff']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")
    expected = "\u65e5".encode(encoding, "backslashreplace") + b"\\udcff"
    assert run.stdout.strip() == expected


def test_a_folder_is_no_configuration(tmp_path: Path, fails: Failure) -> None:
    assert "it is not a regular file; name a YAML file" in fails("train", "--config", tmp_path)


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("--debug", "trian") == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("unimetric: error: unknown command")


def test_an_unforeseen_error_of_the_system_is_one_line(fails: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> int:
        raise OSError(errno.EIO, "Input/output error", "/somewhere")

    monkeypatch.setitem(COMMANDS, "train", read)
    assert "Input/output error: '/somewhere'" in fails("train")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), "unimetric: warning: a thread has failed: [Errno 28] No space left\n"),
        (KeyError("a fault"), None),
    ],
)
def test_a_library_s_thread_that_fails_is_one_line(
    error: Exception, said: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    def train() -> int:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setitem(COMMANDS, "train", train)
    hook = threading.excepthook
    assert unimetric("train") == 0
    assert threading.excepthook is hook
    shown = capsys.readouterr().err
    assert shown == said if said else "Traceback" in shown


def test_images_that_are_left_out_are_mentioned(
    data: Path, options: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = make_images(tmp_path / "mixed", classes=4, images=3)
    (mixed / "loose.png").write_bytes((mixed / "c0/0.png").read_bytes())
    (mixed / "notes.txt").write_text("not an image")
    assert unimetric("train", mixed, "--out", tmp_path / "run", "--config", options) == 0
    said = capsys.readouterr().err
    assert "note: dataset 'mixed': 1 images are left out" in said
    assert str(mixed / "loose.png") in said


def test_full_disk_while_saving_keeps_the_old_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unimetric.training import tensors as writer

    saved: list[int] = []
    original = writer.save_file

    def save_file(values: Any, path: Path, metadata: dict[str, str]) -> None:
        if len(saved) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(values, path, metadata=metadata)
        saved.append(json.loads(metadata["progress"])["step"])

    monkeypatch.setattr(writer, "save_file", save_file)
    options = options_file(tmp_path / "options.yaml", training={"epochs": 4, "batch_size": 4})
    run = tmp_path / "run"
    assert unimetric("train", data, "--out", run, "--config", options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"unimetric: error: cannot write {run / 'checkpoint.safetensors'}: the disk is full; "
        "free some space or choose another folder; the checkpoint of step 6 is kept, "
        f"continue with: unimetric train --resume {run}"
    )
    assert saved == [3, 6]
    assert tensors(run / "checkpoint.safetensors")["loss.proxies"].isfinite().all()
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    monkeypatch.undo()
    assert unimetric("train", "--resume", run) == 0
    assert "after step 6 of 12" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.soak)])
def test_no_library_speaks_before_the_error(precision: str, options: Path, out: Path, tmp_path: Path) -> None:
    process = start("train", tmp_path / "none", "--out", out, "--config", options, "--device.precision", precision)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.startswith("unimetric: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options_given", "word"),
    [
        (["--loss.name", "arcfase"], "arcfase"),
        (["--loss.options.margn", "1"], "margn"),
        (["--loss.options.margin", "high"], "margin"),
        (["--model.method", "pumma"], "pumma"),
        (["--model.options.prompt", "1"], "prompt"),
        (["--out", "FILE/run"], "choose another path"),
    ],
)
def test_what_is_cheap_to_check_is_checked_before_data_is_read(
    options_given: list[str], word: str, options: Path, out: Path, tmp_path: Path, fails: Failure
) -> None:
    (tmp_path / "FILE").touch()
    given = [text.replace("FILE", str(tmp_path / "FILE")) for text in options_given]
    assert word in fails("train", tmp_path / "none", "--out", out, "--config", options, *given)


def test_how_the_data_was_understood(
    data: Path, options: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_images(tmp_path / "b", classes=12, images=2, seed=3)
    held_out = ["--data.validation_fraction", 0.4]
    assert unimetric("train", data, other, "--out", tmp_path / "run", "--config", options, *held_out) == 0
    said = capsys.readouterr().err.splitlines()
    assert "a: 2 classes / 8 images to train on, 1 / 4 to validate on, 3 / 12 to test on" in said
    assert "b: 4 classes / 8 images to train on, 2 / 4 to validate on, 6 / 12 to test on" in said
    assert unimetric("evaluate", tmp_path / "run", other, "--data.split", "test-only", "--out", tmp_path / "e") == 0
    assert "b: 12 classes / 24 images to test on" in capsys.readouterr().err.splitlines()


def test_which_datasets_and_images_take_part(
    data: Path, options: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_images(tmp_path / "b", classes=6, images=4, seed=3)
    chosen = ["--data.train_datasets", "[a]", "--data.few_shot", 2]
    assert unimetric("train", data, other, "--out", out, "--config", options, *chosen) == 0
    said = capsys.readouterr().err.splitlines()
    assert "a: 3 classes / 6 images to train on, 3 / 12 to test on" in said
    assert "b: 3 classes / 12 images to test on" in said
    assert read_json(out / "metrics.json")["counts"]["train_images"] == 6
    # Another number of images would be another run.
    for change in (["--data.few_shot", 1], ["--data.train_datasets", "[b]"], ["--data.train_images", "{'*': 3}"]):
        assert unimetric("train", "--resume", out, *change) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: {change[0]} is " in error
        assert f"but {out} was started with" in error
    # What it was trained on need not be among what it is measured on.
    assert unimetric("evaluate", out, other, "--data.split", "test-only", "--out", tmp_path / "e") == 0
    assert "b: 6 classes / 24 images to test on" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (
            ["--data.train_datasets", "[a,bb]"],
            "--data.train_datasets names a dataset 'bb' that is in no source; valid: a",
        ),
        (["--data.test_datasets", "[aa]"], "--data.test_datasets names a dataset 'aa'"),
        (["--data.train_images", "{'aa': 3}"], "--data.train_images names a dataset 'aa'"),
        (["--data.train_images", "{'a': 0}"], "--data.train_images is {'a': 0}: use 1 or more"),
        (["--data.few_shot", 0], "--data.few_shot is 0: use 1 or more"),
        (["--data.test_datasets", "[a]", "--data.split", "train-only"], "which tests on nothing"),
        (["--data.train_images", "{'*': 1}"], "only one class is left to train on"),
    ],
)
def test_choices_that_cannot_be(
    chosen: list[object], words: str, data: Path, options: Path, out: Path, fails: Failure
) -> None:
    assert words in fails("train", data, "--out", out, "--config", options, *chosen)
