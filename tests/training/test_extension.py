"""Additions of an extension to training: its penalty against plain loops, and where the old proxies go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from unimetric.config import LossConfig, ModelConfig, RunConfig
from unimetric.data.catalog import ClassIndex
from unimetric.errors import UserError
from unimetric.geometry import PoincareBall, Sphere
from unimetric.losses import LOSSES, make_loss
from unimetric.training.extension import carry_over, distillation, read_proxies, write_proxies


@pytest.mark.parametrize("compatible", [False, True])
def test_distillation_on_the_sphere_is_its_formula(compatible: bool) -> None:
    torch.manual_seed(0)
    new, old = (F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=1) for _ in range(2))
    others = old if compatible else new
    moved = sum(1 - float(new[i] @ old[i]) for i in range(5)) / 5
    changes = [(float(new[i] @ others[j]) - float(old[i] @ old[j])) ** 2 for i in range(5) for j in range(5) if i != j]
    expected = moved + sum(changes) / 20
    assert float(distillation(new, old, Sphere(), compatible)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("compatible", [False, True])
def test_distillation_in_the_ball_is_its_formula(compatible: bool) -> None:
    torch.manual_seed(0)
    ball = PoincareBall()
    new, old = (ball.embed(torch.randn(4, 3)) for _ in range(2))
    others = old if compatible else new

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(ball.distances(one[None], other[None]))

    moved = sum(distance(new[i], old[i]) ** 2 / 2 for i in range(4)) / 4
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    changes = [(distance(new[i], others[j]) - distance(old[i], old[j])) ** 2 for i, j in pairs]
    expected = moved + sum(changes) / 12
    assert float(distillation(new, old, ball, compatible)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("geometry", [Sphere(), PoincareBall()])
@pytest.mark.parametrize("count", [1, 3])
def test_what_did_not_move_pays_nothing_and_is_not_pulled(geometry: Sphere | PoincareBall, count: int) -> None:
    points = geometry.embed(torch.randn(count, 4)).requires_grad_()
    value = distillation(points, points.detach(), geometry, True)
    value.backward()
    assert float(value.detach()) == 0
    assert points.grad is not None and torch.equal(points.grad, torch.zeros_like(points))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_old_proxies_lie_at_their_classes_new_numbers(name: str, tmp_path: Path) -> None:
    config = RunConfig(model=ModelConfig(embedding_size=4), loss=LossConfig(name))
    old = [("b", "x"), ("b", "y"), ("d", "x")]
    classes = ClassIndex((("a", "z"), ("b", "x"), ("b", "y"), ("c", "x"), ("d", "x")))
    before, after = make_loss(name, 3, 4), make_loss(name, 5, 4)
    fresh = {key: value.clone() for key, value in after.state_dict().items()}
    with torch.no_grad():
        for value in before.state_dict().values():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else value)
    carry_over(config, after, old, before.state_dict(), classes, tmp_path / "proxies")
    for key, value in after.state_dict().items():
        source = before.state_dict()[key]
        if source.shape == value.shape:
            assert torch.equal(value, source), key
            continue
        axis = 1 if key in ("loss.W", "loss.fc") else 0
        for rows, number in [(0, 1), (1, 2), (2, 4)]:
            assert torch.equal(value.chunk(5, axis)[number], source.chunk(3, axis)[rows]), (key, number)
        for number in (0, 3):
            assert torch.equal(value.chunk(5, axis)[number], fresh[key].chunk(5, axis)[number]), (key, number)


def test_proxies_of_other_classes_or_of_another_loss_are_refused(tmp_path: Path) -> None:
    state = make_loss("arcface", 3, 4).state_dict()
    classes = ClassIndex((("a", "x"), ("a", "y"), ("a", "z"), ("b", "x")))
    for pairs, loss in [(classes.classes[:2], "arcface"), (classes.classes[:3], "curricularface")]:
        config = RunConfig(model=ModelConfig(embedding_size=4), loss=LossConfig(loss))
        with pytest.raises(UserError, match="holds no proxies of"):
            carry_over(config, make_loss(loss, 4, 4), pairs, state, classes, tmp_path / "proxies")


def test_proxies_are_read_as_they_were_written(tmp_path: Path) -> None:
    state, pairs = make_loss("curricularface", 2, 4).state_dict(), [("a", "x"), ("ä", "y, z")]
    write_proxies(tmp_path / "proxies.safetensors", state, pairs)
    found, tensors = read_proxies(tmp_path / "proxies.safetensors")
    assert found == pairs and all(torch.equal(tensors[name], value) for name, value in state.items())
    (tmp_path / "proxies.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"proxies\.safetensors is missing or damaged"):
        read_proxies(tmp_path / "proxies.safetensors")
