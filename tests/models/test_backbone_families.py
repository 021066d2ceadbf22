"""Every supported family opened up in blocks computes what timm computes, and rotary attention stays in place."""

import pytest
import timm
import torch
from torch.nn import functional as F
from toys import pixels, toy_backbone

from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

SMALL = {"embed_dim": 48, "num_heads": 3}
FAMILIES = {
    "augreg": ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 16, SMALL),
    "dinov2 with LayerScale": ("vit_small_patch14_dinov2", 14, SMALL),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", 14, SMALL),
    "clip tower with a norm before the blocks": ("vit_xsmall_patch16_clip_224", 16, SMALL),
    "siglip, map pooling, no class token": ("vit_base_patch16_siglip_224", 16, SMALL),
    "siglip, average pooling": ("vit_base_patch16_siglip_gap_224", 16, SMALL),
    "average pooling with fc_norm": ("beit3_base_patch16_224", 16, SMALL),
    "registers, average pooling": ("vit_little_patch16_reg4_gap_256", 16, SMALL),
    "deit3, class token without position": ("deit3_small_patch16_224", 16, SMALL),
    "eva02 with rope": ("eva02_tiny_patch14_224", 14, SMALL),
    "dinov3 with rope and registers": ("vit_small_patch16_dinov3", 16, SMALL),
    "rope mixed": ("vit_small_patch16_rope_mixed_224", 16, SMALL),
    "perception encoder": ("vit_pe_core_tiny_patch16_384", 16, SMALL),
}
ROPE = ["eva02 with rope", "dinov3 with rope and registers", "rope mixed"]
family = pytest.mark.parametrize("family", FAMILIES)


def toy(family, patches=3):
    name, patch, options = FAMILIES[family]
    return toy_backbone(name, image_size=patches * patch, **options)


@family
@pytest.mark.parametrize("patches", [2, 5])
def test_fresh_puma_without_prompts_is_the_frozen_backbone_to_the_bit(family, patches):
    backbone = toy(family, patches)
    images = pixels(2, backbone.image_size)
    torch.manual_seed(0)
    puma = Embedder(backbone, "puma", {"prompts": 0, "adapter_bottleneck": 4}).eval()
    with torch.no_grad():
        expected = backbone.vit(images)  # timm's own forward
        assert expected.abs().max() > 0.1
        assert torch.equal(puma.features(images), expected)
        assert torch.equal(backbone(images), expected)


@family
def test_agrees_with_an_untouched_timm_model_at_its_own_size(family):
    """The other tests compare with the opened-up module's forward; this one with a module that nobody touched."""
    name, patch, options = FAMILIES[family]
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=0, depth=2, img_size=3 * patch, **options).eval()
    opened = toy_backbone(name, image_size=3 * patch, img_size=3 * patch, **options)
    opened.vit.load_state_dict(vit.state_dict())
    images = pixels(2, 3 * patch)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), vit(images), atol=1e-5, rtol=1e-5)


