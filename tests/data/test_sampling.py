"""Which images share a batch: each sampler's promise, new in every epoch, the same for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unimetric.data.sampling import SAMPLERS, BatchSampler, Share, make_sampler, sampler_options
from unimetric.data.sampling.adaptive import AdaptiveSampler
from unimetric.data.sampling.dataset_balanced import expected_counts, whole_counts
from unimetric.errors import UserError

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)
WORLDS = st.integers(1, 4)
NAMES = st.sampled_from(sorted(SAMPLERS))
SEEDS = st.integers(0, 2**63 - 1)


def make(
    name: str,
    class_sizes: list[int],
    batch_size: int,
    *,
    datasets: int = 3,
    options: dict[str, Any] | None = None,
    **rest: Any,
) -> BatchSampler:
    """A sampler over classes of these sizes, the classes dealt to the datasets in turn; round_steps is short."""
    numbers = np.repeat(np.arange(len(class_sizes)), class_sizes).tolist()
    names = [f"d{number % datasets}" for number in range(len(class_sizes))]
    defaults: dict[str, dict[str, Any]] = {"class-balanced": {"images_per_class": 2}, "adaptive": {"round_steps": 3}}
    return make_sampler(name, {**defaults.get(name, {}), **(options or {})}, numbers, names, batch_size, **rest)


def possible(*arguments: Any, **keywords: Any) -> BatchSampler:
    """`make`, where what is refused is no example."""
    try:
        return make(*arguments, **keywords)
    except UserError:
        assume(False)
        raise


def batches(sampler: BatchSampler, epoch: int, first_batch: int = 0) -> list[list[int]]:
    """This process's slices of an epoch, in which an adaptive sampler pauses after every round."""
    found: list[list[tuple[int, int]]] = []
    while first_batch + len(found) < len(sampler):
        sampler.start(epoch, first_batch + len(found))
        found += list(sampler)
    pairs = [pair for batch in found for pair in batch]
    assert len(pairs) == len(set(pairs))  # or two would be augmented alike
    return [[number for _, number in batch] for batch in found]


@settings(deadline=None)
@given(NAMES, SIZES, st.integers(1, 70), WORLDS, st.integers(0, 3), SEEDS)
def test_processes_share_each_batch_out(
    name: str, sizes: list[int], batch_size: int, world: int, epoch: int, seed: int
) -> None:
    samplers = [possible(name, sizes, batch_size, seed=seed, share=Share(rank, world)) for rank in range(world)]
    shares = [batches(sampler, epoch) for sampler in samplers]
    total = sum(sizes)
    assert {len(share) for share in shares} == {total // min(batch_size, total)}
    alone = possible(name, sizes, batch_size, seed=seed)
    for batch, whole, *parts in zip(global_numbers(samplers[0], epoch), batches(alone, epoch), *shares, strict=True):
        assert batch == whole
        lengths = [len(part) for part in parts]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] - lengths[-1] <= 1
        assert Counter(number for part in parts for number in part) == Counter(batch)
        assert len(set(batch)) == len(batch)
        assert set(batch) <= set(range(total))
        assert len(batch) == samplers[0].batch_size or (name == "adaptive" and 0 < len(batch) < samplers[0].batch_size)


def global_numbers(sampler: BatchSampler, epoch: int) -> list[list[int]]:
    found: list[list[int]] = []
    while len(found) < len(sampler):
        found += [batch.tolist() for batch in sampler.global_batches(epoch, len(found))]
    return found


@settings(deadline=None)
@given(NAMES, SIZES, st.integers(1, 20), st.integers(0, 50), st.integers(0, 60))
def test_starting_at_a_batch_leaves_out_those_before(
    name: str, sizes: list[int], batch_size: int, epoch: int, first: int
) -> None:
    sampler = possible(name, sizes, batch_size, seed=3)
    assert batches(sampler, epoch, first) == batches(sampler, epoch)[first:]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_epochs_and_seeds_have_orders_of_their_own(name: str) -> None:
    orders = {
        (seed, epoch): batches(make(name, [8] * 8, 16, seed=seed), epoch) for seed in range(3) for epoch in range(4)
    }
    assert len({str(order) for order in orders.values()}) == 12
    again = make(name, [8] * 8, 16, seed=2)
    assert [batches(again, epoch) for epoch in (3, 0)] == [orders[2, 3], orders[2, 0]]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_image_is_reached(name: str) -> None:
    sampler = make(name, [2, 3, 4, 40, 5, 6], 6)
    reached = {number for epoch in range(60) for batch in batches(sampler, epoch) for number in batch}
    assert reached == set(range(60))


