"""Blocks that are computed again for the backward pass: the same gradients to the bit, and less that is kept."""

import pytest
import torch
from toys import pixels, toy_embedder

from unimetric.models.petl import METHODS
from unimetric.models.petl.noise import drawing_for


def step(method, blocks, part=None):
    """Output, gradients, bytes kept for backward and the random state after a step of the same model."""
    torch.manual_seed(0)
    embedder = toy_embedder(method).train()
    for parameter in embedder.method.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    embedder.recompute_blocks = blocks
    images, kept = pixels(), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if part is None:
            out = embedder(images)
        else:
            with drawing_for(*part):
                out = embedder(images)
    (out * torch.arange(out.shape[1])).sum().backward()
    gradients = {name: value.grad for name, value in embedder.named_parameters() if value.grad is not None}
    return out, gradients, sum(kept.values()), torch.rand(1)


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if name != "frozen"])
@pytest.mark.parametrize("blocks", [1, 100])
def test_gradients_are_the_same_to_the_bit(method, blocks):
    out, gradients, kept, drawn = step(method, 0)
    again, found, less, drawn_again = step(method, blocks)
    assert out.equal(again)
    assert gradients.keys() == found.keys()
    assert [name for name, value in gradients.items() if not value.equal(found[name])] == []
    assert drawn.equal(drawn_again)
    if method not in ("linear", "vpt-deep"):
        assert less < kept


def test_images_of_a_joint_batch_drop_the_same_adapters_again():
    count = len(pixels())
    part = torch.arange(count) * 2 + 1, 2 * count + 3
    _, gradients, _, _ = step("puma", 0, part)
    _, found, _, _ = step("puma", 100, part)
    _, alone, _, _ = step("puma", 100)
    assert [name for name, value in gradients.items() if not value.equal(found[name])] == []
    assert any(not value.equal(alone[name]) for name, value in gradients.items())


def test_embedding_computes_nothing_twice():
    embedder = toy_embedder("puma").eval()
    embedder.recompute_blocks = 100
    calls = []
    embedder.method.enter_block = lambda index, tokens: calls.append(index) or tokens
    embedder(pixels()).sum().backward()
    assert calls == list(range(embedder.backbone.depth))
