"""Copies of a picture among the matches of a query, folded into one match by the audit's rule for near copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimetric.search.items import Match
from unimetric.search.scoring import Vectors
from unimetric.search.stores.base import Store

if TYPE_CHECKING:
    from unimetric.data.alignment import Prepared

_NEIGHBOURS = 4
"""Most similar matches that each match is compared with."""

_ALIKE = 0.5
"""Minimum cosine similarity of two matches that are compared."""

_DECISIONS_KEPT = 100_000
"""Decisions on two pictures, at most; all are forgotten then."""

Find = Callable[[Vectors, int], list[list[Match]]]
"""Returns the nearest matches to each vector, at most so many."""


@dataclass(frozen=True)
class _Row:
    """A match with all that a comparison needs."""

    match: Match
    direction: NDArray[np.float32]
    content_hash: str
    thumbnail: bytes | None


class CopyFolder:
    """Folds copies among matches; threads may share it.

    Pixels are compared in the stored thumbnails, and a decision is kept as long as the files are the same.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decisions: dict[tuple[str, str], bool] = {}
        self._picture = lru_cache(maxsize=256)(_picture)

    @property
    def by_default(self) -> bool:
        """True if the database records that copies are folded."""
        return bool(self._store.about.get("group_copies", False))

    def nearest(
        self, find: Find, vectors: Vectors, k: int, group_copies: bool | None, *, together: bool = False
    ) -> list[list[Match]]:
        """Return k matches to each vector [N, E], where copies are grouped no two of them copies of one picture.

        Each has its copies in ``copies``. Up to 4 k matches are looked at, so that many copies may leave fewer than k.
        With ``together`` there is one answer to all vectors, of which ``find`` makes one query.
        """
        if not len(vectors):
            return []
        if not (self.by_default if group_copies is None else group_copies):
            return find(vectors, k)
        return [self._nearest(find, part, k) for part in ([vectors] if together else np.split(vectors, len(vectors)))]

    def _nearest(self, find: Find, vectors: Vectors, k: int) -> list[Match]:
        wanted = k
        while True:
            (matches,) = find(vectors, wanted)
            folded = self.fold(matches)
            if len(folded) >= k or len(matches) < wanted or wanted >= 4 * k:
                return folded[:k]
            wanted = min(4 * k, wanted + 2 * (k - len(folded)))

    def fold(self, matches: Sequence[Match]) -> list[Match]:
        """Return the matches without those that are copies of an earlier one, which has them in ``copies``."""
        rows = self._rows(matches)
        leader = list(range(len(rows)))

        def first_of(place: int) -> int:
            while leader[place] != place:
                place = leader[place]
            return place

        for one, other in _proposed(rows):
            first, second = sorted((first_of(one), first_of(other)))
            if first != second and self._are_copies(rows[one], rows[other]):
                leader[second] = first
        members: dict[int, list[Match]] = {}
        for place, row in enumerate(rows):
            members.setdefault(first_of(place), []).append(row.match)
        return [replace(first, copies=tuple(others)) for first, *others in members.values()]

    def _rows(self, matches: Sequence[Match]) -> list[_Row]:
        columns = ["id", "vector", "content_hash", "thumbnail"]
        stored = {row["id"]: row for row in self._store.rows_of([match.id for match in matches], columns).to_pylist()}
        # A row that was deleted meanwhile is still an answer.
        return [_row(match, stored.get(match.id)) for match in matches]

    def _are_copies(self, one: _Row, other: _Row) -> bool:
        if one.content_hash == other.content_hash:
            return bool(one.content_hash)
        if one.thumbnail is None or other.thumbnail is None:
            return False
        first, second = sorted((one, other), key=lambda row: row.content_hash)
        key = (first.content_hash, second.content_hash)
        known = self._decisions.get(key)
        if known is not None:
            return known
        # scipy takes a while to load, and most searches fold nothing.
        from unimetric.data.near_copies import near_copy

        (one_prepared, one_picture), (other_prepared, other_picture) = (
            self._picture(row.thumbnail or b"") for row in (first, second)
        )
        found = near_copy(one_prepared, other_prepared, lambda: (one_picture, other_picture))
        if len(self._decisions) >= _DECISIONS_KEPT:
            self._decisions.clear()
        decision = self._decisions[key] = found is not None and found.same_colours
        return decision


def _picture(thumbnail: bytes) -> tuple[Prepared, Image.Image]:
    from unimetric.data.alignment import Prepared
    from unimetric.data.near_copies import small_grey

    picture = Image.open(BytesIO(thumbnail)).convert("RGB")
    return Prepared.of(small_grey(picture)), picture


def _row(match: Match, stored: dict[str, Any] | None) -> _Row:
    if stored is None:
        return _Row(match, np.zeros(1, np.float32), "", None)
    vector = np.asarray(stored["vector"], np.float32)
    return _Row(match, vector / max(float(np.linalg.norm(vector)), 1e-12), stored["content_hash"], stored["thumbnail"])


def _proposed(rows: Sequence[_Row]) -> Iterator[tuple[int, int]]:
    """Yield the pairs to compare: equal files, and each match with those most similar to it."""
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        earlier = first.setdefault(row.content_hash, place)
        if earlier != place:
            yield earlier, place
    distinct = [place for place in first.values() if rows[place].thumbnail is not None]
    if len(distinct) < 2:
        return
    directions = np.stack([rows[place].direction for place in distinct])
    similarities = directions @ directions.T
    np.fill_diagonal(similarities, -1.0)
    pairs = set()
    for one, nearest in enumerate(np.argsort(-similarities, axis=1, kind="stable")[:, :_NEIGHBOURS]):
        pairs |= {
            (min(distinct[one], distinct[other]), max(distinct[one], distinct[other]))
            for other in nearest.tolist()
            if similarities[one, other] >= _ALIKE
        }
    yield from sorted(pairs)
