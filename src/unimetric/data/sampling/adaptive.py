"""More batches for the datasets that are learnt more slowly."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.config_values import require_option
from unimetric.data.sampling.base import BatchSampler, Numbers
from unimetric.data.sampling.dataset_balanced import DatasetStreams, Shares, require_group, whole_counts
from unimetric.data.sampling.streams import Stream


@dataclass(frozen=True)
class AdaptiveOptions:
    """Options of adaptive sampling.

    Args:
        round_steps: Steps after which the shares of the datasets are recomputed; at most an epoch's are used.
        smoothing: Share of a dataset's loss that is carried over from the rounds before, in [0, 1).
        sharpness: Shares are proportional to the loss to this power; 0 gives every dataset the same share.
        floor: Share of all batches, in [0, 1], that is divided equally, so that no dataset is forgotten.
        relative: Compare losses with the highest of the same dataset's so far instead of with each other's: for
            datasets whose losses differ in scale.
        images_per_class: Images of each class in a batch; 1 draws images regardless of their class, 0 takes the number
            that the loss asks for.
    """

    round_steps: int = 100
    smoothing: float = 0.5
    sharpness: float = 1.0
    floor: float = 0.2
    relative: bool = False
    images_per_class: int = 0

    def __post_init__(self) -> None:
        require_option("sampler adaptive", self, "round_steps", self.round_steps >= 1, "use 1 or more")
        require_option("sampler adaptive", self, "smoothing", 0 <= self.smoothing < 1, "use 0 or more, below 1")
        require_option("sampler adaptive", self, "sharpness", 0 <= self.sharpness <= 100, "use a number from 0 to 100")
        require_option("sampler adaptive", self, "floor", 0 <= self.floor <= 1, "use a number from 0 to 1")
        require_group("adaptive", self)


class AdaptiveSampler(BatchSampler):
    """Batches of one dataset each; a dataset with a higher training loss gets more of them.

    After Ypsilantis et al., *UDON: Universal Dynamic Online distillatioN for generic image representations*, NeurIPS
    2024: every batch is of one domain, all domains begin with the same number, and every so many steps (1,000 in their
    code) a domain's share of the batches becomes proportional to its mean classification loss since the last time.
    Differences: they take the loss of a teacher per domain, here it is the training loss itself, which exists for every
    loss function; the mean is smoothed over rounds, and a floor keeps every dataset in play.

    A round is planned when it begins and cannot change afterwards, and an iteration ends at the end of a round (or of
    the epoch), so that no worker prefetches beyond the known losses: iterate again, after `start`, to go on. Each
    round takes a new random order of each dataset. A dataset smaller than the batch makes smaller batches.

    Raises:
        UserError: a dataset has no pairs, but the loss needs them.
    """

    observes = True
    options_type = AdaptiveOptions
    options: AdaptiveOptions

    def _prepare(self, batch_size: int) -> None:
        self._streams = DatasetStreams(self.labels, self.options.images_per_class)
        self._sizes = np.minimum(self.batch_size, self._streams.capacities)
        self.round_steps = min(self.options.round_steps, len(self))
        self._levels: Shares  # smoothed loss, NaN before the first; all of these [K]
        self._peaks: Shares  # the highest it has been
        self._sums: Shares  # of the losses in this round
        self._counts: Shares  # of the batches in this round
        self._planned: tuple[int, NDArray[np.int64]] | None = None
        self.restore({})

    def probabilities(self) -> Shares:
        """Return the share of batches of each dataset in the present round, [K]."""
        number = len(self._sizes)
        weights = (self._levels / self._peaks if self.options.relative else self._levels) ** self.options.sharpness
        # Unseen datasets are taken to be as bad as the worst.
        unseen = np.isnan(weights)
        weights[unseen] = weights[~unseen].max(initial=0.0)
        total = weights.sum()
        learnt = weights / total if total > 0 else np.full(number, 1 / number)
        return np.asarray(self.options.floor / number + (1 - self.options.floor) * learnt)

    def shares(self) -> dict[str, float]:
        """Return the `probabilities` by name."""
        return dict(zip(self.labels.dataset_names, self.probabilities().tolist(), strict=True))

    def global_batches(self, epoch: int, first_batch: int = 0) -> Iterator[Numbers]:
        """Yield the batches from ``first_batch`` to the end of the round that it lies in, or of the epoch."""
        step = epoch * len(self) + first_batch
        number, done = divmod(step, self.round_steps)
        stop = min(self.round_steps, done + len(self) - first_batch)
        # Only the datasets that come up are shuffled.
        streams: dict[int, Stream] = {}
        for place, dataset in enumerate(self._plan(number)[:stop].tolist()):
            if dataset not in streams:
                streams[dataset] = self._streams.make(dataset, (self.seed, number, dataset + 1))
            images = streams[dataset].take(int(self._sizes[dataset]))
            if place >= done:
                yield images

    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        return self.global_batches(epoch)

    def _plan(self, number: int) -> NDArray[np.int64]:
        """Return the dataset of each batch of a round, [round_steps]."""
        random = np.random.default_rng((self.seed, number))
        limits = np.full(len(self._sizes), self.round_steps)
        counts = whole_counts(self.probabilities() * self.round_steps, limits, random)
        return random.permutation(np.repeat(np.arange(len(counts)), counts))

    def observe(self, step: int, loss: float | None) -> None:
        """Record the loss of a step; with the last one of a round, the shares change."""
        number, place = divmod(step, self.round_steps)
        if self._planned is None or self._planned[0] != number:
            self._planned = number, self._plan(number)
        if loss is not None:
            dataset = self._planned[1][place]
            # Shares are no longer shares where a loss is below zero.
            self._sums[dataset] += max(loss, 0.0)
            self._counts[dataset] += 1
        if place == self.round_steps - 1:
            self._end_round()

    def _end_round(self) -> None:
        seen = self._counts > 0
        means = self._sums[seen] / self._counts[seen]
        before = np.where(np.isnan(self._levels[seen]), means, self._levels[seen])
        self._levels[seen] = self.options.smoothing * before + (1 - self.options.smoothing) * means
        # A loss that has always been zero has nothing to be compared with, and needs no batches.
        self._peaks = np.fmax(self._peaks, np.maximum(self._levels, np.finfo(float).tiny))
        self._sums[:], self._counts[:] = 0, 0

    def state(self) -> dict[str, Any]:
        """Return smoothed losses, their maxima and the sums of the present round by dataset; null for unseen ones."""
        columns = zip(self._levels, self._peaks, self._sums, self._counts, strict=True)
        return {
            name: [None if np.isnan(value) else float(value) for value in column]
            for name, column in zip(self.labels.dataset_names, columns, strict=True)
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`; an empty one is the beginning."""
        rows = [state.get(name, (None, None, 0, 0)) for name in self.labels.dataset_names]
        table = np.asarray([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
        self._levels, self._peaks, self._sums, self._counts = table.T.copy()
        self._planned = None
