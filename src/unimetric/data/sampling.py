"""Which images go into which batch: an order that is new in every epoch and depends on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class BatchSampler:
    """Batches of image numbers, the same for everybody who knows the seed, the epoch and the step.

    Nothing here remembers anything, so a resumed run goes on exactly where it stopped, and every process of a
    distributed run takes its own slice of each batch without asking the others.

    Args:
        class_numbers: Class of each of the N train images.
        batch_size: Images per batch over all processes; at most N, and as many for each process, are used.
        images_per_class: Images of each class in a batch (for pair losses), or None for a plain shuffle.
        seed: Of the order.
        rank: Number of this process.
        world_size: Number of processes, at most N; it has to divide ``batch_size``.
    """

    def __init__(
        self,
        class_numbers: Sequence[int],
        batch_size: int,
        *,
        images_per_class: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.class_numbers = np.asarray(class_numbers)
        self.batch_size = min(batch_size, len(self.class_numbers) // world_size * world_size)
        self.images_per_class = images_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch, self.first_batch = 0, 0

    def __len__(self) -> int:
        """Batches in an epoch; the images that do not fill the last one wait for another epoch."""
        return len(self.class_numbers) // self.batch_size

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch of the next iteration, and how many of its batches to leave out."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (epoch, image number); the epoch goes along because augmentation depends on it."""
        order = self._order(np.random.default_rng((self.seed, self.epoch)))
        share = slice(self.rank, None, self.world_size)
        for batch in range(self.first_batch, len(self)):
            numbers = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(number)) for number in numbers[share]]

    def _order(self, random: np.random.Generator) -> np.ndarray:
        if self.images_per_class is None:
            return random.permutation(len(self.class_numbers))
        return _grouped_order(self.class_numbers, self.images_per_class, random)


def _grouped_order(class_numbers: np.ndarray, group: int, random: np.random.Generator) -> np.ndarray:
    """Every image once, in random groups of ``group`` images of one class; a class's rest forms a smaller group.

    Small groups go to the end, where the last, incomplete batch is left out.
    """
    shuffled = random.permutation(len(class_numbers))
    by_class = shuffled[np.argsort(class_numbers[shuffled], kind="stable")]
    borders = np.flatnonzero(np.diff(class_numbers[by_class])) + 1
    groups = [
        members[start : start + group]
        for members in np.split(by_class, borders)
        for start in range(0, len(members), group)
    ]
    whole = [members for members in groups if len(members) == group]
    rest = [members for members in groups if len(members) < group]
    ordered = [whole[i] for i in random.permutation(len(whole))] + [rest[i] for i in random.permutation(len(rest))]
    return np.concatenate(ordered)
