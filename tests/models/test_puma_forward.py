"""The whole of PUMA against its formulas, written out for one image at a time."""

import copy
import math

import pytest
import torch
from toys import pixels, toy_embedder

from unimetric.errors import UserError


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def attention(x, attn):
    tokens, width = x.shape
    q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).reshape(tokens, 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(0, 1).reshape(tokens, width) @ attn.proj.weight.T + attn.proj.bias


def mlp(x, layer):
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    return 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))) @ layer.fc2.weight.T + layer.fc2.bias


def adapter(x, module, scale):
    return scale * ((x @ module.down.weight.T).clamp_min(0) @ module.up.weight.T)


def conditional_prompt(patches, pool):
    query = (patches.mean(0) + patches.max(0).values) / 2
    prompt = torch.zeros_like(pool.prompts[0])
    for key, attend, own in zip(pool.keys, pool.attentions, pool.prompts, strict=True):
        focused = query * attend.exp() / attend.exp().sum()
        prompt = prompt + (focused @ key) / (focused.norm() * key.norm()) * own
    return prompt


def puma(embedder, image, scale, layer_scale):
    vit, method = embedder.backbone.vit, embedder.method
    size = embedder.backbone.patch_size
    squares = image.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    patches = squares @ vit.patch_embed.proj.weight.flatten(1).T + vit.patch_embed.proj.bias
    position = vit.pos_embed[0]
    x = torch.cat(
        [
            vit.cls_token[0] + position[:1],
            conditional_prompt(patches, method.pool) + position[:1],
            patches + position[1:],
        ]
    )
    for index, block in enumerate(vit.blocks):
        gamma1, gamma2 = (block.ls1.gamma, block.ls2.gamma) if layer_scale else (1, 1)
        h = layer_norm(x, block.norm1)
        y = x + gamma1 * attention(h, block.attn) + adapter(h, method.attention_adapters[index], scale)
        u = layer_norm(y, block.norm2)
        x = y + gamma2 * mlp(u, block.mlp) + adapter(u, method.mlp_adapters[index], scale)
    features = layer_norm(x, vit.norm)[0]
    embedding = embedder.head.weight @ features + embedder.head.bias
    return embedding / embedding.norm()


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_puma_is_what_its_formulas_say(backbone, scale):
    patch = 14 if "14" in backbone else 16
    options = {"adapter_bottleneck": 6, "adapter_scale": scale, "prompts": 5, "prompt_length": 3}
    embedder = toy_embedder("puma", options, name=backbone, image_size=3 * patch).eval()
    images = pixels(3, 3 * patch)
    exact = copy.deepcopy(embedder).double()
    with torch.no_grad():
        expected = torch.stack([puma(exact, image, scale, "dinov2" in backbone) for image in images.double()])
        torch.testing.assert_close(embedder(images), expected.float(), atol=5e-6, rtol=1e-5)


def test_prompt_weights_are_the_pools_for_the_patches_before_position_embeddings():
    embedder = toy_embedder(options={"prompts": 5, "adapter_bottleneck": 2}).eval()
    images = pixels(4)
    weights = embedder.prompt_weights(images)
    assert weights.shape == (4, 5)
    assert not weights.requires_grad
    with torch.no_grad():
        patches = embedder.backbone.vit.patch_embed(images)
        torch.testing.assert_close(weights, embedder.method.pool.weights(patches))
    assert toy_embedder("linear").prompt_weights(images) is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"adapter_drop": 1.0}, "adapter_drop"),
        ({"adapter_drop": float("nan")}, "adapter_drop"),
        ({"adapter_scale": 0.0}, "adapter_scale"),
        ({"adapter_scale": float("nan")}, "adapter_scale"),
        ({"prompts": -1}, "prompts"),
        ({"prompt_length": 0}, "prompt_length"),
        ({"orthogonality": float("nan")}, "orthogonality"),
        ({"prompts": 2.5}, "prompts"),
        ({"prompts": True}, "prompts"),
        ({"promts": 3}, "did you mean 'prompts'"),
    ],
)
def test_refuses_options_out_of_range(options, word):
    with pytest.raises(UserError, match=word):
        toy_embedder("puma", options)
