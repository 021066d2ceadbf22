"""Labels, dataset names and image ids of any type, as row numbers and class numbers.

An image may have several labels: a gallery item is right for a query if it shares one label with it.
"""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.data.labels import clean_label, twin_notes
from unimetric.errors import UserError

Hashables = Sequence[Hashable] | npt.NDArray[Any] | Tensor
"""One hashable per row: a list, a tuple, a one-dimensional array or tensor."""


class LabelWarning(UserWarning):
    """Labels or dataset names that look the same but count as different."""


_COMPARABLE = {bool, bytes, int, str, type(None)}


def as_hashables(
    values: Hashables, name: str, rows: int, rows_name: str, *, missing_allowed: bool = True
) -> list[Hashable]:
    """Return the values as a list, never coerced to a common type.

    Args:
        values: One hashable per row. Arrays, tensors and Arrow columns become the Python values they hold.
        name: The argument's name for error messages.
        rows: The number of values there must be.
        rows_name: The name, for error messages, of the argument with that many rows.
        missing_allowed: Accept None and blank text.

    Raises:
        UserError: not a sequence, of the wrong shape or length, or with a value that is missing or cannot be compared.

    >>> as_hashables([1, "1", ("a", 2)], "labels", 3, "vectors")
    [1, '1', ('a', 2)]
    """
    check_dense(values, name)
    if isinstance(values, np.ndarray | Tensor):
        if values.ndim != 1:
            raise UserError(f"{name}: shape {list(values.shape)}; give one dimension, one value per row")
        listed: list[Hashable] = values.tolist()
    elif isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise UserError(f"{name}: got {type(values).__name__}; give a list with one value per row")
    else:
        # Arrow scalars do not equal the Python values they hold.
        listed = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    if len(listed) != rows:
        raise UserError(f"{name}: {len(listed)} values for {rows} rows of {rows_name}; give one per row")
    # Most are of types whose values all compare: no need to check every one.
    if not set(map(type, listed)) <= _COMPARABLE:
        for row, value in enumerate(listed):
            _check_comparable(value, name, row)
    if not missing_allowed and (missing := [value for value in set(listed) if is_missing(value)]):
        row = min(listed.index(value) for value in missing)
        count = sum(value in missing for value in listed)
        more = f", and {count - 1} more rows have none" if count > 1 else ""
        raise UserError(
            f"{name}: row {row} is {listed[row]!r}, a missing value{more}; give each a value or drop the rows"
        )
    return listed


def is_missing(value: object) -> bool:
    """Return true for None, blank text, and values that do not equal themselves: NaN, NaT, pandas' NA.

    >>> [is_missing(value) for value in (None, " ", float("nan"), 0, "nan")]
    [True, True, True, False, False]
    """
    if value is None or isinstance(value, str):
        return not (value and clean_label(value))  # zero-width characters are blank too
    same = value == value
    return not (isinstance(same, bool | np.bool_) and same)


def check_dense(values: object, name: str) -> None:
    """Refuse masked arrays and sparse, nested, quantised or meta tensors, which lack a number for some place."""
    if isinstance(values, np.ma.MaskedArray):
        kind, remedy = "masked array", "fill or drop the masked values"
    elif not isinstance(values, Tensor):
        return
    elif values.layout != torch.strided or values.is_nested:
        kind, remedy = (
            "nested tensor" if values.is_nested else "sparse tensor",
            "give a dense one, such as from .to_dense()",
        )
    elif values.is_quantized:
        kind, remedy = "quantised tensor", "give .dequantize()"
    elif values.device.type == "meta":
        kind, remedy = "meta tensor", "give one that holds numbers"
    else:
        return
    raise UserError(f"{name}: got a {kind}; {remedy}")


def warn_of_twins(*sides: Iterable[tuple[Hashable, Hashable]]) -> None:
    """Warn of labels of one dataset, or of dataset names, that look the same but count as different: a `LabelWarning`.

    Args:
        sides: (dataset, label) of every query, and of every gallery item.
    """
    labels_of: dict[Hashable, list[Hashable]] = {}
    for dataset, label in {pair: None for side in sides for pair in side}:
        labels_of.setdefault(dataset, []).append(label)
    for note in twin_notes(labels_of):
        warnings.warn(note, LabelWarning, stacklevel=3)


def _check_comparable(value: Any, name: str, row: int) -> None:
    # A tensor has a hash, but by identity: two equal labels would differ.
    if isinstance(value, Tensor):
        raise UserError(f"{name}: row {row} is a torch tensor; give Python values, such as from .tolist()")
    try:
        hash(value)
    except TypeError:
        raise UserError(
            f"{name}: row {row} is the unhashable {value!r}; give strings, numbers or tuples of them"
        ) from None
    if value is not None and not isinstance(value, str) and is_missing(value):
        raise UserError(f"{name}: row {row} is {value!r}, a missing value; give it a value or drop the row")


def factorize(*columns: Iterable[Hashable]) -> tuple[list[Tensor], list[Hashable]]:
    """Number the distinct values of some columns jointly, in order of first appearance.

    Equality is Python's: 1 and "1" differ, 1 and 1.0 do not.

    Returns:
        For each column its numbers, shape [rows], int64; and the value of each number.

    >>> factorize(["b", "a", "b"], ["c", "a"])
    ([tensor([0, 1, 0]), tensor([2, 1])], ['b', 'a', 'c'])
    """
    numbers: dict[Hashable, int] = {}
    numbered = [
        torch.tensor([numbers.setdefault(value, len(numbers)) for value in column], dtype=torch.int64)
        for column in columns
    ]
    return numbered, list(numbers)


def rows_by_id(ids: Sequence[Hashable], name: str) -> dict[Hashable, int]:
    """Return the row of each id, None skipped; a `UserError` if an id occurs twice."""
    rows: dict[Hashable, int] = {}
    for row, identity in enumerate(ids):
        if identity is not None and rows.setdefault(identity, row) != row:
            raise UserError(
                f"{name}: {identity!r} names rows {rows[identity]} and {row}; drop the copy, or give "
                "different images different ids, such as their paths"
            )
    return rows


def self_indices_of(query_ids: Sequence[Hashable], gallery_ids: Sequence[Hashable], gallery_name: str) -> Tensor:
    """Return the gallery row that holds the same image as each query, by id.

    Args:
        query_ids: Q ids, None for an image that is not in the gallery.
        gallery_ids: G ids, each at most once, None for an image that is not a query.
        gallery_name: The name of the gallery's ids in error messages.

    Returns:
        Gallery rows, shape [Q], int64, -1 where there is none.

    Raises:
        UserError: an id occurs twice in the gallery.

    >>> self_indices_of(["a.jpg", "b.jpg", None], ["b.jpg", "c.jpg"], "gallery_ids")
    tensor([-1,  0, -1])
    """
    rows = rows_by_id(gallery_ids, gallery_name)
    own = [-1 if identity is None else rows.get(identity, -1) for identity in query_ids]
    return torch.tensor(own, dtype=torch.int64)


class LabelSet(frozenset[Hashable]):
    """The labels of one image; as text, they are separated by ``|``."""

    def __str__(self) -> str:
        return "|".join(sorted(map(str, self)))


def as_label_sets(labels: Iterable[Hashable], name: str) -> list[LabelSet]:
    """Return every image's labels as a set; a label that is not a frozenset is a set of one."""
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
