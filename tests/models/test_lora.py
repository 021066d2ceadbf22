"""Low-rank updates, against the product that they are merged to."""

import pytest
import torch
from torch import nn

from unimetric.models.petl.lora import LowRankUpdate


def updated(bias=True):
    torch.manual_seed(0)
    frozen = nn.Linear(7, 5, bias=bias, dtype=torch.float64).requires_grad_(False)
    layer = LowRankUpdate(frozen, rank=3, factor=0.7).double()
    nn.init.normal_(layer.up.weight)
    return layer


def test_it_starts_as_the_frozen_layer():
    frozen = nn.Linear(7, 5)
    layer, tokens = LowRankUpdate(frozen, rank=3, factor=2.0), torch.randn(2, 4, 7)
    assert layer(tokens).equal(frozen(tokens))
    assert layer.down.weight.abs().max() <= 7**-0.5
    assert layer.down.weight.std() > 0.1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 4, 7)])
def test_output_and_gradients_are_those_of_the_sum_of_the_products(bias, shape):
    layer = updated(bias)
    tokens = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 5, dtype=torch.float64)
    inputs = [tokens, layer.down.weight, layer.up.weight]
    weight = layer.frozen.weight + 0.7 * layer.up.weight @ layer.down.weight
    expected = nn.functional.linear(tokens, weight, layer.frozen.bias)
    found = layer(tokens)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_merging_gives_the_same_layer_and_leaves_shared_values_alone():
    layer, tokens = updated(), torch.randn(3, 7, dtype=torch.float64)
    expected, shared = layer(tokens), layer.frozen.weight.data
    before = shared.clone()
    merged = layer.merged()
    torch.testing.assert_close(merged(tokens), expected)
    assert shared.equal(before)