def test_random_weights_are_timms_own_seeded():
    backbone = make_backbone("vit_tiny_patch16_224", weights="random", image_size=224)
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels(1, 224)), vit(pixels(1, 224)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_weights_leave_the_callers_random_state_alone(seed):
    torch.manual_seed(seed)
    expected = torch.rand(3)
    torch.manual_seed(seed)
    make_backbone("vit_tiny_patch16_224", weights="random", image_size=32)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", ROPE)
def test_prompts_do_not_shift_rotary_embeddings(family):
    """Against attention written out here: patches are turned by their place, all that precedes them is not."""
    backbone = toy(family)
    prompts = torch.randn(2, 4, backbone.width, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        patches = backbone.patch_tokens(pixels(2, backbone.image_size))
        tokens, ropes = backbone.embed_tokens(patches, prompts)
        assert tokens.shape[1] == backbone.prefix_tokens + 4 + 9
        assert torch.equal(tokens[:, backbone.prefix_tokens :][:, :4], prompts)
        own_ropes = backbone.vit.rope.get_embed()
        for index, block in enumerate(backbone.blocks):
            rope = own_ropes[index] if family == "rope mixed" else own_ropes
            normed = block.attention_input(tokens)
            timm_block = backbone.vit.blocks[index]
            expected = rotary_attention(timm_block.attn, normed, rope, turned=9)
            if timm_block.gamma_1 is not None:
                expected = timm_block.gamma_1 * expected
            torch.testing.assert_close(block.attention(normed, ropes[index]), expected, atol=1e-5, rtol=1e-5)
            # A wrong place would show: the same attention with the rotation one token off differs.
            off = rotary_attention(timm_block.attn, normed.roll(1, dims=1), rope, turned=9).roll(-1, dims=1)
            off = off if timm_block.gamma_1 is None else timm_block.gamma_1 * off
            assert (off - expected).abs().max() > 1e-4
            tokens = block(tokens, ropes[index])


def rotary_attention(attn, normed, rope, turned):
    """Softmax attention with the last ``turned`` tokens' queries and keys rotated: x cos + (x turned by 90°) sin."""
    batch, count, width = normed.shape
    weight = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]) if attn.qkv is None else None
    if attn.qkv is None:
        bias = torch.cat(
            [
                layer.bias if layer.bias is not None else torch.zeros(width)
                for layer in (attn.q_proj, attn.k_proj, attn.v_proj)
            ]
        )
    else:
        weight = attn.qkv.weight
        bias = attn.qkv.bias
        if getattr(attn, "q_bias", None) is not None:
            bias = torch.cat([attn.q_bias, torch.zeros(width), attn.v_bias])
    q, k, v = F.linear(normed, weight, bias).reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    size = q.shape[-1]
    sines, cosines = rope[..., :size], rope[..., size:]
    half = attn.rotate_half

    def turn(x):
        place = x[:, :, -turned:]
        if half:
            quarter = torch.cat([-place[..., size // 2 :], place[..., : size // 2]], dim=-1)
        else:
            quarter = torch.stack([-place[..., 1::2], place[..., ::2]], dim=-1).flatten(-2)
        return torch.cat([x[:, :, :-turned], place * cosines + quarter * sines], dim=2)

    scores = (turn(q) @ turn(k).transpose(-1, -2)) / size**0.5
    return attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, width))


@pytest.mark.parametrize("family", ROPE)
def test_a_second_embedder_on_a_rope_backbone_does_not_disturb_the_first(family):
    backbone = toy(family)
    images = pixels(2, backbone.image_size)
    first = Embedder(backbone, "puma", {"prompts": 2, "prompt_length": 3, "adapter_bottleneck": 2}).eval()
    with torch.no_grad():
        before = first(images)
        Embedder(backbone, "puma", {"prompts": 2, "prompt_length": 5, "adapter_bottleneck": 2})
        assert torch.equal(first(images), before)
        assert torch.equal(backbone(images), backbone.vit(images))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("token", lambda tokens: tokens[:, 0]), ("avg", lambda tokens: tokens[:, 5:].mean(1))],
)
def test_pool_takes_the_class_token_or_the_mean_of_the_patches(pool, expected):
    backbone = toy_backbone("vit_small_patch14_reg4_dinov2", image_size=42, pool=pool, **SMALL)
    images = pixels(2, 42)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), expected(backbone.vit.forward_features(images)))


@family
def test_prompts_are_left_out_of_the_pooling(family):
    """Prompt tokens put in after the last block change nothing."""
    backbone = toy(family)
    tokens = torch.randn(2, backbone.prefix_tokens + 9, backbone.width, generator=torch.Generator().manual_seed(0))
    prefix = backbone.prefix_tokens
    with_prompts = torch.cat([tokens[:, :prefix], torch.full((2, 4, backbone.width), 1e3), tokens[:, prefix:]], dim=1)
    with torch.no_grad():
        assert torch.equal(backbone.pool(with_prompts, prompt_count=4), backbone.pool(tokens))