@settings(deadline=None)
@given(SIZES, st.integers(1, 70), st.integers(0, 3))
def test_natural_shows_an_image_at_most_once_an_epoch(sizes: list[int], batch_size: int, epoch: int) -> None:
    numbers = [number for batch in batches(make("natural", sizes, batch_size), epoch) for number in batch]
    assert len(numbers) == len(set(numbers))
    assert sum(sizes) - len(numbers) < min(batch_size, sum(sizes))


def test_natural_leaves_out_others_in_every_epoch() -> None:
    sampler = make("natural", [10], 4)
    counts = Counter(number for epoch in range(500) for batch in batches(sampler, epoch) for number in batch)
    assert min(counts[number] for number in range(10)) > 350  # 400 expected, standard deviation 9


@settings(deadline=None)
@given(SIZES, st.integers(2, 5), st.integers(1, 5), st.integers(0, 3))
def test_class_balanced_gives_every_drawn_class_a_pair(sizes: list[int], group: int, classes: int, epoch: int) -> None:
    options = {"images_per_class": group}
    sampler = possible("class-balanced", sizes, group * classes, options=options)
    label = np.repeat(np.arange(len(sizes)), sizes)
    for batch in batches(sampler, epoch):
        counts = Counter(label[batch].tolist())
        lonely = [number for number, count in counts.items() if count == 1]
        assert max(counts.values()) <= group
        # Three images of classes of two cannot all have a partner.
        assert not lonely or (len(lonely) == 1 and len(batch) % 2 and sorted(counts.values())[1:2] in ([], [2]))


@settings(deadline=None)
@given(st.lists(st.integers(4, 9), min_size=3, max_size=12), st.integers(1, 3), st.integers(2, 4))
def test_class_balanced_gives_exactly_m_images_of_each_class(sizes: list[int], classes: int, group: int) -> None:
    sampler = make("class-balanced", sizes, group * classes, options={"images_per_class": group})
    label = np.repeat(np.arange(len(sizes)), sizes)
    for batch in batches(sampler, 1):
        assert set(Counter(label[batch].tolist()).values()) == {group}


def test_class_balanced_draws_each_class_equally_often_and_cycles_through_its_images() -> None:
    sizes = [4, 5, 7, 300, 30, 9, 1]
    sampler = make("class-balanced", sizes, 8, options={"images_per_class": 4})
    label = np.repeat(np.arange(7), sizes)
    drawn: Counter[int] = Counter()
    for epoch in range(20):
        images = [number for batch in batches(sampler, epoch) for number in batch]
        uses = Counter(images)
        for number in range(6):
            members = [uses[image] for image in np.flatnonzero(label == number).tolist()]
            assert max(members) - min(members) <= 1
        drawn.update(label[images].tolist())
    assert drawn[6] == 0
    assert sampler.notes == ("train classes of one image, which give no pair and are never drawn: 1",)
    # 3 batches of two classes are one pass over the six.
    assert max(drawn[number] for number in range(6)) - min(drawn[number] for number in range(6)) <= 4 * 20


@pytest.mark.parametrize("name", ["dataset-balanced", "temperature", "adaptive"])
def test_dataset_samplers_give_pairs_to_the_losses_that_want_them(name: str) -> None:
    sizes = [4, 8, 5, 4, 6, 8, 12, 4, 9]
    sampler = make(name, sizes, 12, loss_images_per_class=4)
    label = np.repeat(np.arange(len(sizes)), sizes)
    for batch in batches(sampler, 0):
        assert min(Counter(label[batch].tolist()).values()) >= 2
    plain = make(name, sizes, 12, loss_images_per_class=4, options={"images_per_class": 1})
    assert any(min(Counter(label[batch].tolist()).values()) == 1 for batch in batches(plain, 0))


def dataset_counts(sampler: BatchSampler, sizes: list[int], epochs: int) -> np.ndarray:
    """Images of each dataset in each batch, [batches, 3]; the classes are dealt to three datasets."""
    label = np.repeat(np.arange(len(sizes)), sizes)
    found = [batch for epoch in range(epochs) for batch in batches(sampler, epoch)]
    return np.asarray([np.bincount(label[batch] % 3, minlength=3) for batch in found])


