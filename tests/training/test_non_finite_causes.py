"""The cause that is named for numbers that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from toy_runs import removed
from unimetric.config import run_config
from unimetric.errors import UserError
from unimetric.losses import make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.diagnosis import Diagnosis, diagnose
from unimetric.training.nonfinite import read_numbers, replay_step
from unimetric.training.step import Buffers, Objective, StepInput, compute_step, noise_seed


class Step:
    """A step of a small model, to be spoiled."""

    def __init__(self, loss: str = "curricularface") -> None:
        torch.manual_seed(1)
        backbone = make_backbone("test_vit", weights="random", image_size=32)
        options = {"adapter_bottleneck": 8, "prompts": 4, "prompt_length": 2}
        self.embedder = Embedder(backbone, "puma", options, 16).train()
        self.loss = make_loss(loss, 3, 16)
        self.images = torch.randn(6, 3, 32, 32)
        self.labels = torch.tensor([0, 0, 1, 1, 2, 2])
        self.config = run_config({"loss": {"name": loss}}, "test")

    @property
    def objective(self) -> Objective:
        return Objective(self.embedder, self.loss)

    def given(self) -> StepInput:
        with torch.no_grad():
            torch.manual_seed(noise_seed(0, 0, 0))
            embeddings = self.embedder(self.images)
        return StepInput(self.images, embeddings, self.labels, torch.arange(6), 0, 0)

    def diagnosis(self, dtype: torch.dtype = torch.float32) -> Diagnosis:
        given = self.given()
        computed = compute_step(self.objective, given, dtype)
        return diagnose(self.objective, given, computed.gradients, computed.loss, self.config, dtype, True)


def test_causes() -> None:
    step = Step()
    step.images[4, 0, 3, 3] = float("nan")
    assert (step.diagnosis().first, step.diagnosis().rows) == (0, (4,))

    step = Step()
    with torch.no_grad():
        step.embedder.head.weight[0, 0] = float("inf")
    found = step.diagnosis()
    assert (found.first, found.lasting) == (1, True)
    assert "(model.head.weight): the learning rate is too high" in found.cause

    step = Step()
    with torch.no_grad():
        step.embedder.head.weight.fill_(3e38)
    found = step.diagnosis()
    assert found.first == 2
    assert "(the largest, 3e+38, is in model.head.weight): the learning rate" in found.cause

    step = Step("triplet")
    with torch.no_grad():
        step.embedder.head.weight.zero_()
        step.embedder.head.bias.zero_()
    step.loss.forward = lambda embeddings, labels: (embeddings - embeddings[0]).norm(dim=1).sum() / 0  # type: ignore
    found = step.diagnosis()
    assert "embeddings are zero vectors" in found.cause
    with torch.no_grad():
        step.embedder.head.bias.fill_(1.0)
    assert "all images have the same embedding" in step.diagnosis().cause

    step = Step("triplet")
    step.images[3] = step.images[1]
    step.embedder.eval()
    step.embedder.method.eval()
    step.loss.forward = lambda embeddings, labels: torch.cdist(embeddings, embeddings).pow(0.5).sum() * float("nan")  # type: ignore
    given = step.given()
    found = diagnose(step.objective, given, {}, float("nan"), step.config, torch.float32, True)
    assert found.rows == (1, 3)
    assert "two images have the same embedding" in found.cause

    step = Step()
    with torch.no_grad():
        step.loss.proxies[2] = 0  # type: ignore[index]
    forward = step.loss.forward
    step.loss.forward = lambda embeddings, labels: forward(embeddings, labels) * float("nan")  # type: ignore
    assert "loss.proxies has a zero vector, which has no direction, in row 2" in step.diagnosis().cause

    step = Step()
    assert "computed again, is finite" in step.diagnosis().cause


def test_a_gradient_that_fails_is_named_from_the_loss_on() -> None:
    step = Step()

    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * float("inf")

    embed = step.embedder.geometry.embed
    object.__setattr__(step.embedder.geometry, "embed", lambda values: Wall.apply(embed(values)))
    found = step.diagnosis()
    assert found.first == 4
    assert "the gradient is not finite, first in model.head." in found.cause


def test_half_precision_is_named_where_float32_is_finite() -> None:
    step = Step()

    def overflow(module: nn.Module, values: object, result: Any) -> Any:
        half = isinstance(module, nn.Linear) and result.dtype == torch.bfloat16
        return result * float("inf") if half else None

    with removed(register_module_forward_hook(overflow)):
        assert "set --device.precision fp32" in step.diagnosis(torch.bfloat16).cause


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


def test_buffers_are_put_back() -> None:
    step = Step()
    step.embedder.head = nn.Sequential(step.embedder.head, nn.BatchNorm1d(16))  # type: ignore[assignment]
    step.embedder.train()
    names = {name: value.clone() for name, value in [*step.embedder.named_buffers(), *step.loss.named_buffers()]}
    assert {"head.1.running_mean", "head.1.num_batches_tracked", "t"} <= names.keys()
    buffers = Buffers(step.embedder, step.loss)
    buffers.remember()
    step.loss(step.embedder(step.images), step.labels)
    changed = dict([*step.embedder.named_buffers(), *step.loss.named_buffers()])
    assert [name for name in names if not changed[name].equal(names[name])]
    buffers.restore()
    assert all(changed[name].equal(value) for name, value in names.items())


def test_a_step_computed_aside_leaves_no_trace() -> None:
    step = Step()
    before = {name: value.clone() for name, value in {**step.embedder.state_dict(), **step.loss.state_dict()}.items()}
    given = step.given()
    computed = compute_step(step.objective, given, torch.float32)
    after = {**step.embedder.state_dict(), **step.loss.state_dict()}
    assert all(after[name].equal(value) for name, value in before.items())
    parameters = step.objective.parameters
    assert all(parameter.grad is None for parameter in parameters.values())
    # The same as the step itself.
    torch.manual_seed(noise_seed(0, 0, 0))
    embeddings = step.embedder(step.images)
    torch.manual_seed(noise_seed(0, 0, 1))
    total = step.loss(embeddings, step.labels) + step.embedder.method.penalty()
    total.backward()
    for name, gradient in computed.gradients.items():
        assert parameters[name].grad is not None
        assert gradient.equal(parameters[name].grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["missing", "cut", "no json"])
def test_replaying_what_is_damaged(damage: str, tmp_path: Path) -> None:
    if damage != "missing":
        (tmp_path / "step.json").write_text("{}" if damage == "cut" else "{")
        (tmp_path / "tensors.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match=str(tmp_path)):
        replay_step(tmp_path)
