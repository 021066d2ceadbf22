"""From labels, dataset names and image ids of any type to row numbers and class numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.errors import UserError

Hashables = Sequence[Hashable] | npt.NDArray[Any] | Tensor
"""One hashable per row: a list, a tuple, a one-dimensional array or tensor."""
_COMPARABLE = {bool, bytes, int, str, type(None)}


def as_hashables(values: Hashables, name: str, rows: int, rows_name: str) -> list[Hashable]:
    """The values as a list, never coerced to a common type.

    Args:
        values: One hashable per row. Arrays and tensors become the Python scalars they hold.
        name: What error messages call the argument.
        rows: How many values there must be.
        rows_name: What error messages call the argument with that many rows.

    Raises:
        UserError: not a sequence, of the wrong shape or length, or with a value that cannot be compared.

    >>> as_hashables([1, "1", ("a", 2)], "labels", 3, "vectors")
    [1, '1', ('a', 2)]
    """
    if isinstance(values, np.ndarray | Tensor):
        if values.ndim != 1:
            raise UserError(f"{name}: shape {list(values.shape)}; give one dimension, one value per row")
        listed: list[Hashable] = values.tolist()
    elif isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise UserError(f"{name}: got {type(values).__name__}; give a list with one value per row")
    else:
        listed = list(values)
    if len(listed) != rows:
        raise UserError(f"{name}: {len(listed)} values for {rows} rows of {rows_name}; give one per row")
    # Most are of types whose values all compare: no need to look at every one.
    if not set(map(type, listed)) <= _COMPARABLE:
        for row, value in enumerate(listed):
            _check_comparable(value, name, row)
    return listed


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
    if isinstance(value, float | complex | np.generic) and value != value:
        raise UserError(f"{name}: row {row} is {value!r}, which equals nothing; give it a value or drop the row")


def number(*columns: Iterable[Hashable]) -> tuple[list[Tensor], list[Hashable]]:
    """Number the distinct values of some columns jointly, in order of first appearance.

    Equality is Python's: 1 and "1" differ, 1 and 1.0 do not.

    Returns:
        For each column its numbers, shape [rows], int64; and the value that each number stands for.

    >>> number(["b", "a", "b"], ["c", "a"])
    ([tensor([0, 1, 0]), tensor([2, 1])], ['b', 'a', 'c'])
    """
    numbers: dict[Hashable, int] = {}
    numbered = [
        torch.tensor([numbers.setdefault(value, len(numbers)) for value in column], dtype=torch.int64)
        for column in columns
    ]
    return numbered, list(numbers)


def rows_by_id(ids: Sequence[Hashable], name: str) -> dict[Hashable, int]:
    """The row that each id names; None names nothing.

    Raises:
        UserError: an id occurs twice.
    """
    rows: dict[Hashable, int] = {}
    for row, identity in enumerate(ids):
        if identity is not None and rows.setdefault(identity, row) != row:
            raise UserError(
                f"{name}: {identity!r} names rows {rows[identity]} and {row}; drop the copy, or give "
                "different images different ids, such as their paths"
            )
    return rows


def own_gallery_rows(query_ids: Sequence[Hashable], gallery_ids: Sequence[Hashable], gallery_name: str) -> Tensor:
    """The gallery row that is the same image as each query, by identity, whatever its similarity.

    Args:
        query_ids: Q ids, None for an image that is surely not in the gallery.
        gallery_ids: G ids, each at most once, None for an image that is surely not a query.
        gallery_name: What error messages call the gallery's ids.

    Returns:
        Gallery rows, shape [Q], int64, -1 where there is none.

    Raises:
        UserError: an id occurs twice in the gallery.

    >>> own_gallery_rows(["a.jpg", "b.jpg", None], ["b.jpg", "c.jpg"], "gallery_ids")
    tensor([-1,  0, -1])
    """
    rows = rows_by_id(gallery_ids, gallery_name)
    own = [-1 if identity is None else rows.get(identity, -1) for identity in query_ids]
    return torch.tensor(own, dtype=torch.int64)