def test_dataset_balanced_gives_each_dataset_its_third() -> None:
    sizes = [10, 100, 1000]
    even = dataset_counts(make("dataset-balanced", sizes, 12), sizes, 1)
    assert len(even) == 1110 // 12
    assert (even == 4).all()
    odd = dataset_counts(make("dataset-balanced", sizes, 10), sizes, 20)
    assert set(odd.ravel().tolist()) == {3, 4}
    assert odd.mean(0) == pytest.approx([10 / 3] * 3, abs=0.05)  # standard deviation 0.01


def test_a_dataset_smaller_than_its_share_gives_all_it_has() -> None:
    sizes = [2, 30, 100]
    counts = dataset_counts(make("dataset-balanced", sizes, 24), sizes, 3)
    assert (counts == [2, 11, 11]).all()


@pytest.mark.parametrize("temperature", [1, 2.0, 5.0, 1e9, 0.5])
def test_temperature_shares(temperature: float) -> None:
    sizes = [50, 400, 1000]
    options = {"temperature": temperature}
    counts = dataset_counts(make("temperature", sizes, 10, options=options), sizes, 20)
    weights = np.asarray(sizes) ** (1 / temperature)
    assert counts.mean(0) == pytest.approx(10 * weights / weights.sum(), abs=0.06)
    # The shares of one batch keep to it as well.
    assert (np.abs(counts - 10 * weights / weights.sum()) < 1 + 1e-6).all()


def test_one_dataset_is_the_natural_case() -> None:
    for name in ("dataset-balanced", "temperature"):
        numbers = [n for batch in batches(make(name, [5, 6, 8], 4, datasets=1), 2) for n in batch]
        assert len(numbers) == len(set(numbers)) == 16


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-12, 1), st.integers(1, 50)), min_size=1, max_size=9),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_counts_sum_up_and_keep_to_what_there_is(parts: list[tuple[float, int]], part: float, seed: int) -> None:
    shares, limits = (np.asarray(column) for column in zip(*parts, strict=True))
    size = int(part * limits.sum())
    expected = expected_counts(shares, limits, size)
    counts = whole_counts(expected, limits, np.random.default_rng(seed))
    assert expected.sum() == pytest.approx(size)
    assert counts.sum() == size
    assert (counts >= 0).all()
    assert (counts <= limits).all()
    assert (np.abs(counts - expected) < 1 + 1e-5).all()


SLOW = {"d0": 4.0, "d1": 1.0, "d2": 1.0}


def run_adaptive(sampler: BatchSampler, sizes: list[int], first: int, last: int, losses: dict[str, float]) -> list[str]:
    """Train from one step to another: the dataset of each batch, the losses being always the same."""
    label = np.repeat(np.arange(len(sizes)), sizes)
    seen: list[str] = []
    while first + len(seen) < last:
        sampler.start(*divmod(first + len(seen), len(sampler)))
        for batch in sampler:
            (dataset,) = {f"d{label[number] % 3}" for _, number in batch}
            sampler.observe(first + len(seen), losses[dataset])
            seen.append(dataset)
            if first + len(seen) == last:
                break
    return seen


def test_adaptive_gives_more_batches_to_what_is_learnt_slowly() -> None:
    sizes = [40, 40, 40]
    sampler = make("adaptive", sizes, 4, options={"round_steps": 30, "floor": 0.1})
    assert sampler.shares() == pytest.approx({"d0": 1 / 3, "d1": 1 / 3, "d2": 1 / 3})
    first = Counter(run_adaptive(sampler, sizes, 0, 30, SLOW))
    assert first == {"d0": 10, "d1": 10, "d2": 10}
    assert sampler.shares() == pytest.approx({"d0": 0.1 / 3 + 0.6, "d1": 0.1 / 3 + 0.15, "d2": 0.1 / 3 + 0.15})
    second = Counter(run_adaptive(sampler, sizes, 30, 60, SLOW))
    assert second["d0"] == 19  # 0.6333 of 30
    # It has been learnt: the mean of the losses before and now, half and half.
    run_adaptive(sampler, sizes, 60, 90, {"d0": 0.0, "d1": 1.0, "d2": 1.0})
    assert sampler.shares()["d0"] == pytest.approx(0.1 / 3 + 0.9 * 2 / 4)


def test_adaptive_relative_compares_a_dataset_with_itself() -> None:
    sizes = [40, 40, 40]
    sampler = make("adaptive", sizes, 4, options={"relative": True, "floor": 0.0, "smoothing": 0.0, "round_steps": 6})
    run_adaptive(sampler, sizes, 0, 6, {"d0": 100.0, "d1": 1.0, "d2": 0.0})
    assert sampler.shares() == pytest.approx({"d0": 0.5, "d1": 0.5, "d2": 0.0}, abs=1e-9)
    run_adaptive(sampler, sizes, 6, 12, {"d0": 25.0, "d1": 0.75, "d2": 0.0})
    assert sampler.shares() == pytest.approx({"d0": 0.25, "d1": 0.75, "d2": 0.0}, abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 7))
