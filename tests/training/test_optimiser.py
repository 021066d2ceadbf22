"""Groups and rates of AdamW, and the schedules, against METHOD.md's numbers and formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unimetric.config import TrainingConfig
from unimetric.losses import LOSSES, make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.optimiser import make_optimiser, rate_schedule, step_rows


def embedder_of(method: str) -> Embedder:
    return Embedder(make_backbone("vit_tiny_patch16_224", weights="random", image_size=32), method, {}, 16)


@pytest.mark.parametrize("method", ["puma", "linear"])
@pytest.mark.parametrize("loss_name", sorted(LOSSES))
def test_every_trainable_parameter_is_in_exactly_one_group(method: str, loss_name: str) -> None:
    embedder, loss = embedder_of(method), make_loss(loss_name, 5, 16)
    optimiser = make_optimiser(embedder, loss, TrainingConfig())
    grouped = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    trainable = [id(p) for p in [*embedder.parameters(), *loss.parameters()] if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert not {id(parameter) for parameter in embedder.backbone.parameters()} & set(grouped)


def test_the_published_rates() -> None:
    optimiser = make_optimiser(embedder_of("puma"), make_loss("curricularface", 5, 16), TrainingConfig())
    rates = {group["name"]: group["base_lr"] for group in optimiser.param_groups}
    assert rates == {
        "method": pytest.approx(1e-3),
        "head": pytest.approx(1e-3),
        "proxies": pytest.approx(1.0),
    }
    assert all(group["weight_decay"] == 1e-4 for group in optimiser.param_groups)


def test_groups_hold_what_they_are_called_after() -> None:
    embedder, loss = embedder_of("puma"), make_loss("softtriple", 5, 16)
    config = TrainingConfig(learning_rate=1.0, method_multiplier=2, head_multiplier=3, proxy_multiplier=5)
    groups = {group["name"]: group for group in make_optimiser(embedder, loss, config).param_groups}
    members: dict[str, tuple[list[nn.Parameter], float]] = {
        "method": (list(embedder.method.parameters()), 2),
        "head": (list(embedder.head.parameters()) if embedder.head else [], 3),
        "proxies": (list(loss.parameters()), 5),
    }
    assert groups.keys() == members.keys()
    for name, (parameters, rate) in members.items():
        assert {*map(id, groups[name]["params"])} == {*map(id, parameters)}
        assert groups[name]["base_lr"] == rate


def test_a_multiplier_of_zero_keeps_its_group_still() -> None:
    embedder, loss = embedder_of("linear"), make_loss("curricularface", 5, 16)
    optimiser = make_optimiser(embedder, loss, TrainingConfig(head_multiplier=0))
    (head,) = [group for group in optimiser.param_groups if group["name"] == "head"]
    assert head["base_lr"] == 0


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 100), st.sampled_from([0.1, 0.5, 1.0]))
def test_step_schedule(steps_per_epoch: int, decay_epochs: int, step: int, decay: float) -> None:
    config = TrainingConfig(decay_epochs=decay_epochs, decay_factor=decay)
    epoch = step // steps_per_epoch
    assert rate_schedule(config, steps_per_epoch, 101)(step) == pytest.approx(decay ** (epoch // decay_epochs))


def test_the_published_schedule_halves_every_twenty_epochs() -> None:
    rate = rate_schedule(TrainingConfig(), 10, 1000)
    assert [rate(step) for step in (0, 199, 200, 399, 400, 999)] == [1, 1, 0.5, 0.5, 0.25, 0.5**4]


@given(st.integers(0, 20), st.integers(1, 200))
def test_cosine_schedule_with_warm_up(warmup: int, steps: int) -> None:
    total = warmup + steps
    rate = rate_schedule(TrainingConfig(schedule="cosine", warmup_steps=warmup), 10, total)
    values = [rate(step) for step in range(total)]
    assert values[:warmup] == pytest.approx([(step + 1) / (warmup + 1) for step in range(warmup)])
    expected = [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert values[warmup:] == pytest.approx(expected)
    assert values[warmup] == 1
    assert all(0 < value <= 1 for value in values)


def test_warm_up_longer_than_the_run_stays_below_the_full_rate() -> None:
    rate = rate_schedule(TrainingConfig(schedule="cosine", warmup_steps=50), 10, 20)
    values = [rate(step) for step in range(20)]
    assert values == sorted(values)
    assert 0 < values[0] < values[-1] < 1
    assert all(torch.isfinite(torch.tensor(values)))


def test_rows_move_as_by_adamw_in_the_steps_that_have_them() -> None:
    """Each row beside a parameter of its own, which has no gradient in the other steps and so stays."""
    torch.manual_seed(0)
    proxies = nn.Parameter(torch.randn(4, 3))
    alone = [nn.Parameter(row.detach().clone()) for row in proxies]
    options = {"lr": 0.1, "weight_decay": 0.2}
    optimiser, expected = torch.optim.AdamW([proxies], **options), torch.optim.AdamW(alone, **options)
    for rows in ([0, 1], [1, 3], [0], [1, 3], [0, 1, 3]):
        proxies.grad = torch.randn(4, 3)
        for number, row in enumerate(alone):
            row.grad = proxies.grad[number].clone() if number in rows else None
        step_rows(optimiser, proxies, torch.tensor(rows))
        optimiser.step()
        expected.step()
        torch.testing.assert_close(proxies.detach(), torch.stack([row.detach() for row in alone]))
        reloaded = torch.optim.AdamW([proxies], **options)
        reloaded.load_state_dict(optimiser.state_dict())
        optimiser = reloaded


@given(
    floor=st.floats(0, 1),
    total=st.integers(2, 500),
    warmup=st.integers(0, 20),
)
def test_the_cosine_schedule_ends_at_its_floor(floor: float, total: int, warmup: int) -> None:
    warmup = min(warmup, total - 1)
    config = TrainingConfig(schedule="cosine", cosine_floor=floor, warmup_steps=warmup)
    rate = rate_schedule(config, 1, total)
    rates = [rate(step) for step in range(warmup, total)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rate(total) == pytest.approx(floor, abs=1e-12)
    middle = (warmup + total) / 2
    if middle == int(middle):
        assert rate(int(middle)) == pytest.approx((1 + floor) / 2)


def test_a_constant_schedule_keeps_the_rate_after_its_warm_up() -> None:
    rate = rate_schedule(TrainingConfig(schedule="constant", warmup_steps=3), 10, 100)
    assert [rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert {rate(step) for step in range(3, 100)} == {1.0}


def test_the_head_starts_uniform_within_one_over_the_root_of_its_width() -> None:
    """PyTorch's default for a linear layer, as in the authors' code."""
    torch.manual_seed(0)
    head = Embedder(make_backbone("vit_tiny_patch16_224", weights="random", image_size=32), "puma", {}, 128).head
    assert head is not None
    bound = 192**-0.5
    weight, bias = head.weight.detach(), head.bias.detach()
    for values in (weight, bias):
        assert float(values.abs().max()) <= bound
        # Of a uniform distribution: the standard deviation is bound / sqrt(3), the mean 0.
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.15)
        assert float(values.mean().abs()) < 4 * bound / 3**0.5 / len(values.flatten()) ** 0.5
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
