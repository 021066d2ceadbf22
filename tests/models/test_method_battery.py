"""Checks of every training method, each in turn: start, learn, count, save, refuse, and take two image sizes."""

import json

import numpy as np
import pytest
import torch
from toys import TINY, pixels, shake, toy_backbone, toy_embedder

from unimetric.errors import UserError
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.network import learned_weights
from unimetric.models.petl import METHODS
from unimetric.models.saving import CONFIG

NO_PROMPTS = {"adapter_bottleneck": 4, "prompts": 0}
NO_ADAPTERS = {"adapter_bottleneck": 0, "prompts": 3, "prompt_length": 2}

CASES = {
    "adaptformer": ("adaptformer", {"bottleneck": 4}),
    "bitfit": ("bitfit", {}),
    "full": ("full", {}),
    "linear": ("linear", {}),
    "lora": ("lora", {"rank": 3}),
    "lora on attention": ("lora", {"rank": 3, "targets": "attention"}),
    "puma": ("puma", {"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2}),
    "puma, always on": ("puma", {"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2, "adapter_drop": 0.0}),
    "puma without adapters": ("puma", NO_ADAPTERS),
    "puma without prompts": ("puma", NO_PROMPTS),
    "vpt-deep": ("vpt-deep", {"prompt_length": 2}),
}
# Tokens that were not there before change attention from the start.
STARTS_AS_BACKBONE = [name for name in CASES if not name.startswith(("puma", "vpt"))] + ["puma without prompts"]
FAMILIES = {
    "plain": {},
    "LayerScale": {"init_values": 0.1},
    "EVA": {"name": "eva02_tiny_patch14_224", "image_size": 42},
    "DINOv3": {"name": "vit_small_patch16_dinov3"},
}

every_case = pytest.mark.parametrize("case", sorted(CASES))
every_family = pytest.mark.parametrize("family", sorted(FAMILIES))
WIDTH, DEPTH, SIZE = 48, 2, 16


def fresh(case, **backbone_options):
    """An embedder as training starts it."""
    method, options = CASES[case]
    torch.manual_seed(2)
    return Embedder(toy_backbone(embed_dim=WIDTH, num_heads=3, **backbone_options), method, options, SIZE)


def test_every_method_is_in_the_battery():
    assert {method for method, _ in CASES.values()} | {"frozen"} == set(METHODS)


@every_family
@pytest.mark.parametrize("case", STARTS_AS_BACKBONE)
def test_at_initialisation_the_features_are_the_frozen_backbones(case, family):
    options = FAMILIES[family]
    images = pixels(size=options.get("image_size", 48))
    torch.manual_seed(2)
    backbone = toy_backbone(embed_dim=WIDTH, num_heads=3, **options)
    with torch.no_grad():
        own = backbone(images)
        features = fresh(case, **options).eval().features(images)
    # EVA adds its attention's biases after the product instead of in it, where LoRA needs the product alone.
    torch.testing.assert_close(features, own, rtol=0, atol=2e-6 if (case[:4], family) == ("lora", "EVA") else 0)


@every_family
@every_case
def test_training_moves_all_that_is_learned_and_nothing_else(case, family):
    embedder = toy_embedder(*CASES[case], **FAMILIES[family]).train()
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in embedder.parameters() if p.requires_grad], lr=0.5)
    embedder(pixels(8, size=embedder.backbone.image_size))[:, 0].sum().backward()
    optimiser.step()
    learned = learned_weights(embedder)
    assert sum(value.numel() for value in learned.values()) == embedder.trainable_parameter_count()
    storage = {value.data_ptr() for value in learned.values()}
    after = embedder.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # Some of a shared tensor's two names are the backbone's: LoRA's matrices sit in its layers.
    allowed = {name for name, value in after.items() if value.data_ptr() in storage}
    assert moved <= allowed
    # A key's bias cancels in the softmax over keys: it is trained, and its gradient is zero.
    assert {name for name in learned if not name.endswith(("k_proj.bias", "k_bias"))} <= moved


FORMULAS = {
    "adaptformer": DEPTH * (2 * WIDTH * 4 + 4 + WIDTH),
    # Per block: qkv, projection, MLP 4 D + D, two norms; then patch embedding and final norm.
    "bitfit": DEPTH * (3 + 1 + 4 + 1 + 2) * WIDTH + 2 * WIDTH,
    # Per block: 12 D² of weights, the biases above, two norms' weights; the rest is spelled out.
    "full": DEPTH * (12 * WIDTH**2 + 11 * WIDTH + 2 * WIDTH) + 3 * 16**2 * WIDTH + WIDTH + WIDTH + (9 + 1 + 2) * WIDTH,
    "linear": 0,
    "lora": DEPTH * 3 * (WIDTH + 3 * WIDTH),
    "lora on attention": DEPTH * 3 * (WIDTH + 3 * WIDTH + 2 * WIDTH),
    "puma": DEPTH * 2 * 2 * WIDTH * 4 + 3 * 2 * WIDTH + 2 * 3 * WIDTH,
    "puma, always on": DEPTH * 2 * 2 * WIDTH * 4 + 3 * 2 * WIDTH + 2 * 3 * WIDTH,
    "puma without adapters": 3 * 2 * WIDTH + 2 * 3 * WIDTH,
    "puma without prompts": DEPTH * 2 * 2 * WIDTH * 4,
    "vpt-deep": DEPTH * 2 * WIDTH,
}


@every_case
def test_parameter_counts_follow_the_formulas(case):
    head = WIDTH * SIZE + SIZE
    assert fresh(case).trainable_parameter_count() == FORMULAS[case] + head


@every_case
def test_the_head_reads_class_token_and_mean_of_patches_side_by_side(case):
    embedder = fresh(case, pool="token+avg").eval()
    assert embedder.head.in_features == 2 * WIDTH
    with torch.no_grad():
        both = embedder.features(pixels())
        for part, pool in enumerate(("token", "avg")):
            torch.testing.assert_close(both.chunk(2, dim=1)[part], fresh(case, pool=pool).eval().features(pixels()))


def saved(case, folder, image_size=48):
    method, options = CASES[case]
    torch.manual_seed(4)
    embedder = Embedder(make_backbone(TINY, weights="random", image_size=image_size), method, options, SIZE)
    shake(embedder)
    embedder.save_pretrained(folder)
    return embedder.eval()


@every_case
def test_a_round_trip_gives_the_same_embedding_to_the_bit(case, tmp_path):
    embedder, loaded = saved(case, tmp_path), Embedder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(embedder(pixels()), loaded(pixels()))
    loaded.save_pretrained(tmp_path / "again")
    again = Embedder.from_pretrained(tmp_path / "again")
    for name, value in learned_weights(embedder).items():
        assert torch.equal(value, learned_weights(again)[name]), name


@every_case
def test_takes_images_of_another_size_than_it_was_trained_at(case, tmp_path):
    saved(case, tmp_path)
    larger = Embedder.from_pretrained(tmp_path, image_size=80)
    images = np.random.default_rng(0).integers(0, 255, (3, 90, 100, 3), dtype=np.uint8)
    vectors = larger.encode(images, precision="fp32")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        assert larger(pixels(size=80)).shape == (3, SIZE)
        assert Embedder.from_pretrained(tmp_path)(pixels()).shape == (3, SIZE)


def test_trained_position_embeddings_are_resampled_from_their_trained_values(tmp_path):
    embedder = saved("full", tmp_path)
    larger = Embedder.from_pretrained(tmp_path, image_size=80)
    embedder.backbone.resize(80)
    assert torch.equal(larger.backbone.vit.pos_embed, embedder.backbone.vit.pos_embed)
    assert larger.backbone.vit.pos_embed.requires_grad
    with torch.no_grad():
        assert torch.equal(larger(pixels(size=80)), embedder(pixels(size=80)))


def test_frozen_position_embeddings_are_resampled_once(tmp_path):
    saved("linear", tmp_path, image_size=32)
    larger = Embedder.from_pretrained(tmp_path, image_size=80)
    expected = make_backbone(TINY, weights="random", image_size=80).vit.pos_embed
    assert torch.equal(larger.backbone.vit.pos_embed, expected)


@every_case
@pytest.mark.parametrize("change", ["backbone", "options"])
def test_another_backbone_or_other_options_than_the_weights_were_made_for_are_refused(case, change, tmp_path):
    saved(case, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    if change == "backbone":
        config["backbone"]["name"] = "deit_tiny_patch16_224"
        config["backbone"]["fingerprint"] = "0" * 64
    else:
        config["embedding_size"] = SIZE + 1
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"fingerprint|head\.(weight|bias)"):
        Embedder.from_pretrained(tmp_path)


def test_lora_is_refused_where_there_is_nothing_to_attach_to():
    backbone = toy_backbone(embed_dim=WIDTH, num_heads=3)
    for block in backbone.vit.blocks:
        block.attn.qkv = torch.nn.Identity()
    with pytest.raises(UserError, match=r"--model\.method lora: .* has no attn\.qkv"):
        Embedder(backbone, "lora")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"rank": 0}, "option rank of lora is 0"),
        ("lora", {"alpha": -1.0}, "option alpha of lora is -1"),
        ("lora", {"targets": "mlp"}, "option targets of lora is 'mlp': use qkv, attention, all"),
        ("adaptformer", {"bottleneck": 0}, "option bottleneck of adaptformer is 0"),
        ("adaptformer", {"scale": 0.0}, "option scale of adaptformer is 0"),
        ("vpt-deep", {"prompt_length": 0}, "option prompt_length of vpt-deep is 0"),
        ("full", {"rank": 4}, "unknown option 'rank' of full; it has none"),
    ],
)
def test_options_out_of_range_are_refused(method, options, message):
    with pytest.raises(UserError, match=message):
        toy_embedder(method, options)
