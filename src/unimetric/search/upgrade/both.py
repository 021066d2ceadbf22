"""Operations of a search index that concern the old vectors as well, while an upgrade keeps both.

With ``--live both``, queries are embedded by both models: a row's score is the average of both cosines, with a weight
that the upgrade measures and records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.models.source import ModelSource
from unimetric.search.conditions import Condition, all_of, is_one_of
from unimetric.search.database_search import NearestRows, VectorSearch
from unimetric.search.items import ItemNotFoundError
from unimetric.search.memory.search import vector_search
from unimetric.search.model import check_embedder, load_embedder
from unimetric.search.scoring import Vectors, best_first, cosines, vectors_of
from unimetric.search.stores import previous_store
from unimetric.search.stores.base import Store
from unimetric.search.upgrade.moving import places_of

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder
    from unimetric.models.ensemble import PairEncoder, QueryModel

_CANDIDATES = 100
"""Rows that each model proposes, at least; 4 for every wanted row, if that is more."""


def weight_of_new(store: Store) -> float | None:
    """Return the weight of the new model's cosines where both models answer, from 0 to 1; None where one does."""
    weight = store.about.get("upgrade", {}).get("weight")
    return None if weight is None else float(weight)


class BothVectors(VectorSearch):
    """A `VectorSearch` by two models: each proposes its nearest rows, and all of these are compared by both.

    Queries are vectors [N, E + D], the new model's and the old one's. A row that the old model has not embedded has the
    new model's cosine for both. ``weight`` is that of the new model's cosines.
    """

    def __init__(self, new: Store, old: Store, weight: float) -> None:
        self._new, self.old, self._weight = new, old, weight
        self._searches = vector_search(new), vector_search(old)
        self.vector_size = new.vector_size + old.vector_size

    def close(self) -> None:
        """Release the vectors, and close the old ones."""
        for search in self._searches:
            search.close()
        self.old.close()

    def prepare(self, columns: Sequence[str]) -> None:
        for search in self._searches:
            search.prepare(["id"])

    def vectors_of(self, ids: Sequence[str], columns: Sequence[str] = ()) -> Vectors:
        """Return the vectors [N, E + D] of some rows; the last D are 0 for those without an old one."""
        new = self._searches[0].vectors_of(ids, ["id"])
        rows = self._new.rows_of(ids, ["id", "content_hash"])
        return np.concatenate([new, self._old_vectors(rows)[0]], axis=1)

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], condition: Condition | None = None, exact: bool = False
    ) -> list[NearestRows]:
        proposed: list[set[str]] = [set() for _ in vectors]
        count = max(1, self._new.count()) if exact else max(_CANDIDATES, 4 * k)
        size = self._new.vector_size
        # The old rows lack columns that were added since.
        same = self._new.metadata_columns.keys() <= self.old.metadata_columns.keys()
        parts = (vectors[:, :size], condition), (vectors[:, size:], condition if same else None)
        for search, (part, where) in zip(self._searches, parts, strict=True):
            # A row that the old model has not embedded is a query of one model.
            asked = np.flatnonzero(part.any(axis=1))
            answers = search.nearest(part[asked], count, ["id"], where, exact) if len(asked) else []
            for place, found in zip(asked, answers, strict=True):
                proposed[place].update(found.columns["id"])
        return [self._scored(query, ids, k, columns, condition) for query, ids in zip(vectors, proposed, strict=True)]

    def _scored(
        self, query: Vectors, ids: set[str], k: int, columns: Sequence[str], condition: Condition | None
    ) -> NearestRows:
        needed = list(dict.fromkeys([*columns, "id", "vector", "content_hash"]))
        rows = self._new.rows_of(sorted(ids), needed)
        if condition is not None and ids:
            # The old rows may have other labels, and either set may have changed since.
            among = is_one_of("id", sorted(ids)) if len(ids) <= 1000 else None
            allowed = self._new.rows(["id"], all_of([condition, among]))["id"]
            rows = rows.filter(pc.is_in(rows["id"], value_set=allowed.combine_chunks()))
        scores = self._scores(query, rows)
        order = best_first(scores, rows["id"].to_pylist(), k)
        best = rows.take(pa.array(order)).select(list(columns))
        return NearestRows(scores[order].tolist(), best.to_pydict())

    def _scores(self, query: Vectors, rows: pa.Table) -> NDArray[np.float64]:
        """Return the average cosine of each row with a query, or with those of which it is the mean."""
        parts = query[: self._new.vector_size], query[self._new.vector_size :]
        lengths = [float(np.linalg.norm(part.astype(np.float64))) for part in parts]
        if not lengths[1]:
            return cosines(parts[0], vectors_of(rows["vector"]))
        # Both vectors of one query have length 1, but for rounding; those of the mean of several queries do not.
        mean = float(np.hypot(lengths[0], lengths[1])) / 2**0.5
        factors = [1.0 if abs(length / mean - 1) < 1e-5 else length / mean for length in lengths]
        new = factors[0] * cosines(parts[0], vectors_of(rows["vector"]))
        vectors, known = self._old_vectors(rows)
        old = np.where(known, factors[1] * cosines(parts[1], vectors), new)
        return np.asarray(self._weight * new + (1 - self._weight) * old)

    def _old_vectors(self, rows: pa.Table) -> tuple[Vectors, NDArray[np.bool_]]:
        """Return the old vectors [N, D] of rows, 0 where there is none of the same content, and where there is one."""
        found = self.old.rows_of(rows["id"].to_pylist(), ["id", "vector", "content_hash"])
        places = places_of(found)
        at = np.array([places.get(row, -1) for row in places_of(rows)], np.intp)
        vectors = np.zeros((len(at), self.old.vector_size), np.float32)
        vectors[at >= 0] = vectors_of(found["vector"])[at[at >= 0]] if len(found) else 0.0
        return vectors, at >= 0


