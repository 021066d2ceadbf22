"""A small model in a folder, and changes to it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import shake

from unimetric.errors import UserError
from unimetric.files import sha256_of_file
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.saving import CONFIG, WEIGHTS

BACKBONE = "test_vit"
"""Six narrow blocks, known to timm by name."""

OPTIONS = {"puma": {"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2, "adapter_scale": 0.7}}


def make(method="puma", weights="random", image_size=32, seed=0):
    torch.manual_seed(seed)
    backbone = make_backbone(BACKBONE, weights=str(weights), image_size=image_size)
    embedder = Embedder(backbone, method, OPTIONS.get(method), 8).eval()
    shake(embedder, seed)
    return embedder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model folder; tests that change it work on `folder`, a copy."""
    path = tmp_path_factory.mktemp("saved") / "model"
    make().save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """The random backbone's weights in a file, slightly changed."""
    state = make("frozen", image_size=224).backbone.vit.state_dict()
    state["norm.bias"] += 1
    path = tmp_path_factory.mktemp("elsewhere") / "tiny.safetensors"
    save_file(state, path)
    return path


def refusal(folder, **options):
    """The sentence with which a folder is refused: one line that names a file of it, or it."""
    with pytest.raises(UserError) as caught:
        Embedder.from_pretrained(folder, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    assert str(folder) in sentence
    return sentence


def rewrite(folder, **tensors):
    """Change the weights file and make the checksum agree, as no accident would."""
    weights = load_file(folder / WEIGHTS)
    for name, value in tensors.items():
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    save_file(weights, folder / WEIGHTS)
    edit(folder, weights_sha256=sha256_of_file(folder / WEIGHTS))


def edit(folder, **values):
    """Set entries of the configuration; a double underscore goes one level down."""
    config = json.loads((folder / CONFIG).read_text())
    for key, value in values.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        if value is DELETE:
            del place[last]
        else:
            place[last] = value
    (folder / CONFIG).write_text(json.dumps(config))


DELETE = object()
