"""What all samplers share: the epoch and the step decide the batch, and each process takes its slice of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        """The numbers of each dataset's images, rising."""
        datasets = self._dataset_of_class[self.classes]
        order = np.argsort(datasets, kind="stable").astype(np.int32)
        return np.split(order, np.cumsum(self.sizes())[:-1])

    def sizes(self) -> NDArray[np.int64]:
        """Images of each dataset, int64 [K]."""
        return self._per_dataset(np.bincount(self.classes))

    def pair_capacities(self, group: int) -> NDArray[np.int64]:
        """How many images a batch can have of each dataset, int64 [K].

        If no more than ``group`` are of one class, and a class of one image counts for nothing.
        """
        sizes = np.bincount(self.classes)
        return self._per_dataset(np.where(sizes >= 2, np.minimum(sizes, group), 0))

    def _per_dataset(self, per_class: NDArray[np.int64]) -> NDArray[np.int64]:
        datasets = self._dataset_of_class[: len(per_class)]
        sums = np.bincount(datasets, weights=per_class, minlength=len(self.dataset_names))
        return sums[: len(self.dataset_names)].astype(np.int64)


@dataclass(frozen=True)
class Share:
    """Which part of the joint batch a process takes.

    Args:
        rank: Number of this process.
        world_size: Number of processes. Where it does not divide a joint batch, the first ones take one image more.
    """

    rank: int = 0
    world_size: int = 1


class BatchSampler(ABC):
    """Joint batches of image numbers, and this process's slice of each.

    The order is a function of the seed, the epoch and the step (and, for a sampler that `observes`, of the losses that
    it was told), so a resumed run goes on exactly where it stopped, and the processes of a distributed run agree
    without asking each other. No image is in a batch twice.

    Args:
        labels: Class and dataset of each of the N train images.
        batch_size: Images per batch over all processes; at most N are used.
        seed: Of the order.
        share: This process's part.
    """

    observes = False
    """Whether `observe` has to be called after every step."""

    images_recur = True
    """Whether an image may be drawn more than once in an epoch."""

    def __init__(self, labels: TrainLabels, batch_size: int, *, seed: int = 0, share: Share | None = None) -> None:
        self.labels, self.seed, self.share = labels, seed, share or Share()
        # None of it depends on the number of processes: the joint batches are those of a single one.
        self.batch_size = min(batch_size, len(labels))
        self.epoch, self.first_batch = 0, 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the images that are never drawn."""
        return ()

    def __len__(self) -> int:
        """Batches in an epoch, the same for every sampler: what a plain shuffle needs to show every image once.

        The images that do not fill the last batch wait for another epoch.
        """
        return len(self.labels) // self.batch_size

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch of the next iteration, and how many of its batches to leave out."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This process's slices, as (augmentation epoch, image number).

        A pair occurs only once in a run, and the augmentation depends on both numbers. The first is the epoch, or the
        step where images come back within an epoch.
        """
        epoch, first = self.epoch, self.first_batch
        share = slice(self.share.rank, None, self.share.world_size)
        for batch, numbers in zip(count(first), self.joint_batches(epoch, first), strict=False):
            augmentation_epoch = epoch * len(self) + batch if self.images_recur else epoch
            yield [(augmentation_epoch, number) for number in numbers[share].tolist()]

    def joint_batches(self, epoch: int, first_batch: int = 0) -> Iterator[Numbers]:
        """The batches of an epoch, int32 [B] each, over all processes, from ``first_batch`` on."""
        return islice(self._epoch(epoch), first_batch, len(self))

    @abstractmethod
    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        """All joint batches of an epoch; there may be more than are used."""

    def observe(self, step: int, loss: float | None) -> None:  # noqa: B027 - most samplers have nothing to learn
        """Take note of the joint batch's loss at a step, counted from 0; None where no image could be read.

        Every process has to be told the same.
        """

    def state(self) -> dict[str, Any]:
        """What `observe` has gathered, ready for JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - nor to remember
        """Go on from a `state`; an empty one is the beginning."""

    def shares(self) -> dict[str, float]:
        """The share of batches that each dataset is given at present, by name, where that changes during a run."""
        return {}
