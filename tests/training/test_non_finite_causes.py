"""The cause that is named for numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from toy_runs import options_file, removed, unimetric
from unimetric.models.embedder import Embedder
from unimetric.models.network import learned_weights
from unimetric.training.nonfinite import read_numbers


@pytest.fixture
def train(sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Train, and return the last line of an error."""

    def failing(**sections: dict[str, Any]) -> str:
        options = options_file(tmp_path / "options.yaml", **sections)
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 1
        return capsys.readouterr().err.splitlines()[-1]

    return failing


@contextmanager
def changed_weights(value: float) -> Iterator[None]:
    """Give the head this weight after the first step."""

    used: list[Embedder] = []

    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, Embedder):
            used.append(module)

    def change(*_: object) -> None:
        learned_weights(used[-1])["head.weight"].fill_(value)

    with removed(register_module_forward_pre_hook(note)), removed(register_optimizer_step_post_hook(change)):
        yield


def test_weights_that_are_not_finite_stop_a_run_that_skips(train: Any) -> None:
    with changed_weights(float("inf")):
        error = train(training={"non_finite": "skip"})
    assert "at step 2: weights were not finite before the step already (model.head.weight)" in error
    assert "lower --training.learning_rate (0.0001); images of the batch: " in error
    assert " and 5 more" in error


def test_embeddings_from_finite_weights(train: Any) -> None:
    with changed_weights(3e38):
        error = train()
    assert "at step 2: embeddings are not finite, from finite pixels and weights: lower" in error
    assert "suspected images: " in error


def test_half_precision_is_part_of_the_remedy(train: Any) -> None:
    def overflow(module: nn.Module, values: object, result: Any) -> Any:
        half = isinstance(module, nn.Linear) and result.dtype == torch.bfloat16
        return result * float("inf") if half else None

    with removed(register_module_forward_hook(overflow)):
        error = train(device={"precision": "bf16"})
    assert "embeddings are not finite" in error
    assert "set --device.precision fp32, or lower --training.learning_rate" in error


def test_a_gradient_that_fails_is_named_from_the_loss_on(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * float("inf")

    def walled(module: nn.Module, values: object, result: Any) -> Any:
        return Wall.apply(result) if isinstance(module, nn.Linear) and result.shape[-1] == 16 else None

    with removed(register_module_forward_hook(walled)):
        error = train()
    assert "the gradient is not finite at step 1: the gradient is not finite, first in model.head." in error


@pytest.mark.parametrize("where", ["loss", "total", "gradient", "nowhere"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_check_sees_a_single_number(where: str, bad: float) -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (3, 1000, 1)]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, 3e38)  # its square, and its sum, are beyond float32
    loss, total = torch.tensor(1.25, requires_grad=True), torch.tensor(2.0)
    if where == "loss":
        loss = torch.tensor(bad)
    elif where == "total":
        total = torch.tensor(bad)
    elif where == "gradient":
        parameters[1].grad[700] = bad  # type: ignore[index]
    value, finite = read_numbers(loss, total, parameters)
    assert finite == (where == "nowhere")
    assert value == 1.25 or where == "loss"
