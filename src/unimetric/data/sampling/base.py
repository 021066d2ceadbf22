"""Base of all samplers: the epoch and the step decide the batch, and each process takes its slice of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.config_values import NoOptions

Numbers = NDArray[np.int32]


class TrainLabels:
    """Class and dataset of each of the N train images, as arrays.

    Args:
        class_numbers: Class of each image, in [0, C).
        class_datasets: Name of the dataset of each of the C classes; None puts all into one.
    """

    def __init__(self, class_numbers: Sequence[int], class_datasets: Sequence[str] | None = None) -> None:
        self.classes: Numbers = np.asarray(class_numbers, dtype=np.int32)
        names = ["all"] * (int(self.classes.max(initial=-1)) + 1) if class_datasets is None else class_datasets
        occurring = np.unique(self.classes).tolist()
        self.dataset_names = sorted({names[number] for number in occurring})
        index = {name: number for number, name in enumerate(self.dataset_names)}
        # A class without images may be of a dataset without images.
        self._dataset_of_class = np.asarray([index.get(name, len(index)) for name in names], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def images_by_dataset(self) -> list[Numbers]:
        """Return the numbers of the images of each dataset, ascending."""
        datasets = self._dataset_of_class[self.classes]
        order = np.argsort(datasets, kind="stable").astype(np.int32)
        return np.split(order, np.cumsum(self.sizes())[:-1])

    def sizes(self) -> NDArray[np.int64]:
        """Return the number of images of each dataset, int64 [K]."""
        return self._per_dataset(np.bincount(self.classes))

    def pair_capacities(self, group: int) -> NDArray[np.int64]:
        """Return the most images of each dataset in a batch, int64 [K].

        At most ``group`` are of one class, and none of a class of one image.
        """
        sizes = np.bincount(self.classes)
        return self._per_dataset(np.where(sizes >= 2, np.minimum(sizes, group), 0))

    def _per_dataset(self, per_class: NDArray[np.int64]) -> NDArray[np.int64]:
        datasets = self._dataset_of_class[: len(per_class)]
        sums = np.bincount(datasets, weights=per_class, minlength=len(self.dataset_names))
        return sums[: len(self.dataset_names)].astype(np.int64)


@dataclass(frozen=True)
class Share:
    """The part of each global batch that a process takes; if it cannot be even, the first ones take one image more."""

    rank: int = 0
    world_size: int = 1


class BatchSampler(ABC):
    """Global batches of image numbers, and this process's slice of each.

    The order is a function of the seed, the epoch and the step (and of the losses, for a sampler that `observes`), so a
    resumed run goes on exactly where it stopped, and the processes of a distributed run agree without communication.
    No image is in a batch twice.

    Args:
        labels: Class and dataset of each of the N train images.
        batch_size: Images per batch over all processes; at most N are used.
        options: The sampler's.
        seed: Seed of the order.
        share: This process's part.
    """

    observes = False
    """`observe` has to be called after every step."""

    images_recur = True
    """An image may be drawn more than once in an epoch."""

    options_type: type[Any] = NoOptions
    """The dataclass of its options."""

    options: Any

    def __init__(
        self, labels: TrainLabels, batch_size: int, options: Any, *, seed: int = 0, share: Share | None = None
    ) -> None:
        self.labels, self.options, self.seed, self.share = labels, options, seed, share or Share()
        # Independent of the number of processes: global batches are those of a single process.
        self.batch_size = min(batch_size, len(labels))
        self.epoch, self.first_batch = 0, 0
        self._prepare(batch_size)

    def _prepare(self, batch_size: int) -> None:  # noqa: B027 - a plain shuffle needs nothing
        """Make what the epochs need; refuse images that cannot make batches of this size."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on images that are never drawn."""
        return ()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same for every sampler: images / batch size, rounded down."""
        return len(self.labels) // self.batch_size

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch of the next iteration, and the number of its batches to skip."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's slices, as (augmentation epoch, image number).

        A pair occurs only once in a run, and the augmentation depends on both numbers. The first is the epoch, or the
        step where images come back within an epoch.
        """
        epoch, first = self.epoch, self.first_batch
        share = slice(self.share.rank, None, self.share.world_size)
        for batch, numbers in zip(count(first), self.global_batches(epoch, first), strict=False):
            augmentation_epoch = epoch * len(self) + batch if self.images_recur else epoch
            yield [(augmentation_epoch, number) for number in numbers[share].tolist()]

    def global_batches(self, epoch: int, first_batch: int = 0) -> Iterator[Numbers]:
        """Yield the batches of an epoch, int32 [B] each, over all processes, from ``first_batch`` on."""
        return islice(self._epoch(epoch), first_batch, len(self))

    @abstractmethod
    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        """Yield all global batches of an epoch; there may be more than are used."""

    def observe(self, step: int, loss: float | None) -> None:  # noqa: B027 - most samplers have nothing to learn
        """Record the loss of the global batch at a step, counted from 0; None where no image could be read.

        Every process has to record the same.
        """

    def state(self) -> dict[str, Any]:
        """Return the state that `observe` changes, ready for JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - most samplers have no state
        """Continue from a `state`; an empty one is the beginning."""

    def shares(self) -> dict[str, float]:
        """Return the present share of batches of each dataset by name, where it changes during a run."""
        return {}
