"""Configuration files on the command line, and what is typed beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_failures import Failure, data, fails, options, out
from toy_runs import make_images, one_thread, read_json, unimetric

__all__ = ["data", "fails", "one_thread", "options", "out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training:\n  epocs: 3\n", ["training: has an unknown option 'epocs'; did you mean 'epochs'"]),
        ("trainin:\n  epochs: 3\n", ["unknown option 'trainin'; did you mean 'training'"]),
        ("seed: 3\n", ["unknown option 'seed'"]),
        ("training:\n  epochs: many\n", ["--training.epochs is 'many': use a whole number"]),
        ("training:\n  epochs: 1.5\n", ["--training.epochs is 1.5: use a whole number"]),
        ("data:\n  workers: some\n", ["--data.workers is 'some': use a whole number or auto"]),
        ("data:\n  sources: /x\n", ["--data.sources is '/x': use a list"]),
        ("training: 3\n", ["training: has 3 where options are expected"]),
        ("training:\n", ["training: has None where options are expected"]),
        ("training: [1,2\n", [", line 2 is not YAML"]),
        ("- 1\n", ["holds no options"]),
        ("", ["holds no options"]),
        ("\x00", ["is not YAML"]),
        ("a: &a [*a]\n", ["nested deeper than 50 levels"]),
        ("!!python/object/apply:os.system ['true']\n", ["is not YAML"]),
    ],
)
def test_mistakes_in_a_file(text: str, words: list[str], data: Path, out: Path, tmp_path: Path, fails: Failure) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for option in (["--config", file], [f"--config={file}"]):
        error = fails("train", data, "--out", out, *option)
        assert str(file) in error
        assert all(word in error for word in words)


def test_a_file_that_is_no_text(data: Path, out: Path, tmp_path: Path, fails: Failure) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00x")
    assert f"{file} is not YAML" in fails("train", data, "--out", out, "--config", file)
    assert "no such file" in fails("train", data, "--out", out, "--config", tmp_path / "none.yaml")


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert unimetric(*arguments, "--print_config") == 0
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return values


def test_what_is_typed_wins_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training:\n  epochs: 7\n  seed: 5\nmodel:\n  options:\n    adapter_drop: 0.2\n")
    values = printed(capsys, "train", "--config", file, "--training.epochs", 9, "--model.options.adapter_drop", 0.1)
    assert (values["training"]["epochs"], values["training"]["seed"]) == (9, 5)
    assert values["model"]["options"] == {"adapter_drop": 0.1}
    assert values["training"]["batch_size"] == 180


def test_the_order_of_file_and_option_does_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training:\n  epochs: 7\n")
    for arguments in (["--config", file, "--training.epochs", 9], ["--training.epochs", 9, f"--config={file}"]):
        assert printed(capsys, "train", *arguments)["training"]["epochs"] == 9
    other = tmp_path / "other.yaml"
    other.write_text("training:\n  epochs: 8\n")
    assert printed(capsys, "train", "--config", file, "--config", other)["training"]["epochs"] == 8


def test_packaged_configurations_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    values = printed(capsys, "train", "--config", "puma")
    assert values["model"]["backbone"] == "vit_small_patch16_224.augreg_in21k_ft_in1k"


def test_a_printed_configuration_is_a_configuration(
    data: Path, options: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = printed(capsys, "train", data, "--config", options)
    file = tmp_path / "printed.yaml"
    file.write_text(yaml.safe_dump(values))
    assert printed(capsys, "train", "--config", file) == values
    for order in (["--config", file, "--out", tmp_path / "one"], ["--out", tmp_path / "two", "--config", file]):
        assert unimetric("train", *order) == 0
    one, two = (read_json(tmp_path / name / "metrics.json") for name in ("one", "two"))
    assert one["unified"] == two["unified"]


def test_names_of_sources(data: Path, options: Path, tmp_path: Path) -> None:
    other = make_images(tmp_path / "a", classes=4, images=3, seed=9)
    assert unimetric("train", f"birds={data}", other, "--out", tmp_path / "run", "--config", options) == 0
    metrics = read_json(tmp_path / "run/metrics.json")
    assert {name: part["queries"] for name, part in metrics["counts"]["datasets"].items()} == {"birds": 12, "a": 6}
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["sources"] == [
        f"birds={data}",
        str(other),
    ]


def test_the_same_name_twice(data: Path, options: Path, out: Path, tmp_path: Path, fails: Failure) -> None:
    other = make_images(tmp_path / "a", classes=4, images=3, seed=9)
    assert "give one of them another name, as in NAME=PATH" in fails(
        "train", data, other, "--out", out, "--config", options
    )


def test_a_printed_configuration_names_the_sources_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", data, "--out", "x"], ["evaluate", data / "no-run", data, "--out", "x"]):
        values = printed(capsys, *command)
        assert values["data"]["sources"] == [str(data)]
        assert set(values) == {"data", "model", "loss", "sampling", "training", "extension", "evaluation", "device"}
