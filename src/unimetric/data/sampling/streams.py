"""Endless streams of images; the images of one take are all different."""

from typing import TypeAlias

import numpy as np

from unimetric.data.sampling.base import Numbers


class ImageStream:
    """Stream of all images in random order, then all in another order, and so on."""

    def __init__(self, numbers: Numbers, random: np.random.Generator) -> None:
        self._random = random
        self._order = random.permutation(numbers)
        self._position = 0

    def take(self, count: int) -> Numbers:
        """Return the next images, int32 [count], all different; at most as many as there are."""
        taken = self._order[self._position : self._position + count]
        self._position += len(taken)
        missing = count - len(taken)
        return np.concatenate([taken, self._next_pass(taken, missing)]) if missing else taken

    def _next_pass(self, taken: Numbers, missing: int) -> Numbers:
        """Return the first ``missing`` images of a new order that are none of those taken."""
        order = self._random.permutation(self._order)
        again = np.isin(order, taken)
        first = order[~again][:missing]
        rest = np.concatenate([order[~again][missing:], order[again]])
        self._order = np.concatenate([first, self._random.permutation(rest)])
        self._position = missing
        return first


class ClassStream:
    """Stream of groups of images of one class: every class in random order, then in another order, and so on.

    A group has ``group`` images, or all of them where the class has fewer. A take ends a pass over the classes early
    when too few are left for it, because no class may come twice; over many passes each class comes equally often.
    Within a class, no image comes again before all others have come. Classes of one image give no pair and are left
    out.

    Where small classes leave a gap that no whole group fits, the next class fills it with two images or more, for
    which another group may give up its last. A single image remains only if all groups of a take are pairs and the
    count is odd.
    """

    def __init__(self, numbers: Numbers, classes: Numbers, group: int, random: np.random.Generator) -> None:
        self._random = random
        shuffle = random.permutation(np.arange(len(numbers), dtype=np.int32))
        by_class = shuffle[np.argsort(classes[shuffle], kind="stable")]
        self._by_class = numbers[by_class]
        starts, sizes = _runs(classes[by_class])
        usable = sizes >= 2
        self._starts, self._sizes = starts[usable], sizes[usable]
        self._groups = np.minimum(self._sizes, np.int32(group))
        self._used = np.zeros_like(self._sizes)
        self._next_pass()

    def _next_pass(self) -> None:
        self._order = self._random.permutation(len(self._groups)).astype(np.int32)
        # Images in the groups before each place of the pass.
        self._before = np.concatenate([[0], np.cumsum(self._groups[self._order])])
        self._position = 0

    def take(self, count: int) -> Numbers:
        """Return the next images, int32 [count], all different; at most `TrainLabels.pair_capacities`."""
        if self._before[-1] - self._before[self._position] < count:
            self._next_pass()
        begin = self._position
        end = int(np.searchsorted(self._before, self._before[begin] + count, side="right")) - 1
        chosen = self._order[begin:end]
        counts = self._groups[chosen]
        missing = count - int(self._before[end] - self._before[begin])
        if missing:
            end += 1
            chosen = self._order[begin:end]
            counts = _fill(counts, missing)
        self._position = end
        classes = np.repeat(chosen, counts)
        places = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self._starts[classes] + (self._used[classes] + places) % self._sizes[classes]
        self._used[chosen] = (self._used[chosen] + counts) % self._sizes[chosen]
        images: Numbers = self._by_class[places]
        return images


Stream: TypeAlias = ImageStream | ClassStream


def _fill(counts: Numbers, missing: int) -> Numbers:
    """Return the sizes of the groups with one more that fills the gap, which may take an image from another."""
    larger = np.flatnonzero(counts > 2)
    if missing == 1 and len(larger):
        counts = counts.copy()
        counts[larger[-1]] -= 1
        missing = 2
    return np.append(counts, np.int32(missing))


def _runs(classes: Numbers) -> tuple[Numbers, Numbers]:
    """Return start and length of each run of equal numbers in a sorted array."""
    starts = np.flatnonzero(np.concatenate([[True], classes[1:] != classes[:-1]])) if len(classes) else np.zeros(0)
    sizes = np.diff(np.append(starts, len(classes)))
    return starts.astype(np.int32), sizes.astype(np.int32)
