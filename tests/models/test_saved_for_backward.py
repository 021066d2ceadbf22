"""Tensors that a training step keeps for backward: nothing that only a frozen weight's gradient would read."""

import pytest
import torch
from toys import pixels, toy_embedder


def saved(method, options=None):
    """Shapes of the tensors that a forward pass keeps, each storage once, weights left out."""
    embedder = toy_embedder(method, options).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in embedder.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = embedder(pixels())
    shapes = [tuple(tensor.shape) for address, tensor in kept.items() if address not in weights]
    out.sum().backward()
    return embedder, shapes


@pytest.mark.parametrize("method", ["puma", "vpt-deep"])
def test_a_frozen_mlp_keeps_its_activation_s_input_only(method):
    """Full fine-tuning keeps the second product's input of four widths as well, for its weight's gradient."""
    embedder, shapes = saved(method)
    hidden = 4 * embedder.backbone.width
    assert sum(shape[-1] == hidden for shape in shapes if shape) == embedder.backbone.depth
    full, full_shapes = saved("full")
    assert sum(shape[-1] == hidden for shape in full_shapes if shape) == 2 * full.backbone.depth
    assert all(parameter.grad is None for parameter in embedder.backbone.parameters())


def test_a_head_alone_keeps_no_token():
    _, shapes = saved("linear")
    assert shapes
    assert all(len(shape) < 3 for shape in shapes)
