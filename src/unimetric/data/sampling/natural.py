"""A plain shuffle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unimetric.data.sampling.base import BatchSampler, Numbers, Share, TrainLabels


@dataclass(frozen=True)
class NaturalOptions:
    """A plain shuffle has nothing to set."""


class NaturalSampler(BatchSampler):
    """Every image once in an epoch, in random order."""

    images_recur = False

    def __init__(
        self,
        labels: TrainLabels,
        batch_size: int,
        options: NaturalOptions | None = None,
        *,
        seed: int = 0,
        share: Share | None = None,
    ) -> None:
        super().__init__(labels, batch_size, seed=seed, share=share)

    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        order = np.random.default_rng((self.seed, epoch)).permutation(np.arange(len(self.labels), dtype=np.int32))
        for batch in range(len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]
