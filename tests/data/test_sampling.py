"""The order of images: new in every epoch, the same for the same seed, each image at most once."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimetric.data.sampling import BatchSampler

CLASSES = st.lists(st.integers(0, 6), min_size=1, max_size=60)


def batches(sampler: BatchSampler, epoch: int, first_batch: int = 0) -> list[list[int]]:
    sampler.start(epoch, first_batch)
    found = list(sampler)
    assert all(number_epoch == epoch for batch in found for number_epoch, _ in batch)
    return [[number for _, number in batch] for batch in found]


@given(CLASSES, st.integers(1, 70), st.sampled_from([None, 1, 2, 4]), st.integers(0, 3), st.integers(0, 2**63 - 1))
def test_every_image_at_most_once_and_all_batches_full(
    classes: list[int], size: int, group: int | None, epoch: int, seed: int
) -> None:
    sampler = BatchSampler(classes, size, images_per_class=group, seed=seed)
    found = batches(sampler, epoch)
    assert len(found) == len(sampler) == len(classes) // min(size, len(classes)) >= 1
    assert {len(batch) for batch in found} == {min(size, len(classes))}
    numbers = [number for batch in found for number in batch]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) <= set(range(len(classes)))


@given(CLASSES, st.integers(1, 20), st.sampled_from([None, 4]), st.integers(0, 50), st.integers(0, 60))
def test_starting_at_a_batch_leaves_out_those_before(
    classes: list[int], size: int, group: int | None, epoch: int, first: int
) -> None:
    sampler = BatchSampler(classes, size, images_per_class=group, seed=3)
    assert batches(sampler, epoch, first) == batches(sampler, epoch)[first:]


@given(CLASSES, st.integers(1, 4), st.integers(1, 5), st.sampled_from([None, 4]))
def test_processes_share_each_batch_out(classes: list[int], world: int, per_process: int, group: int | None) -> None:
    if len(classes) < world:
        return
    samplers = [
        BatchSampler(classes, world * per_process, images_per_class=group, rank=rank, world_size=world)
        for rank in range(world)
    ]
    # One process with the same joint batch, which few images make smaller.
    joint = batches(BatchSampler(classes, samplers[0].batch_size, images_per_class=group), 1)
    shares = [batches(sampler, 1) for sampler in samplers]
    assert {len(share) for share in shares} == {len(joint)}
    for batch, *parts in zip(joint, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert Counter(number for part in parts for number in part) == Counter(batch)


@pytest.mark.parametrize("group", [None, 4])
def test_epochs_and_seeds_have_orders_of_their_own(group: int | None) -> None:
    classes = [number // 8 for number in range(64)]
    orders = {
        (seed, epoch): batches(BatchSampler(classes, 16, images_per_class=group, seed=seed), epoch)
        for seed in range(3)
        for epoch in range(4)
    }
    assert len({str(order) for order in orders.values()}) == 12
    again = BatchSampler(classes, 16, images_per_class=group, seed=2)
    assert [batches(again, epoch) for epoch in (3, 0)] == [orders[2, 3], orders[2, 0]]


@given(st.lists(st.integers(0, 9), min_size=12, max_size=80), st.sampled_from([2, 3, 4]), st.integers(0, 5))
def test_groups_hold_one_class(classes: list[int], group: int, epoch: int) -> None:
    """Whole groups first; what a class has beyond them comes after, also side by side."""
    sampler = BatchSampler(classes, len(classes), images_per_class=group)
    (order,) = batches(sampler, epoch)
    labels = np.asarray(classes)[order]
    whole = sum(count // group for count in Counter(classes).values())
    head = labels[: whole * group].reshape(whole, group)
    assert (head == head[:, :1]).all()
    tail = labels[whole * group :].tolist()
    assert Counter(tail) == {label: count % group for label, count in Counter(classes).items() if count % group}
    changes = sum(one != other for one, other in pairwise(tail))
    assert changes == max(len(set(tail)) - 1, 0)


def test_groups_of_a_class_change_their_members() -> None:
    sampler = BatchSampler([0] * 8 + [1] * 8, 4, images_per_class=4)
    members = {frozenset(batch) for epoch in range(5) for batch in batches(sampler, epoch)}
    assert len(members) > 8


def test_over_many_epochs_every_image_is_used_about_as_often() -> None:
    """The images that do not fill the last batch are others in every epoch."""
    sampler = BatchSampler([0] * 10, 4)
    counts = Counter(number for epoch in range(500) for batch in batches(sampler, epoch) for number in batch)
    assert min(counts[number] for number in range(10)) > 350  # 400 expected, standard deviation 9
