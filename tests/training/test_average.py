"""The running average of the weights against its formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.network import learned_weights
from unimetric.training.optimiser import averaged_weights, update_average

STEPS = 40


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(make_backbone("test_vit", weights="random", image_size=32), "linear", {}, 16)


def weights_of(embedder: Embedder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learned_weights(embedder).items()}


@pytest.mark.parametrize("horizon", [1.0, 5.0, 1000.0])
def test_it_is_the_weighted_sum_of_all_weights(embedder: Embedder, horizon: float) -> None:
    generator = torch.Generator().manual_seed(3)
    average: dict[str, Tensor] = {}
    history, factors = [], []
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in learned_weights(embedder).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        update_average(average, embedder, step, horizon)
        history.append(weights_of(embedder))
        share = 1.0 if step == 1 else max(1 / horizon, 1 - (1 + step) / (10 + step))
        factors = [factor * (1 - share) for factor in factors] + [share]
    assert sum(factors) == pytest.approx(1)
    for name, value in average.items():
        expected = sum(f * weights[name].double() for f, weights in zip(factors, history, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    if horizon == 1:
        assert all(torch.equal(average[name], value) for name, value in history[-1].items())


def test_a_block_sees_the_average_and_leaves_the_weights(embedder: Embedder, tmp_path: Path) -> None:
    before = weights_of(embedder)
    average = {name: value + 1 for name, value in before.items()}
    with pytest.raises(ZeroDivisionError), averaged_weights(embedder, average, tmp_path):
        assert all(torch.equal(value, average[name]) for name, value in weights_of(embedder).items())
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in weights_of(embedder).items())
    with averaged_weights(embedder, {}, tmp_path):
        assert all(torch.equal(value, before[name]) for name, value in weights_of(embedder).items())
    damaged = {name: torch.full_like(value, torch.nan) for name, value in before.items()}
    with pytest.raises(UserError, match="not finite"), averaged_weights(embedder, damaged, tmp_path):
        pass