def both_vectors(store: Store) -> BothVectors | None:
    """Return the search by both models of a database that is opened; None where one model answers."""
    weight = weight_of_new(store)
    old = None if weight is None else previous_store(store.place)
    return None if weight is None or old is None else BothVectors(store, old, weight)


def load_query_model(
    store: Store, both: BothVectors | None, source: ModelSource, given: QueryModel | None
) -> QueryModel:
    """Return the model of queries: the database's own, or both during an upgrade where both answer.

    Args:
        store: The database.
        both: Its search by both models, if they answered when it was opened; the upgrade may have ended since.
        source: As for `load_embedder`, and so are errors.
        given: The database's own model, alone or with another one, if it is loaded already.
    """
    own = load_embedder(store, source) if given is None else own_model(given)
    return own if both is None else _pair(own, load_embedder(both.old, ModelSource(device=source.device)))


def check_pair(old: Store, embedder: Embedder) -> None:
    """Refuse a new model that reads other pixels of an image than the old one, so that both cannot embed a query."""
    _pair(embedder, load_embedder(old, ModelSource()))


def _pair(new: Embedder, old: Embedder) -> PairEncoder:
    from unimetric.models.ensemble import PairEncoder

    if new.transform != old.transform:
        raise UserError(
            f"the old model reads images at {old.transform.image_size} px and the new one at "
            f"{new.transform.image_size} px, or they normalise them differently: one picture cannot be embedded by "
            "both; use --live better"
        )
    return PairEncoder(new, old)


def own_model(embedder: QueryModel) -> Embedder:
    """Return the model that embeds rows: of two that embed queries, the new one."""
    from unimetric.models.ensemble import PairEncoder

    return embedder.first if isinstance(embedder, PairEncoder) else embedder


def writing_model(store: Store, load: Callable[[], QueryModel]) -> Embedder:
    """Return the model of queries that embeds rows; one that was extended from the database's own may only search."""
    own = own_model(load())
    if store.about["model"]["fingerprint"] in own.compatible_with:
        check_embedder(store, own)
    return own


def delete_rows(store: Store, condition: Condition | None, ids: Sequence[str] | None) -> int:
    """Delete the rows with these ids, or all, that meet a condition, from both sets; return their number.

    Without a condition, nothing is deleted but by id.
    """
    previous = previous_store(store.place)
    deleted = 0
    # From the old vectors first: what they lack does not come back.
    for each in (store,) if previous is None else (previous, store):
        if ids is not None:
            deleted = each.delete_ids(list(dict.fromkeys(ids)), condition)
        elif condition is not None:
            deleted = each.delete(condition)
    return deleted


def thumbnail_before(store: Store, id: str) -> bytes:
    """Return the thumbnail of a row that was moved, which the old row has, or raise an `ItemNotFoundError`."""
    previous = previous_store(store.place)
    found = [] if previous is None else previous.rows_of([id], ["thumbnail"])["thumbnail"].to_pylist()
    if not found or found[0] is None:
        raise ItemNotFoundError(f"the item {id} has no thumbnail; index it again")
    return bytes(found[0])
