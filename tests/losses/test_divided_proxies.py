"""Proxies in slices give the loss of all of them; drawn ones are right on average under the logarithm."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from forked import FORKED
from unimetric.errors import UserError
from unimetric.losses import CurricularFace, make_loss
from unimetric.losses.negatives import targets_and_negatives
from unimetric.losses.slices import ProxySlice

CLASSES, SIZE, BATCH = 11, 6, 7  # eleven classes divide neither by two nor by three
PER_CLASS = [True, False]
SAMPLES = [0, 3]


def make_batch(step: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    embeddings = torch.randn(BATCH, SIZE, generator=random, requires_grad=True)
    return embeddings, torch.randint(CLASSES, (BATCH,), generator=random)


def curricular(**options: float) -> CurricularFace:
    torch.manual_seed(0)
    loss = CurricularFace(CLASSES, SIZE, **options)
    torch.nn.init.normal_(loss.proxies)
    return loss


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Up to 1e-5 of each tensor's norm."""
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == wanted.shape
        assert (value - wanted).norm() <= 1e-5 * wanted.norm()


def two_steps(loss: CurricularFace) -> tuple[list[Tensor], list[Tensor]]:
    """Of two steps: losses, embeddings' gradients and t; and the proxies' gradients and the proxies."""
    seen, of_proxies = [], []
    for step in range(2):
        embeddings, labels = make_batch(step)
        loss.zero_grad()
        torch.manual_seed(step)
        value = loss(embeddings, labels)
        value.backward()
        with torch.no_grad():
            loss.proxies -= 0.01 * loss.proxies.grad
        seen += [value.detach(), embeddings.grad, loss.t.clone()]
        of_proxies += [loss.proxies.grad.clone(), loss.proxies.detach().clone()]
    return seen, of_proxies


def one_of_several(rank: int, folder: str, count: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    found = {}
    for per_class, sampled in itertools.product(PER_CLASS, SAMPLES):
        loss = curricular(per_class=per_class, sampled_classes=sampled)
        loss.keep_slice(rank, count)
        seen, of_proxies = two_steps(loss)
        found[per_class, sampled] = seen, [loss.slice.collect(rows) for rows in of_proxies]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Results of two and three processes, by their number."""
    found = {count: tmp_path_factory.mktemp(f"of-{count}") for count in (2, 3)}
    method = FORKED.get_start_method()
    started = [
        start_processes(one_of_several, (str(path), count), count, join=False, start_method=method)
        for count, path in found.items()
    ]
    for processes in started:
        while not processes.join():
            pass
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_with_a_slice_each(count: int, folders: dict[int, Path]) -> None:
    results = [torch.load(folders[count] / f"{rank}.pt") for rank in range(count)]
    for per_class, sampled in itertools.product(PER_CLASS, SAMPLES):
        expected, of_proxies = two_steps(curricular(per_class=per_class, sampled_classes=sampled))
        for result in results:
            assert_same(result[per_class, sampled][0], expected)
        assert_same(results[0][per_class, sampled][1], of_proxies)


@pytest.mark.parametrize("count", [1, 2, 3, CLASSES + 2])
def test_slices_by_hand(count: int) -> None:
    """Cosines add up and sums of negatives too; gradients of embeddings add up, those of proxies stand side by side."""
    units, labels = make_batch()
    units = F.normalize(units).detach().requires_grad_()
    proxies = torch.randn(CLASSES, SIZE, requires_grad=True)
    targets, t = torch.linspace(-0.5, 0.9, BATCH), torch.tensor(0.3)
    own, negatives = targets_and_negatives(units, proxies, labels, targets, t, 8.0)
    parts = []
    for rank in range(count):
        classes = ProxySlice(rank, count, CLASSES).classes
        places = torch.where((labels >= classes.start) & (labels < classes.stop), labels - classes.start, -1)
        parts.append(torch.stack(targets_and_negatives(units, proxies[classes], places, targets, t, 8.0)))
    found = torch.stack(parts)
    found_own, found_negatives = found[:, 0].sum(0), found[:, 1].logsumexp(0)
    torch.testing.assert_close((found_own, found_negatives), (own, negatives), rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad((own * negatives).sum(), [units, proxies])
    gradients = torch.autograd.grad((found_own * found_negatives).sum(), [units, proxies])
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampled", [CLASSES, 1000, 0.9999])
def test_a_sample_of_all_is_all(sampled: float) -> None:
    torch.testing.assert_close(two_steps(curricular(sampled_classes=sampled)), two_steps(curricular()))


@pytest.mark.parametrize(("sampled", "others"), [(3, 3), (0.5, None), (0.001, 1)])
def test_only_drawn_classes_get_a_gradient(sampled: float, others: int | None) -> None:
    loss = curricular(sampled_classes=sampled)
    embeddings, labels = make_batch()
    loss(embeddings, labels).backward()
    present = labels.unique()
    drawn = set(loss.drawn.tolist())
    assert drawn >= set(present.tolist())
    assert len(drawn) - len(present) == (math.ceil((CLASSES - len(present)) / 2) if others is None else others)
    assert set(loss.proxies.grad.norm(dim=1).nonzero().flatten().tolist()) == drawn


def test_the_sample_changes_and_evaluation_draws_nothing() -> None:
    loss = curricular(sampled_classes=3)
    embeddings, labels = make_batch()
    values = {loss(embeddings, labels).item() for _ in range(8)}
    assert len(values) > 2
    whole = curricular()
    whole.load_state_dict(loss.state_dict())
    assert loss.eval()(embeddings, labels).item() == whole.eval()(embeddings, labels).item()


def test_the_sum_is_right_on_average_and_its_logarithm_too_low() -> None:
    """Over every possible sample: a mean without chance in it."""
    loss = CurricularFace(9, SIZE, scale=4.0, sampled_classes=2)
    torch.nn.init.normal_(loss.proxies)
    labels = torch.tensor([0, 1])
    units, targets = F.normalize(torch.randn(2, SIZE)), torch.ones(2)
    _, exact = targets_and_negatives(units, loss.proxies, labels, targets, loss.t[labels], 4.0)
    found = {}
    for seed in range(300):
        torch.manual_seed(seed)
        classes, log_weights = loss._draw(labels)
        chosen = tuple(classes.tolist())
        rest = (loss.proxies[classes], labels, targets, loss.t[labels], 4.0, log_weights)
        found[chosen] = targets_and_negatives(units, *rest)[1]
    values = torch.stack(list(found.values()))
    assert len(values) == math.comb(7, 2)
    torch.testing.assert_close(values.exp().mean(0), exact.exp(), rtol=1e-5, atol=0)
    assert (values.mean(0) < exact).all()


def test_a_twin_in_the_same_state_draws_the_same() -> None:
    first = curricular(sampled_classes=3)
    second = copy.deepcopy(first)
    torch.testing.assert_close(two_steps(first), two_steps(second), rtol=0, atol=0)


@pytest.mark.parametrize("value", [-1, 2.5, -0.5])
def test_a_number_of_classes_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"curricularface.*sampled_classes must be"):
        make_loss("curricularface", 3, 2, {"sampled_classes": value})
