"""Batches with the same number of images of each class, for pair losses."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unimetric.config_values import require_option
from unimetric.data.sampling.base import BatchSampler, Numbers
from unimetric.data.sampling.streams import ClassStream
from unimetric.errors import UserError


@dataclass(frozen=True)
class ClassBalancedOptions:
    """Options of class-balanced batches.

    Args:
        images_per_class: Images of each class in a batch, at least 2; a class that has fewer gives all it has.
    """

    images_per_class: int = 4

    def __post_init__(self) -> None:
        fitting = 2 <= self.images_per_class <= 2**16
        require_option("sampler class-balanced", self, "images_per_class", fitting, "use 2 or more, at most 65536")


class ClassBalancedSampler(BatchSampler):
    """Batches that draw every class equally often, whatever its size, with the same number of images each time.

    Classes are drawn without replacement, pass after pass; see `ClassStream`. Images of small classes recur within an
    epoch, those of large ones wait for another.

    Raises:
        UserError: the batch is not a multiple of ``images_per_class``, or there are too few classes for one.
    """

    options_type = ClassBalancedOptions
    options: ClassBalancedOptions

    def _prepare(self, batch_size: int) -> None:
        group = self.options.images_per_class
        capacity = int(self.labels.pair_capacities(group).sum())
        largest = capacity // group * group
        wants = f"--training.batch_size is {batch_size}: sampler class-balanced takes {group} images of each class"
        if largest == 0:
            raise UserError(
                f"{wants}, and the train classes of two images or more give only {capacity} of a batch: add images, or "
                "use --sampling.name natural"
            )
        if batch_size > capacity:
            count = len(self.labels)
            raise UserError(f"{wants}, which gives at most {capacity} of {count} train images; use {largest} or less")
        if batch_size % group:
            use = max(batch_size // group, 1) * group
            raise UserError(f"{wants}; use a multiple of {group}, for example {use}")

    @property
    def notes(self) -> tuple[str, ...]:
        """Remark on the classes that give no pair."""
        single = int((np.bincount(self.labels.classes) == 1).sum())
        return (f"train classes of one image, which give no pair and are never drawn: {single}",) if single else ()

    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        random = np.random.default_rng((self.seed, epoch))
        numbers = np.arange(len(self.labels), dtype=np.int32)
        stream = ClassStream(numbers, self.labels.classes, self.options.images_per_class, random)
        for _ in range(len(self)):
            yield stream.take(self.batch_size)
