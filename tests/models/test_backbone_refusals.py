"""Backbones that cannot work are refused in one sentence that says what to use instead."""

import pytest
import torch
from safetensors.torch import save_file
from toys import TINY

from unimetric.errors import UserError
from unimetric.models.backbone import make_backbone


def refusal(name, **options):
    with pytest.raises(UserError) as caught:
        make_backbone(name, **({"weights": "random", "image_size": 224} | options))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    return sentence


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "swin_tiny_patch4_window7_224",
        "beit_base_patch16_224",
        "vit_relpos_small_patch16_224",
        "vit_base_patch16_rpn_224",  # post-norm blocks
        "vit_pwee_patch16_reg1_gap_256",  # attention and MLP in parallel
        "deit_tiny_distilled_patch16_224",  # two class tokens
        "eva02_base_patch16_clip_224.nosuchtag",
    ],
)
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_what_is_no_plain_vit_is_refused_before_any_weights_are_fetched(name, weights):
    # The hub is out of reach, so fetching them would be refused in other words.
    sentence = refusal(name, weights=weights)
    assert name.split(".")[0] in sentence
    assert "use a plain ViT or EVA model" in sentence or "valid:" in sentence


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_smal_patch16_224", "'vit_small_patch16_224'"),
        ("dinov2-smal", "'dinov2-small'"),
        ("vit_small_patch16_dinov33", "'vit_small_patch16_dinov3'"),
        ("", "valid:"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name, nearest):
    sentence = refusal(name)
    assert "unknown --model.backbone" in sentence
    assert nearest in sentence


def test_an_unknown_tag_lists_the_known_ones():
    sentence = refusal("vit_tiny_patch16_224.augreg_in21k_ft_in1")
    assert "'augreg_in21k_ft_in1'" in sentence
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k" in sentence


@pytest.mark.parametrize(
    ("name", "size", "valid"),
    [(TINY, 100, (96, 112)), (TINY, 15, (16, 32)), ("dinov2-small", 224 + 1, (224, 238)), (TINY, 0, (16, 32))],
)
def test_a_size_that_the_patch_does_not_divide_names_two_that_it_does(name, size, valid):
    assert f"use {valid[0]} or {valid[1]}" in refusal(name, image_size=size)
    for good in valid:
        assert make_backbone(name, weights="random", image_size=good).image_size == good


def test_an_unknown_pool_is_refused():
    assert "--model.pool is 'mean'; " in refusal(TINY, pool="mean")


def test_token_pooling_without_a_class_token_is_refused():
    assert "no class token; use auto or avg" in refusal("vit_base_patch16_siglip_224", pool="token")


def test_an_unreachable_hub_mentions_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    sentence = refusal(TINY, weights="pretrained")
    assert "its weights could not be fetched (LocalEntryNotFoundError: " in sentence
    assert "dinov2-small" in sentence
    assert "--model.weights FILE.safetensors" in sentence


@pytest.fixture(scope="module")
def state():
    return make_backbone(TINY, weights="random").vit.state_dict()


class TestWeightsFile:
    def write(self, path, state):
        save_file(state, path)
        return path

    @pytest.mark.parametrize("head", [True, False])
    def test_gives_the_backbone_of_its_weights(self, state, tmp_path, head):
        """With the classifier of the hub's files, which is dropped, or without."""
        changed = {name: value + 1 if name == "norm.bias" else value for name, value in state.items()}
        extra = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)} if head else {}
        path = self.write(tmp_path / "tiny.safetensors", {**changed, **extra})
        backbone = make_backbone(TINY, weights=str(path), image_size=32)
        assert torch.equal(backbone.vit.norm.bias, changed["norm.bias"])
        assert torch.equal(backbone.vit.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])
        random = make_backbone(TINY, weights="random", image_size=32)
        assert backbone.fingerprint != random.fingerprint
        same = make_backbone(TINY, weights=str(self.write(tmp_path / "same.safetensors", {**state, **extra})))
        assert same.fingerprint == random.fingerprint
        assert "state_dict" not in backbone.vit.pretrained_cfg

    def test_a_missing_one(self, tmp_path):
        assert "no such file" in refusal(TINY, weights=str(tmp_path / "nowhere.safetensors"))

    @pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights"])
    def test_a_pickle_is_not_opened(self, state, tmp_path, name):
        opened = tmp_path / "opened"

        class Hostile:
            def __reduce__(self):
                return opened.touch, ()

        path = tmp_path / name
        torch.save({**state, "hostile": Hostile()}, path)
        assert "pickles never" in refusal(TINY, weights=str(path))
        disguised = path.rename(tmp_path / "disguised.safetensors")
        assert "does not fit" in refusal(TINY, weights=str(disguised))
        assert not opened.exists()

    def test_a_weight_that_is_missing(self, state, tmp_path):
        """timm leaves what a file lacks at its random start, and says nothing."""
        part = {name: value for name, value in state.items() if not name.startswith("blocks.3")}
        sentence = refusal(TINY, weights=str(self.write(tmp_path / "part.safetensors", part)))
        assert "part.safetensors does not fit" in sentence
        assert "blocks.3" in sentence

    def test_something_else_altogether(self, tmp_path):
        path = self.write(tmp_path / "adapter.safetensors", {"head.weight": torch.zeros(2), "foo": torch.zeros(3)})
        assert "does not fit" in refusal(TINY, weights=str(path))

    def test_another_architecture(self, state, tmp_path):
        path = self.write(tmp_path / "tiny.safetensors", state)
        assert "does not fit the backbone vit_small_patch16_224" in refusal("vit_small_patch16_224", weights=str(path))

    @pytest.mark.parametrize("share", [0, 4, 0.5])
    def test_a_truncated_one(self, state, tmp_path, share):
        path = self.write(tmp_path / "cut.safetensors", state)
        content = path.read_bytes()
        path.write_bytes(content[: share if isinstance(share, int) else int(share * len(content))])
        assert "cut.safetensors" in refusal(TINY, weights=str(path))
