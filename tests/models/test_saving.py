"""Model folders: back to the bit for every method, and refused in one clear sentence when anything is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from saved_models import BACKBONE, DELETE, edit, folder, make, refusal, rewrite, saved, weights_file
from toys import pixels

from unimetric.files import sha256_of_file
from unimetric.models.card import model_card
from unimetric.models.embedder import Embedder
from unimetric.models.network import learned_weights
from unimetric.models.petl import METHODS
from unimetric.models.saving import CARD, CONFIG, WEIGHTS

__all__ = ["folder", "saved", "weights_file"]

every_method = pytest.mark.parametrize("method", sorted(METHODS))


@every_method
def test_comes_back_to_the_bit(method, tmp_path):
    original = make(method)
    original.save_pretrained(tmp_path / "deep" / "model")
    loaded = Embedder.from_pretrained(str(tmp_path / "deep" / "model"))
    assert not loaded.training
    assert loaded.method_name == method
    assert loaded.options == original.options
    assert loaded.backbone.fingerprint == original.backbone.fingerprint
    before, after = learned_weights(original), learned_weights(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(loaded(pixels(2, 32)), original(pixels(2, 32)))
    assert loaded.trainable_parameter_count() == original.trainable_parameter_count()


@every_method
def test_holds_what_was_learned_and_nothing_that_is_frozen(method, tmp_path):
    embedder = make(method)
    embedder.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CARD, WEIGHTS, CONFIG])
    in_file = load_file(tmp_path / WEIGHTS)
    assert sum(value.numel() for value in in_file.values()) == embedder.trainable_parameter_count()
    of_backbone = {name for name in in_file if name.startswith("backbone")}
    assert of_backbone == {f"backbone.{name}" for name in embedder.method.trained_in_backbone}
    assert (tmp_path / WEIGHTS).stat().st_size < 4 * embedder.trainable_parameter_count() + 50_000
    assert b"pickle" not in (tmp_path / WEIGHTS).read_bytes()


def test_config_is_readable_by_people_and_names_all_that_the_model_needs(saved):
    text = (saved / CONFIG).read_text(encoding="utf-8")
    assert len(text.splitlines()) > 20
    config = json.loads(text)
    assert config["backbone"]["name"] == BACKBONE
    assert config["backbone"]["image_size"] == 32
    assert config["method"]["options"]["adapter_scale"] == 0.7
    assert config["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert config["weights_sha256"] == sha256_of_file(saved / WEIGHTS)


def test_loads_from_the_run_folder_that_it_is_in(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run / "model")
    with torch.no_grad():
        assert torch.equal(Embedder.from_pretrained(run)(pixels(2, 32)), Embedder.from_pretrained(saved)(pixels(2, 32)))


def test_another_image_size(saved):
    loaded = Embedder.from_pretrained(saved, image_size=64)
    assert loaded.backbone.image_size == 64
    assert loaded.encode(np.zeros((70, 70, 3), np.uint8)).shape == (1, 8)
    assert "use 32 or 48" in refusal(saved, image_size=40)


@pytest.mark.parametrize("share", [0, 1, 7, 8, 9, 100, 0.25, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(folder, share):
    content = (folder / WEIGHTS).read_bytes()
    length = share if isinstance(share, int) else int(share * len(content))
    (folder / WEIGHTS).write_bytes(content[:length])
    assert "cut off" in refusal(folder)
    # Even if the checksum were made for it.
    edit(folder, weights_sha256=sha256_of_file(folder / WEIGHTS))
    assert "cut off" in refusal(folder)


@pytest.mark.parametrize("place", [0, 3, 8, 20, 0.3, 0.6, -1])
def test_a_flipped_bit_is_refused(folder, place):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refusal(folder)


def test_more_bytes_behind_the_end_are_refused(folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    assert WEIGHTS in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert str(folder / name) in refusal(folder)


def test_a_missing_folder_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_the_card_is_not_needed(folder):
    with_card = Embedder.from_pretrained(folder)
    (folder / CARD).unlink()
    without, expected = Embedder.from_pretrained(folder).state_dict(), with_card.state_dict()
    assert without.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in without.items())


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2", b"\xff\xfe\0", b"\x80\x04N.", b"{'a': 1}"])
def test_a_config_that_is_not_json_is_refused(folder, content):
    (folder / CONFIG).write_bytes(content)
    assert f"{CONFIG} is not JSON" in refusal(folder)


@pytest.mark.parametrize("content", ["null", "[]", "3", '"text"', "{}", '{"format": "1"}', '{"format": true}'])
def test_a_config_that_is_something_else_is_refused(folder, content):
    (folder / CONFIG).write_text(content)
    assert "not a unimetric model" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2"),
        ({"format": DELETE}, "lacks format"),
        ({"backbone": "dinov2-small"}, "lacks backbone.name"),
        ({"backbone__name": 3}, "backbone.name is 3, not a str"),
        ({"backbone__name": "vit_tini_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
        ({"backbone__name": "resnet50"}, "not supported"),
        ({"backbone__weights": DELETE}, "lacks backbone.weights"),
        ({"backbone__fingerprint": None}, "backbone.fingerprint is None"),
        ({"backbone__fingerprint": "0" * 64}, "other weights"),
        ({"backbone__image_size": 0}, "backbone.image_size is 0"),
        ({"backbone__image_size": 2**40}, "backbone.image_size is"),
        ({"backbone__image_size": 32.0}, "not a int"),
        ({"backbone__image_size": True}, "not a int"),
        ({"backbone__image_size": 33}, "use 32 or 48"),
        ({"backbone__pool": "max"}, "backbone.pool is 'max'"),
        ({"method__name": "pumma"}, "did you mean 'puma'"),
        ({"method__name": ["puma"]}, "method.name is"),
        ({"method__options": []}, "method.options is"),
        ({"method__options__prompts": "three"}, "prompts of puma is 'three'"),
        ({"method__options__prompts": 10**9}, "prompts of puma is 1000000000"),
        ({"method__options__adapter_drop": float("nan")}, "adapter_drop of puma is nan"),
        ({"method__options__magic": 1}, "unknown option 'magic'"),
        ({"method__options__prompt_length": 3}, "different models"),
        ({"method__options__prompts": 0}, "unknown"),
        ({"method__name": "linear", "method__options": {}}, "unknown"),
        ({"method__name": "frozen", "method__options": {}}, "unknown"),
        ({"embedding_size": 9}, "head"),
        ({"embedding_size": -1}, "embedding_size is -1"),
        ({"embedding_size": "8"}, "embedding_size is '8'"),
        ({"weights_sha256": DELETE}, "lacks weights_sha256"),
        ({"weights_sha256": "abc"}, "another model's"),
        ({"preprocessing__mean": [0.1, 0.2, 0.3]}, "preprocessing"),
        ({"preprocessing": DELETE}, "preprocessing"),
    ],
)
def test_a_config_with_a_wrong_entry_is_refused(folder, change, words):
    edit(folder, **change)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head.bias": torch.zeros(9)}, "head.bias is torch.float32 [9]"),
        ({"head.bias": torch.zeros(8, 1)}, "head.bias is torch.float32 [8, 1]"),
        ({"head.bias": torch.zeros(8).half()}, "head.bias is torch.float16"),
        ({"head.bias": torch.full((8,), float("nan"))}, "not finite"),
        ({"head.bias": torch.full((8,), float("inf"))}, "not finite"),
        ({"head.bias": None}, "lacks head.bias"),
        ({"backbone.vit.norm.bias": torch.zeros(64)}, "unknown backbone.vit.norm.bias"),
        ({"extra": torch.zeros(1)}, "unknown extra"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, words):
    rewrite(folder, **change)
    sentence = refusal(folder)
    assert words in sentence
    assert WEIGHTS in sentence


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"puma"}))
def test_weights_of_another_method_are_refused(folder, tmp_path, method):
    make(method).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, folder / WEIGHTS)
    assert "another model's" in refusal(folder)
    edit(folder, weights_sha256=sha256_of_file(folder / WEIGHTS))
    assert "not a model of this configuration" in refusal(folder)


def test_another_backbone_under_the_same_name_is_refused(folder, weights_file):
    sentence = refusal(folder, weights=weights_file)
    assert BACKBONE in sentence
    assert "fingerprint" in sentence


def test_backbone_weights_from_a_file_are_found_again_on_another_machine(weights_file, tmp_path):
    original = make(weights=weights_file)
    folder = tmp_path / "model"
    original.save_pretrained(folder)
    # What is shared says nothing about this machine's folders.
    for name in (CONFIG, CARD):
        assert str(weights_file.parent) not in (folder / name).read_text()
    sentence = refusal(folder)
    assert "tiny.safetensors" in sentence
    assert "weights=FILE" in sentence

    renamed = shutil.copy(weights_file, tmp_path / "renamed.safetensors")
    with torch.no_grad():
        expected = original(pixels(2, 32))
        assert torch.equal(Embedder.from_pretrained(folder, weights=renamed)(pixels(2, 32)), expected)
        shutil.copy(weights_file, folder)
        beside = Embedder.from_pretrained(folder)
        assert torch.equal(beside(pixels(2, 32)), expected)
    # Saved again, it still is the name alone.
    beside.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / CONFIG).read_text()


@pytest.mark.parametrize("outside", ["../secret.safetensors", "{tmp}/secret.safetensors", ".."])
def test_a_config_cannot_name_a_file_outside_its_folder(folder, weights_file, outside):
    shutil.copy(weights_file, folder.parent / "secret.safetensors")
    edit(folder, backbone__weights=outside.format(tmp=folder.parent))
    assert "put it into this folder" in refusal(folder)


def test_numbers_in_the_card(tmp_path):
    metrics = {
        "separate": {"birds|eggs": {"recall@1": 0.512}},
        "harmonic": {"recall@1": 0.4},
        "unified": {"recall@1": 0.25},
        "counts": {"queries": 10, "gallery": 12, "queries_without_positive": 1, "skipped_files": 2},
    }
    make().save_pretrained(tmp_path, metrics=metrics)
    card = (tmp_path / CARD).read_text()
    assert "| birds\\|eggs | 51.2% |" in card
    assert "40.0%" in card and "25.0%" in card
    assert "10 queries, 12 gallery images, 1 queries without a positive skipped, 2 files skipped" in card


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("name", ["dinov2-small", "vit_small_patch14_dinov2.lvd142m"])
def test_the_card_says_what_the_packaged_backbone_is(name, weights):
    backbone = {"name": name, "weights": weights, "image_size": 56, "fingerprint": "0" * 64}
    config = {"backbone": backbone, "method": {"name": "puma", "options": {}}, "embedding_size": 8}
    card = model_card(config, 1, None)
    assert ("fine-tuned for saliency" in card) == (name == "dinov2-small" and weights == "pretrained")
    assert "http" not in card  # unimetric has no page to link to yet
