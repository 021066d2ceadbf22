"""The loss on nested sizes against losses of each size with copies of the proxies' first numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from unimetric.errors import UserError
from unimetric.geometry import Sphere
from unimetric.losses import LOSSES, NestedLoss, make_loss, place_proxies

ON_SPHERE = sorted(name for name, spec in LOSSES.items() if spec.geometry is Sphere)
SIZES, E, C = (2, 5), 8, 6


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(24, E, generator=generator), torch.arange(24) % C


def nested(name, options=None):
    torch.manual_seed(1)
    return make_loss(name, C, E, options, SIZES)


def of_each_size(name, loss, options=None):
    """Plain losses of every size, whose proxies are copies of the first numbers of the nested loss's."""
    plain = [make_loss(name, C, size, options) for size in (*SIZES, E)]
    whole = dict(loss.whole.named_parameters())
    for one in plain:
        with torch.no_grad():
            for key, parameter in one.named_parameters():
                parameter.copy_(whole[key][tuple(slice(length) for length in parameter.shape)])
    return plain


@pytest.mark.parametrize("name", ON_SPHERE)
def test_value_and_gradients_are_the_mean_over_the_sizes(name):
    loss = nested(name)
    assert isinstance(loss, NestedLoss)
    plain = of_each_size(name, loss)
    for step in range(3):
        embeddings, labels = batch(step)
        embeddings.requires_grad_()
        loss.zero_grad()
        torch.manual_seed(step)
        value = loss(embeddings, labels)
        value.backward()
        found, embeddings = embeddings.grad, embeddings.detach().clone().requires_grad_()
        values = []
        for size, one in zip((*SIZES, E), plain, strict=True):
            one.zero_grad()
            torch.manual_seed(step)
            values.append(one(embeddings[:, :size], labels) / 3)
            values[-1].backward()
        torch.testing.assert_close(value, torch.stack(values).sum())
        torch.testing.assert_close(found, embeddings.grad)
        for key, parameter in loss.whole.named_parameters():
            expected = torch.zeros_like(parameter)
            for one in plain:
                part = dict(one.named_parameters())[key].grad
                expected[tuple(slice(length) for length in part.shape)] += part
            torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("name", ON_SPHERE)
def test_only_the_whole_loss_has_parameters(name):
    loss, plain = nested(name), make_loss(name, C, E)
    assert {key: p.shape for key, p in loss.named_parameters()} == {
        f"whole.{key}": p.shape for key, p in plain.named_parameters()
    }
    loss(*batch())
    other = nested(name)
    other.load_state_dict(copy.deepcopy(loss).state_dict())
    torch.manual_seed(0)
    value = loss(*batch(1))
    torch.manual_seed(0)
    torch.testing.assert_close(other(*batch(1)), value, rtol=0, atol=0)


def test_every_size_has_its_own_curriculum_and_draws_the_same_classes():
    loss = nested("curricularface", {"sampled_classes": 0.5})
    embeddings, _ = batch()
    loss(embeddings, torch.arange(24) % 2)
    averages = [loss.whole.t, *(part.t for part in loss.parts)]
    assert len({tuple(t[:2].tolist()) for t in averages}) == 3
    assert len(loss.whole.drawn) == 4
    for part in loss.parts:
        assert torch.equal(part.drawn, loss.whole.drawn)


def test_proxies_are_placed_for_all_sizes():
    loss = nested("curricularface")
    directions = torch.nn.functional.normalize(torch.randn(C, E), dim=1)
    place_proxies(loss, directions)
    torch.testing.assert_close(loss.whole.proxies.detach(), directions * E**0.5)


@pytest.mark.parametrize("sizes", [(), (E,)])
def test_no_nested_sizes_is_the_plain_loss(sizes):
    assert type(make_loss("cosface", C, E, nested_sizes=sizes)) is type(make_loss("cosface", C, E))


@pytest.mark.parametrize(("name", "sizes"), [("cosface", (0, 2)), ("cosface", (E + 1,)), ("hyperbolic", (2,))])
def test_sizes_that_cannot_be(name, sizes):
    with pytest.raises(UserError, match="nested sizes"):
        make_loss(name, C, E, nested_sizes=sizes)