def test_adaptive_goes_on_from_its_state(stop: int, round_steps: int) -> None:
    sizes = [9, 20, 7, 5]

    def fresh() -> BatchSampler:
        return make("adaptive", sizes, 4, seed=1, options={"round_steps": round_steps})

    whole, begun, resumed = fresh(), fresh(), fresh()
    expected = run_adaptive(whole, sizes, 0, 41, SLOW)
    begin = run_adaptive(begun, sizes, 0, stop, SLOW)
    resumed.restore(json.loads(json.dumps(begun.state())))
    assert begin + run_adaptive(resumed, sizes, stop, 41, SLOW) == expected
    assert resumed.state() == whole.state()


def test_adaptive_never_looks_past_its_round() -> None:
    """Workers ask for batches before the losses are known."""
    sampler = make("adaptive", [40, 40, 40], 4, options={"round_steps": 8})
    lengths, step = [], 0
    while step < 2 * len(sampler):  # 30 batches each
        sampler.start(*divmod(step, len(sampler)))
        lengths.append(len(list(sampler)))
        step += lengths[-1]
    assert lengths == [8, 8, 8, 6, 2, 8, 8, 8, 4]


def test_adaptive_counts_a_step_without_images() -> None:
    sampler = make("adaptive", [40, 40, 40], 4, options={"round_steps": 3})
    for step in range(3):
        sampler.observe(step, None)
    assert sampler.shares() == pytest.approx({"d0": 1 / 3, "d1": 1 / 3, "d2": 1 / 3})
    assert isinstance(sampler, AdaptiveSampler)
    assert np.isfinite(sampler.probabilities()).all()


def test_auto_is_what_the_loss_wants() -> None:
    assert sampler_options("auto", {})[0] == "natural"
    name, options = sampler_options("auto", {}, 5)
    assert (name, options.images_per_class) == ("class-balanced", 5)
    assert sampler_options("auto", {"images_per_class": 2}, 5)[1].images_per_class == 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("clas-balanced", {}, "did you mean 'class-balanced'"),
        ("class-balanced", {"images": 4}, "did you mean 'images_per_class'"),
        ("class-balanced", {"images_per_class": 1}, "images_per_class of sampler class-balanced is 1: use 2 or more"),
        ("class-balanced", {"images_per_class": True}, "is True: use a whole number"),
        ("auto", {"images_per_class": 4}, "unknown option 'images_per_class' of sampler natural; it has none"),
        ("temperature", {"temperature": 0}, "temperature is 0: use a number above 0"),
        ("temperature", {"temperature": float("nan")}, "temperature of sampler temperature is nan"),
        # JSON has no word for it, and metrics.json holds the options.
        (
            "temperature",
            {"temperature": float("inf")},
            "sampler temperature is inf: use a finite number",
        ),
        ("temperature", {"temperature": "hot"}, "is 'hot': use a finite number"),
        ("adaptive", {"floor": 1.5}, "floor of sampler adaptive is 1.5"),
        ("adaptive", {"round_steps": 0}, "round_steps of sampler adaptive is 0"),
        ("adaptive", {"smoothing": 1}, "smoothing of sampler adaptive is 1"),
        ("dataset-balanced", {"images_per_class": -1}, "images_per_class of sampler dataset-balanced is -1"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        sampler_options(name, options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        (("class-balanced", [4] * 9, 7), {}, "batch_size is 7: sampler class-balanced takes 2 images of each class; "),
        (("class-balanced", [4] * 9, 7), {}, "use a multiple of 2, for example 6"),
        (("class-balanced", [4, 1, 9], 8), {}, "gives at most 4 of 14 train images; use 4 or less"),
        (("class-balanced", [1, 1, 1], 2), {}, "use --sampling.name natural"),
        (("dataset-balanced", [4, 4, 1], 2), {"loss_images_per_class": 4}, "dataset 'd2' has no train class of two"),
        (("dataset-balanced", [9, 9, 9], 18), {"loss_images_per_class": 4}, "at most 12; use 12 or less"),
    ],
)
def test_impossible_batches(arguments: Any, keywords: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make(*arguments, **keywords)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
