"""A plain shuffle."""

from collections.abc import Iterator

import numpy as np

from unimetric.data.sampling.base import BatchSampler, Numbers


class NaturalSampler(BatchSampler):
    """Every image once in an epoch, in random order."""

    images_recur = False

    def _epoch(self, epoch: int) -> Iterator[Numbers]:
        order = np.random.default_rng((self.seed, epoch)).permutation(np.arange(len(self.labels), dtype=np.int32))
        for batch in range(len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]
