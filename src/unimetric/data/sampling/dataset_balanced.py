"""Batches that mix the datasets in chosen shares, whatever their sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.config_values import require_option
from unimetric.data.sampling.base import BatchSampler, Numbers, TrainLabels
from unimetric.data.sampling.streams import ClassStream, ImageStream, Stream
from unimetric.errors import UserError

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class DatasetBalancedOptions:
    """Options of dataset-balanced batches.

    Args:
        images_per_class: Images of each class that a batch draws from a dataset; 1 draws images regardless of their
            class, 0 takes the number that the loss asks for.
    """

    images_per_class: int = 0

    def __post_init__(self) -> None:
        require_group("dataset-balanced", self)


@dataclass(frozen=True)
class TemperatureOptions:
    """Options of sampling by temperature.

    Args:
        temperature: T; a dataset of n images gets a share proportional to n^(1/T). 1 is the natural share, a
            large T nearly the same share for each.
        images_per_class: As for ``dataset-balanced``.
    """

    temperature: float = 2.0
    images_per_class: int = 0

    def __post_init__(self) -> None:
        remedy = "use a number above 0; the same share for every dataset is --sampling.name dataset-balanced"
        require_option("sampler temperature", self, "temperature", self.temperature > 0, remedy)
        require_group("temperature", self)


def require_group(sampler: str, options: Any) -> None:
    """Check ``images_per_class``, which the dataset samplers share."""
    fitting = 0 <= options.images_per_class <= 2**16
    remedy = "use 0 (the loss's number), 1 (regardless of classes) or more, at most 65536"
    require_option(f"sampler {sampler}", options, "images_per_class", fitting, remedy)


class DatasetStreams:
    """Streams of the images of each dataset, in groups of ``group`` images of one class, or not for 0 or 1.

    Attributes:
        capacities: The most images that each dataset can give to a batch, int64 [K].

    Raises:
        UserError: groups are wanted, and no class of a dataset has two images.
    """

    def __init__(self, labels: TrainLabels, group: int) -> None:
        self._labels, self._group = labels, group
        self.capacities = labels.pair_capacities(group) if group > 1 else labels.sizes()
        for name, capacity in zip(labels.dataset_names, self.capacities, strict=True):
            if capacity == 0:
                raise UserError(
                    f"dataset {name!r} has no train class of two images, and the sampler takes {group} of each class: "
                    "set option images_per_class of the sampler to 1, or use --sampling.name natural"
                )

    def make(self, dataset: int, seed: tuple[int, ...]) -> Stream:
        """Return a new stream of one dataset's images; the seed alone decides it."""
        random = np.random.default_rng(seed)
        numbers = self._labels.images_by_dataset[dataset]
        if self._group > 1:
            return ClassStream(numbers, self._labels.classes[numbers], self._group, random)
        return ImageStream(numbers, random)


class DatasetBalancedSampler(BatchSampler):
    """Batches of images of all datasets in the same shares, here equal ones, to within one image.

    Each dataset is a stream of its own: none of its images comes again before all others have come, so those of a small
    dataset recur within an epoch. A dataset that is smaller than its share of a batch gives all it has to each, and the
    others fill the rest in proportion.

    Raises:
        UserError: too few images of classes of two images or more for groups.
    """

    options_type: type[Any] = DatasetBalancedOptions
    options: DatasetBalancedOptions | TemperatureOptions

    def _prepare(self, batch_size: int) -> None:
        group = self.options.images_per_class
        self._streams = DatasetStreams(self.labels, group)
        capacity = int(self._streams.capacities.sum())
        if capacity < self.batch_size:
            raise UserError(
                f"--training.batch_size is {batch_size}: {group} images of each train class give at most {capacity}; "
                f"use {capacity} or less"
            )
        self.expected = expected_counts(self._shares(), self._streams.capacities, self.batch_size)

    def _shares(self) -> Shares:
        """Return the share of each dataset, in proportion, [K], positive."""
        return np.ones(len(self.labels.dataset_names))

    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        random = np.random.default_rng((self.seed, epoch))
        # Zeros at the end of a seed change nothing, so the datasets count from 1.
        streams = [self._streams.make(number, (self.seed, epoch, number + 1)) for number in range(len(self.expected))]
        for _ in range(len(self)):
            counts = whole_counts(self.expected, self._streams.capacities, random)
            yield np.concatenate(
                [stream.take(count) for stream, count in zip(streams, counts.tolist(), strict=True) if count]
            )


class TemperatureSampler(DatasetBalancedSampler):
    """Batches in which a dataset of n images has a share in proportion to n^(1/T).

    As in multilingual models: Arivazhagan et al., *Massively Multilingual Neural Machine Translation in the Wild*
    (2019).
    """

    options_type = TemperatureOptions
    options: TemperatureOptions

    def _shares(self) -> Shares:
        exponents = np.log(self.labels.sizes()) / self.options.temperature
        # The largest becomes 1, so that no power overflows at a low temperature.
        return np.asarray(np.maximum(np.exp(exponents - exponents.max()), 1e-12))


def expected_counts(shares: Shares, capacities: NDArray[np.int64], batch_size: int) -> Shares:
    """Return the average images of each dataset in a batch: by share, but none more than it has.

    The rest of a small dataset's share is divided among the others by their shares. ``batch_size`` is at most the sum
    of the capacities, and the result sums to it.
    """
    expected = np.zeros(len(shares))
    full = np.zeros(len(shares), dtype=bool)
    while True:
        rest = batch_size - capacities[full].sum()
        expected[full] = capacities[full]
        if full.all():
            return expected
        expected[~full] = rest * shares[~full] / shares[~full].sum()
        over = ~full & (expected >= capacities)
        if not over.any():
            return expected
        full |= over


def whole_counts(expected: Shares, limits: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Round expected values up or down at random to whole numbers with the same sum and the right mean.

    Systematic sampling: one random offset for all, over the datasets in random order.
    """
    order = random.permutation(len(expected))
    # Sums such as 3 times 8/3 must not fall below the whole number for lack of bits.
    borders = np.floor(np.round(np.cumsum(expected[order]), 6) + random.random())
    counts = np.empty(len(expected), dtype=np.int64)
    counts[order] = np.diff(borders, prepend=0).astype(np.int64)
    too_many = int(np.maximum(counts - limits, 0).sum())
    counts = np.minimum(counts, limits)
    # Rounding can ask a dataset for one more than it has.
    for number in order.tolist():
        extra = min(too_many, int(limits[number] - counts[number]))
        counts[number] += extra
        too_many -= extra
    return counts
