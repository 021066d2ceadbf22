"""Images with several labels: a gallery item is right for a query if it shares one label with it."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.errors import UserError


class LabelSet(frozenset[Hashable]):
    """The labels of one image; as text, they are separated by ``|``."""

    def __str__(self) -> str:
        return "|".join(sorted(map(str, self)))


def as_label_sets(labels: Iterable[Hashable], name: str) -> list[LabelSet]:
    """Return every image's labels as a set; one that is no frozenset is the only one.

    Raises:
        UserError: an image has no label.
    """
    sets = [LabelSet(label if isinstance(label, frozenset) else [label]) for label in labels]
    for row, label in enumerate(sets):
        if not label:
            raise UserError(f"{name}: row {row} is an empty set; give each row a label or drop it")
    return sets


@dataclass(frozen=True)
class LabelSets:
    """The labels of C classes, each a set of labels within a dataset."""

    labels: Sequence[Sequence[int]]
    """The numbers of the labels of each class."""
    members: Sequence[npt.NDArray[np.int64]]
    """The classes that have each label."""

    @classmethod
    def of(cls, classes: Sequence[Any]) -> "LabelSets | None":
        """Build from the dataset and the labels of every class; None if images have one label each.

        Args:
            classes: Pairs of a dataset and a `LabelSet`, or a label of another type.
        """
        if not classes or not isinstance(classes[0][1], LabelSet):
            return None
        numbers: dict[tuple[Hashable, Hashable], int] = {}
        labels = [
            [numbers.setdefault((dataset, label), len(numbers)) for label in labels] for dataset, labels in classes
        ]
        members: list[list[int]] = [[] for _ in numbers]
        for place, listed in enumerate(labels):
            for number in listed:
                members[number].append(place)
        return cls(labels, [np.array(places) for places in members])

    def sharing(self, place: int) -> npt.NDArray[np.int64]:
        """Return the classes that share a label with one, itself included; some several times."""
        return np.concatenate([self.members[number] for number in self.labels[place]])

    def match(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return true where a class of ``items`` [Q, N] shares a label with the one of ``queries`` [Q]."""
        asked, listed = queries.numpy(), items.numpy()
        matches = np.empty(listed.shape, dtype=np.bool_)
        is_sharing = np.zeros(len(self.labels), dtype=np.bool_)
        for row, place in enumerate(asked):
            sharing = self.sharing(place)
            is_sharing[sharing] = True
            matches[row] = is_sharing[listed[row]]
            is_sharing[sharing] = False
        return torch.from_numpy(matches)
