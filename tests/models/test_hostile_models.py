"""Damaged model folders: one line that says what is wrong, or exactly what the files say; never anything else."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from toys import TINY, shake

from mutations import changed_header, changed_json, damaged, little_memory, plain_tensors
from unimetric.errors import UserError
from unimetric.models import embedder as embedder_module
from unimetric.models.backbone import Backbone, make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.network import learned_weights
from unimetric.models.petl import method_options
from unimetric.models.saving import CONFIG, WEIGHTS

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    options = {"adapter_bottleneck": 2, "prompts": 3, "prompt_length": 2}
    embedder = Embedder(make_backbone(TINY, weights="random", image_size=32), "puma", options, 8)
    shake(embedder)
    folder = tmp_path_factory.mktemp("hostile") / "model"
    embedder.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage. The backbone that it names is made once, not a thousand times."""
    made = make_backbone(TINY, weights="random", image_size=32)

    def make(name: str, *, weights: str, image_size: int, pool: str) -> Backbone:
        if (name, weights, pool) != (TINY, "random", "auto"):
            return make_backbone(name, weights=weights, image_size=image_size, pool=pool)
        backbone = copy.deepcopy(made)
        if image_size != 32:
            backbone.resize(image_size)
        return backbone

    monkeypatch.setattr(embedder_module, "make_backbone", make)
    return shutil.copytree(saved, tmp_path / "model")


def load(folder: Path) -> Embedder | None:
    """The model, or None where it was refused in one line that names the folder."""
    try:
        return Embedder.from_pretrained(folder)
    except UserError as error:
        sentence = str(error)
        assert sentence.isprintable(), sentence
        assert len(sentence) < 1000
        assert str(folder) in sentence
        return None


def sign(folder: Path, content: bytes) -> None:
    """Write the weights, and their checksum into the configuration, as no accident would."""
    (folder / WEIGHTS).write_bytes(content)
    config = json.loads((folder / CONFIG).read_text())
    config["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / CONFIG).write_text(json.dumps(config))


def check_config(embedder: Embedder, config: dict[str, Any], weights: dict[str, Any]) -> None:
    """The model is what a configuration and the untouched weights say."""
    assert embedder.method_name == config["method"]["name"]
    assert embedder.options == method_options(config["method"]["name"], config["method"]["options"])
    assert asdict(embedder.options).items() >= config["method"]["options"].items()
    assert embedder.embedding_size == config["embedding_size"]
    assert embedder.backbone.image_size == config["backbone"]["image_size"]
    assert embedder.backbone.pool_type == config["backbone"]["pool"]
    assert embedder.geometry.to_dict().items() >= config.get("geometry", {}).items()
    check_weights(embedder, weights)


def check_weights(embedder: Embedder, expected: dict[str, Any]) -> None:
    found = learned_weights(embedder)
    assert found.keys() == expected.keys()
    assert all(value.numpy().tobytes() == expected[name].tobytes() for name, value in found.items())
    assert all(value.shape == expected[name].shape for name, value in found.items())


def test_a_configuration_with_a_changed_value_is_refused_or_followed(folder: Path, seeds: Iterator[int]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    weights, _ = plain_tensors((folder / WEIGHTS).read_bytes())
    outcomes = Counter[bool]()
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(60):
                changed = changed_json(config, random)
                (folder / CONFIG).write_text(json.dumps(changed))
                if embedder := load(folder):
                    check_config(embedder, changed, weights)
                outcomes[embedder is not None] += 1
    assert outcomes[True] and outcomes[False]


def test_a_configuration_with_damaged_bytes_is_refused_or_followed(folder: Path, seeds: Iterator[int]) -> None:
    content = (folder / CONFIG).read_bytes()
    weights, _ = plain_tensors((folder / WEIGHTS).read_bytes())
    outcomes = Counter[bool]()
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(60):
                changed = damaged(content, random)
                (folder / CONFIG).write_bytes(changed)
                if embedder := load(folder):
                    check_config(embedder, json.loads(changed), weights)
                outcomes[embedder is not None] += 1
    assert outcomes[True] and outcomes[False]


def test_a_wrong_header_is_refused_or_followed(folder: Path, seeds: Iterator[int]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    outcomes = Counter[bool]()
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(60):
                changed = changed_header(content, random)
                sign(folder, changed)
                if embedder := load(folder):
                    check_weights(embedder, plain_tensors(changed)[0])
                outcomes[embedder is not None] += 1
    assert outcomes[True] and outcomes[False]


def test_a_header_with_damaged_bytes_is_refused_or_followed(folder: Path, seeds: Iterator[int]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    outcomes = Counter[bool]()
    header = 8 + int.from_bytes(content[:8], "little")
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(60):
                changed = damaged(content, random, within=header)
                sign(folder, changed)
                if embedder := load(folder):
                    check_weights(embedder, plain_tensors(changed)[0])
                outcomes[embedder is not None] += 1
    assert outcomes[False]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("method", "options", "adapter_bottleneck"), 65536),
        (("method", "options", "prompts"), 65536),
        (("method", "options", "prompt_length"), 4096),
        (("embedding_size",), 65536),
        (("backbone", "name"), "vit_giant_patch14_dinov2"),
        (("backbone", "image_size"), 65536),
    ],
)
def test_sizes_that_the_weights_do_not_have_take_no_memory(folder: Path, path: tuple[str, ...], value: object) -> None:
    config = place = json.loads((folder / CONFIG).read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / CONFIG).write_text(json.dumps(config))
    with little_memory(2**26):
        assert load(folder) is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 200 + "]" * 200, " " * 2**21, "9" * 10_000])
def test_a_configuration_without_end_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    with little_memory(2**26):
        assert load(folder) is None
