"""Images with several labels: a gallery item is right for a query if it shares one label with it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unimetric.errors import UserError

_BITS = 62
"""Labels in one number of 64 bits; the sign stays free."""


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

    words: Tensor
    """Shape [C, W], int64: a bit for each label."""

    @classmethod
    def of(cls, classes: Sequence[Any]) -> LabelSets | None:
        """Build from the dataset and the labels of every class; None if images have one label each.

        Args:
            classes: Pairs of a dataset and a `LabelSet`, or a label of another type.
        """
        if not classes or not isinstance(classes[0][1], LabelSet):
            return None
        bits: dict[tuple[Hashable, Hashable], int] = {}
        numbers = [[bits.setdefault((dataset, label), len(bits)) for label in labels] for dataset, labels in classes]
        words = torch.zeros(len(classes), 1 + len(bits) // _BITS, dtype=torch.int64)
        for row, labels in enumerate(numbers):
            for number in labels:
                words[row, number // _BITS] |= 1 << number % _BITS
        return cls(words)

    def match(self, one: Tensor, other: Tensor) -> Tensor:
        """Return true where two classes share a label; numbers of classes of shapes that broadcast."""
        shared = torch.zeros_like(one + other, dtype=torch.bool)
        for word in self.words.T:
            shared |= (word[one] & word[other]) != 0
        return shared
