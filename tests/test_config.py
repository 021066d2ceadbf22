"""Options: complete, checked, and the same through every way in."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import unimetric
from unimetric.config import ModelConfig, RunConfig, read_options, run_config
from unimetric.errors import UserError
from unimetric.formats.run_folder import RunFolder

CONFIGS = sorted((Path(unimetric.__file__).parent / "configs").glob("*.yaml"))


def test_defaults_are_the_papers() -> None:
    config = RunConfig()
    assert (config.training.epochs, config.training.batch_size) == (100, 180)
    assert config.training.learning_rate * config.training.method_multiplier == pytest.approx(1e-3)
    assert config.training.learning_rate * config.training.proxy_multiplier == pytest.approx(1.0)
    assert (config.training.decay_epochs, config.training.decay_factor) == (20, 0.5)
    assert (config.training.clip_value, config.training.weight_decay) == (1.0, 1e-4)
    assert (config.loss.name, config.model.embedding_size, config.training.crop_scale_min) == (
        "curricularface",
        128,
        0.2,
    )


def test_the_frozen_backbone_of_a_model_with_longer_vectors() -> None:
    trained = ModelConfig(image_size=112, embedding_size=512, nested_sizes=[256], options={"prompts": 4})
    assert trained.frozen() == ModelConfig(image_size=112, method="frozen")


def test_every_option_is_documented() -> None:
    for section in dataclasses.fields(RunConfig):
        kind = section.default_factory
        assert dataclasses.is_dataclass(kind)
        for option in dataclasses.fields(kind):
            assert f"        {option.name}: " in (kind.__doc__ or ""), f"{section.name}.{option.name}"


def test_round_trip_through_a_run_folder(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": {"sources": ["a b", "名=ü"], "workers": 3},
        "training": {"learning_rate": 3e-5, "steps": 7},
        "model": {"options": {"orthogonality": 1e-6}},
    }
    config = run_config(values, "here")
    folder = RunFolder(tmp_path / "run")
    with folder.new_run(config):
        pass
    assert folder.read_config() == config
    assert run_config(asdict(config), "here") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_packaged_configurations(path: Path) -> None:
    run_config(read_options(path), str(path))
    head = path.read_text().split("\n\n")[0]
    assert all(word in head or word in path.read_text()[:1500] for word in ("Command", "Time", "Score"))


def test_the_packaged_puma_is_the_default_method() -> None:
    values = yaml.safe_load((CONFIGS[0].parent / "puma.yaml").read_text())
    config, default = run_config(values, "puma"), RunConfig()
    assert config.training == default.training


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.workers", -1),
        ("data.workers", 257),
        ("model.image_size", 0),
        ("model.image_size", 2**12 + 1),
        ("model.embedding_size", 0),
        ("model.embedding_size", 2**16 + 1),
        ("training.epochs", 0),
        ("training.steps", 0),
        ("training.batch_size", 0),
        ("training.decay_epochs", 0),
        ("training.validate_every", 0),
        ("training.learning_rate", 0.0),
        ("training.learning_rate", float("nan")),
        ("training.learning_rate", float("inf")),
        ("training.method_multiplier", -1.0),
        ("training.proxy_multiplier", float("nan")),
        ("training.weight_decay", -1.0),
        ("training.clip_value", float("nan")),
        ("training.warmup_steps", -1),
        ("training.decay_factor", 0.0),
        ("training.decay_factor", 1.1),
        ("training.crop_scale_min", 0.0),
        ("training.crop_scale_min", 1.1),
        ("training.seed", -1),
        ("training.seed", 2**63),
        ("evaluation.ks", []),
        ("evaluation.ks", [1, 0]),
        ("evaluation.batch_size", 0),
        ("device.processes", 0),
        ("device.processes", 257),
    ],
)
def test_values_out_of_range_name_the_option(option: str, value: object) -> None:
    section, name = option.split(".")
    with pytest.raises(UserError) as caught:
        run_config({section: {name: value}}, "here")
    assert str(caught.value).startswith(f"--{option} is {value!r}: use ")


@pytest.mark.parametrize("section", ["model", "loss", "sampling"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), [1.0, float("-inf")]])
def test_no_option_of_a_part_is_infinite(section: str, value: object) -> None:
    """JSON has no such numbers: a run would fail when it writes what it was made with, which is last."""
    with pytest.raises(UserError) as caught:
        run_config({section: {"options": {"good": 1, "bad": value}}}, "here")
    assert str(caught.value).startswith(f"--{section}.options.bad is ")
    assert str(caught.value).endswith(": use a finite number")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training": {"epoch": 3}}, "unknown option 'epoch'; did you mean 'epochs'"),
        ({"trainin": {}}, "unknown option 'trainin'; did you mean 'training'"),
        ({"training": None}, "training: has None where options are expected"),
        ({"model": [1]}, r"model: has \[1\] where options are expected"),
        ({3: {}}, "unknown option 3"),
    ],
)
def test_names_are_checked(values: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"^here.*{words}"):
        run_config(values, "here")


@pytest.mark.parametrize(
    "values", [{"data": {"workers": "2@"}}, {"training": {"epochs": [1]}}, {"data": {"workers": {}}}]
)
def test_a_value_of_another_type_is_refused_with_its_file(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"run/config\.yaml has a value of another type"):
        run_config(values, "run/config.yaml")
