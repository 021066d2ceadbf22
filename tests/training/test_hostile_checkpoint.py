"""A damaged checkpoint is refused in one line before anything is changed, or is exactly what its file says."""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mutations import changed_header, changed_json, damaged, little_memory, plain_tensors
from unimetric.config import TrainingConfig
from unimetric.errors import UserError
from unimetric.losses import CurricularFace
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.network import learned_weights
from unimetric.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from unimetric.training.optimiser import make_optimiser

pytestmark = pytest.mark.timeout(180)


class Parts:
    """A model, a loss and an optimiser that have made a step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        backbone = make_backbone("test_vit", weights="random", image_size=32)
        self.embedder = Embedder(backbone, "puma", {"adapter_bottleneck": 1, "prompts": 2, "prompt_length": 2}, 4)
        self.loss = CurricularFace(5, 4)
        self.optimiser = make_optimiser(self.embedder, self.loss, TrainingConfig())
        vectors = self.embedder(torch.randn(3, 3, 32, 32))
        self.loss(vectors, torch.tensor([0, 2, 4])).backward()
        self.optimiser.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"model.{name}": value for name, value in learned_weights(self.embedder).items()}
        found |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
        return {name: value.detach().clone() for name, value in found.items()}

    def save(self, path: Path) -> None:
        weights = learned_weights(self.embedder)
        progress = Progress(
            step=7,
            seconds=1.5,
            validated=6,
            skipped={3: "cut off"},
            best_score=0.5,
            best_weights=weights,
            average=weights,
            sampler={"birds": [None, 1.0, 0.0, 2.0]},
        )
        save_checkpoint(path, self.embedder, self.loss, self.optimiser, progress, "it")

    def load(self, path: Path) -> Progress | None:
        """Content of a checkpoint, or None where it was refused."""
        try:
            return load_checkpoint(path, self.embedder, self.loss, self.optimiser, "it")
        except UserError as error:
            sentence = str(error)
            assert sentence.isprintable(), sentence
            assert len(sentence) < 1000
            assert str(path) in sentence
            return None


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


@pytest.fixture(scope="module")
def content(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors"
    parts.save(path)
    return path.read_bytes()


def check(parts: Parts, path: Path, content: bytes) -> bool:
    """Return true if a checkpoint was taken; then everything is as in the file, else as it was."""
    path.write_bytes(content)
    before = parts.tensors()
    progress = parts.load(path)
    after = parts.tensors()
    if progress is None:
        assert all(torch.equal(after[name], value) for name, value in before.items())
        return False
    expected, metadata = plain_tensors(content)
    wanted = {name: value for name, value in expected.items() if name.startswith(("model.", "loss.", "optimiser."))}
    assert after.keys() == wanted.keys()
    assert all(after[name].cpu().numpy().tobytes() == value.tobytes() for name, value in wanted.items())
    said = json.loads(metadata["progress"])
    assert (progress.step, progress.seconds, progress.validated) == (said["step"], said["seconds"], said["validated"])
    assert progress.best_score == said["best_score"]
    assert progress.skipped == dict(said["skipped"])
    assert progress.sampler == said.get("sampler", {})
    return True


def with_progress(content: bytes, text: str) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    # The checksum is right, as that of another program would be.
    value = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(safetensors.torch.load(content).items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), value)
    header["__metadata__"] |= {"progress": text, "checksum": f"{value:08x}"}
    changed = json.dumps(header).encode()
    return struct.pack("<Q", len(changed)) + changed + content[8 + length :]


def test_an_untouched_one_is_taken(parts: Parts, content: bytes, tmp_path: Path) -> None:
    assert check(parts, tmp_path / "checkpoint.safetensors", content)


def test_a_changed_one_with_a_right_checksum_is_taken(parts: Parts, content: bytes, tmp_path: Path) -> None:
    text = plain_tensors(content)[1]["progress"].replace('"step": 7', '"step": 8')
    assert check(parts, tmp_path / "checkpoint.safetensors", with_progress(content, text))


def test_a_wrong_header(seeds: Iterator[int], parts: Parts, content: bytes, tmp_path: Path) -> None:
    outcomes = Counter[bool]()
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(100):
                outcomes[check(parts, tmp_path / "checkpoint.safetensors", changed_header(content, random))] += 1
    assert outcomes[False]


def test_damaged_bytes_of_the_header(seeds: Iterator[int], parts: Parts, content: bytes, tmp_path: Path) -> None:
    outcomes = Counter[bool]()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(100):
                outcomes[check(parts, tmp_path / "checkpoint.safetensors", damaged(content, random, header))] += 1
    assert outcomes[False]


def test_another_progress(seeds: Iterator[int], parts: Parts, content: bytes, tmp_path: Path) -> None:
    outcomes = Counter[bool]()
    _, metadata = plain_tensors(content)
    progress: dict[str, Any] = json.loads(metadata["progress"])
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(100):
                text = json.dumps(changed_json(progress, random))
                outcomes[check(parts, tmp_path / "checkpoint.safetensors", with_progress(content, text))] += 1
    assert outcomes[False]


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", "", "\ud800", '{"identity": "it"}'])
def test_a_progress_that_is_none(parts: Parts, content: bytes, tmp_path: Path, text: str) -> None:
    assert not check(parts, tmp_path / "checkpoint.safetensors", with_progress(content, text))


@pytest.mark.parametrize(
    "name", ["optimiser.0.step", "model.head.bias", "loss.proxies", "best.head.bias", "average.head.bias"]
)
def test_a_part_that_is_absent(parts: Parts, content: bytes, tmp_path: Path, name: str) -> None:
    assert not check(parts, tmp_path / "checkpoint.safetensors", content.replace(name.encode(), b"x" * len(name)))


def test_without_its_checksum_it_is_refused(parts: Parts, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        progress = file.metadata()["progress"]
    save_file(load_file(path), path, {"progress": progress})
    assert not check(parts, path, path.read_bytes())


def test_moments_of_other_parameters_are_refused(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    parts.save(path)
    before = parts.tensors()
    parts.optimiser.param_groups[0]["params"].reverse()
    assert parts.load(path) is None
    parts.optimiser.param_groups[0]["params"].reverse()
    assert all(torch.equal(value, before[name]) for name, value in parts.tensors().items())
