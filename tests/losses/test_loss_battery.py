"""Checks of every loss in the table, whatever its formula."""

import math

import pytest
import torch

from unimetric.geometry import Sphere
from unimetric.losses import LOSSES, make_loss

CLASSES, SIZE = 5, 8
PROXY_FREE = {"hyperbolic", "margin", "multi-similarity", "triplet"}
ON_THE_SPHERE = {name for name, spec in LOSSES.items() if spec.geometry is Sphere}

every_loss = pytest.mark.parametrize("name", sorted(LOSSES))


def toy_batch(seed=0):
    """Four images of each class, in random order, embeddings of random norm."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(4)[torch.randperm(4 * CLASSES, generator=generator)]
    return torch.randn(4 * CLASSES, SIZE, generator=generator), labels


def make(name, seed=0):
    torch.manual_seed(seed)
    return make_loss(name, CLASSES, SIZE)


def fill_proxies(loss, vector):
    """Set every proxy of a loss to one vector, whichever way round the loss stores them."""
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(vector if parameter.shape[-1] == SIZE else vector.unsqueeze(1))


def gradients(loss, embeddings, labels, autocast=False):
    """(value, gradients of the embeddings and of every parameter), from a fixed random state.

    Backward runs outside autocast, as it must: inside, its matrix products would be autocast too.
    """
    torch.manual_seed(1)
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(leaf, labels)
    return value, list(torch.autograd.grad(value, [leaf, *loss.parameters()]))


@every_loss
def test_scalar_finite_and_gradient_reaches_embeddings_and_proxies(name):
    loss = make(name)
    assert (not list(loss.parameters())) == (name in PROXY_FREE)
    value, grads = gradients(loss, *toy_batch())
    assert value.shape == () and value.dtype == torch.float32 and value > 0
    for grad in grads:
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0


@every_loss
def test_training_toy_embeddings_lowers_the_loss(name):
    loss = make(name)
    embeddings, labels = toy_batch()
    embeddings.requires_grad_()
    optimizer = torch.optim.Adam([embeddings, *loss.parameters()], lr=0.2)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(embeddings, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]
    assert class_gap(embeddings.detach(), labels) > class_gap(toy_batch()[0], labels) + 0.05


def class_gap(embeddings, labels):
    """Mean cosine of pairs of one class, less that of pairs of two."""
    units = torch.nn.functional.normalize(embeddings)
    cosines, same = units @ units.T, labels[:, None] == labels[None]
    return (cosines[same].mean() - cosines[~same].mean()).item()


@every_loss
def test_bfloat16_under_autocast_equals_float32_on_the_same_inputs(name):
    embeddings, labels = toy_batch()
    rounded = embeddings.bfloat16()
    value, grads = gradients(make(name), rounded, labels, autocast=True)
    expected, expected_grads = gradients(make(name), rounded.float(), labels)
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert grads[0].dtype == torch.bfloat16
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.equal(grad, expected_grad.to(grad.dtype))


@every_loss
def test_proxies_stay_float32_after_a_half_precision_batch(name):
    loss = make(name)
    embeddings, labels = toy_batch()
    loss(embeddings.half(), labels)
    assert all(parameter.dtype == torch.float32 for parameter in loss.parameters())


@every_loss
def test_same_seed_same_value_and_gradients(name):
    first, first_grads = gradients(make(name), *toy_batch())
    second, second_grads = gradients(make(name), *toy_batch())
    assert first.item() == second.item()
    assert all(torch.equal(a, b) for a, b in zip(first_grads, second_grads, strict=True))


@pytest.mark.parametrize("name", sorted(ON_THE_SPHERE))
def test_only_the_direction_of_an_embedding_counts(name):
    embeddings, labels = toy_batch()
    lengths = torch.rand(len(labels), 1) + 0.5
    assert gradients(make(name), embeddings * lengths, labels)[0].item() == pytest.approx(
        gradients(make(name), embeddings, labels)[0].item(), rel=1e-4
    )


@every_loss
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_gradients_when_all_cosines_are_one_or_minus_one(name, sign, autocast):
    """Identical embeddings, with all proxies on them or opposite to them; one of them turned round."""
    axis = torch.zeros(SIZE)
    axis[0] = 1.0
    loss = make(name)
    fill_proxies(loss, sign * axis)
    _, labels = toy_batch()
    for flipped in (0, 1):
        embeddings = axis.repeat(len(labels), 1)
        embeddings[:flipped] *= -1
        value, grads = gradients(loss, embeddings, labels, autocast)
        assert torch.isfinite(value)
        assert all(torch.isfinite(grad).all() for grad in grads)


@every_loss
def test_finite_gradients_at_a_zero_embedding(name):
    embeddings, labels = toy_batch()
    embeddings[3] = 0
    value, grads = gradients(make(name), embeddings, labels)
    assert torch.isfinite(value)
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("name", sorted(PROXY_FREE))
@pytest.mark.parametrize("labels", [[0], [0, 1, 2, 3], [2, 2, 2]], ids=["one image", "no positives", "one class"])
def test_a_batch_without_a_triplet_gives_zero_and_a_graph(name, labels):
    """One class alone has positive pairs, of which Multi-Similarity could make something, but its miner keeps no
    positive without a negative to compare it with; the hyperbolic loss does compare positives with each other.
    """
    if name == "hyperbolic" and labels == [2, 2, 2]:
        pytest.skip("a class's images compete with each other")
    embeddings = torch.randn(len(labels), SIZE, requires_grad=True)
    value = make(name)(embeddings, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@every_loss
def test_state_dict_round_trip(name):
    loss, twin = make(name, seed=0), make(name, seed=9)
    loss(*toy_batch())
    twin.load_state_dict(loss.state_dict())
    assert gradients(loss, *toy_batch(1))[0].item() == gradients(twin, *toy_batch(1))[0].item()


@every_loss
@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.randn(4, SIZE + 1), torch.zeros(4, dtype=torch.int64), "embeddings must have shape"),
        (torch.randn(SIZE), torch.zeros(1, dtype=torch.int64), "embeddings must have shape"),
        (torch.randn(0, SIZE), torch.zeros(0, dtype=torch.int64), "embeddings must have shape"),
        (torch.randn(4, SIZE), torch.zeros(3, dtype=torch.int64), "labels must have shape"),
        (torch.randn(4, SIZE), torch.zeros(4, 1, dtype=torch.int64), "labels must have shape"),
        (torch.randn(4, SIZE), torch.zeros(4), "labels must be int64"),
    ],
)
def test_wrong_shapes_and_types_are_named(name, embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        make(name)(embeddings, labels)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - PROXY_FREE))
@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_labels_out_of_range_are_named(name, wrong):
    with pytest.raises(ValueError, match=rf"label {wrong} is outside \[0, {CLASSES}\)"):
        make(name)(torch.randn(3, SIZE), torch.tensor([0, wrong, 1]))


@every_loss
def test_every_numeric_option_reaches_the_loss(name):
    """An option that changed nothing would be a lie in a table of results."""
    for option, default in LOSSES[name].options.items():
        embeddings, labels = toy_batch()
        if option == "sampled_classes":
            # Classes are drawn from those outside of the batch, which has all otherwise.
            embeddings, labels = embeddings[labels < 2], labels[labels < 2]
        reference = train_value(name, {}, embeddings, labels)
        if isinstance(default, bool):
            changed = not default
        elif option == "nonzero_cutoff":
            changed = 1.1
        else:
            changed = type(default)(default * 0.5) or 1
        value = train_value(name, {option: changed}, embeddings, labels)
        assert math.isfinite(value)
        assert value != reference, option


def train_value(name, options, embeddings, labels):
    """Sum of two training values: the second sees an effect on the state (CurricularFace's momentum)."""
    torch.manual_seed(0)
    loss = make_loss(name, CLASSES, SIZE, options)
    torch.manual_seed(1)
    return (loss(embeddings, labels) + loss(embeddings.flip(1), labels)).item()
