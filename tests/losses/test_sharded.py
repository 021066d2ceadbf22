"""Proxies divided among processes give the loss and the updates of all in one; drawn ones are right on average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from unimetric.losses import LOSSES, make_loss
from unimetric.losses.sharded import SHARDED, ShardedSoftmax

CLASSES, SIZE, BATCH = 11, 6, 7  # eleven classes do not divide by two
VARIANTS = [*((name, {}) for name in SHARDED), ("curricularface", {"per_class": False})]


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    embeddings = torch.randn(BATCH, SIZE, generator=random, requires_grad=True)
    return embeddings, torch.randint(CLASSES, (BATCH,), generator=random)


def whole_loss(name: str, options: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """A loss of all classes, and its proxies [C, E]."""
    torch.manual_seed(0)
    loss = make_loss(name, CLASSES, SIZE, options)
    (proxies,) = loss.parameters()
    return loss, proxies if proxies.shape == (CLASSES, SIZE) else proxies.T


def sharded_loss(name: str, options: dict[str, Any], **rest: Any) -> ShardedSoftmax:
    return ShardedSoftmax(name, LOSSES[name].options | options, whole_loss(name, options)[1], **rest)


def two_steps(loss: nn.Module) -> list[Tensor]:
    """Losses and gradients of the embeddings of two steps."""
    seen = []
    for step in range(2):
        embeddings, labels = batch(step)
        loss.zero_grad()
        value = loss(embeddings, labels)
        value.backward()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter -= 0.01 * parameter.grad
        seen += [value.detach(), embeddings.grad]
    return seen


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for number, (name, options) in enumerate(VARIANTS):
        loss = sharded_loss(name, options, rank=rank, count=2)
        seen = two_steps(loss)
        found[number] = [*seen, loss.whole(loss.proxies), *loss.buffers()]
    torch.manual_seed(5)
    found["drawn"] = [sharded_loss("cosface", {}, rank=rank, count=2, share=0.5)(*batch()).detach()]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_a_slice_each(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for number, (name, options) in enumerate(VARIANTS):
            loss, proxies = whole_loss(name, options)
            expected = [*two_steps(loss), proxies, *loss.buffers()]
            assert len(expected) == len(found[number])
            torch.testing.assert_close(found[number], expected, rtol=1e-4, atol=1e-6)
        torch.manual_seed(5)
        alone = sharded_loss("cosface", {}, share=0.5)(*batch()).detach()
        torch.testing.assert_close(found["drawn"], [alone], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_one_process_with_all_classes_is_the_loss_itself(name: str, options: dict[str, Any]) -> None:
    torch.testing.assert_close(
        two_steps(sharded_loss(name, options)), two_steps(whole_loss(name, options)[0]), rtol=1e-4, atol=1e-6
    )


def test_drawn_classes_make_the_loss_right_on_average_but_for_jensen() -> None:
    """At a small scale the sums hardly vary: the loss of half of the classes is that of all, on average."""
    exact = sharded_loss("cosface", {"scale": 1.0})(*batch()).item()
    loss = sharded_loss("cosface", {"scale": 1.0}, share=0.5)
    torch.manual_seed(0)
    values = torch.tensor([loss(*batch()).item() for _ in range(2000)])
    error = values.std() / len(values) ** 0.5
    assert exact - 0.1 < values.mean() < exact + 3 * error
    assert values.std() > 0.01  # or nothing was left out


def test_the_classes_of_the_batch_are_always_there() -> None:
    loss = sharded_loss("proxynca++", {}, share=1e-6)
    embeddings, labels = batch()
    torch.testing.assert_close(loss._drawn(labels)[0], labels.unique())
    assert torch.isfinite(loss(embeddings, labels))


@pytest.mark.parametrize(("name", "share"), [("triplet", 1.0), ("cosface", 0.0), ("cosface", 1.5)])
def test_what_cannot_be_divided_is_refused(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=r"one of|share"):
        ShardedSoftmax(name, LOSSES[name].options, torch.zeros(3, 2), share=share)
