"""Scores of one embedding over several datasets: separate, harmonic and unified.

The protocol of Kim, Kim and Kwak, Learning Unified Distance Metric Across Diverse Data Distributions with
Parameter-Efficient Transfer Learning, WACV 2025 (arXiv 2309.08944), with classes always compared as
(dataset, label): datasets may use the same label for different things.

Labels are compared within their dataset by Python's ``==``; a `LabelWarning` names those that differ only in case,
white space, Unicode form, or as 0 and "0.0". If one label is a frozenset, every image has a set of labels (others are
the only one of theirs), and a gallery item that shares one with the query is a positive.

A gallery item with the query's own id is excluded from its results. With a gallery but no ids, nothing is excluded; a
`CopyWarning` follows if half of the queries or more have their own vector in it. Without a gallery, every query
searches all the others, with or without ids. Among equally similar gallery items, the one in the lower row comes first.
Tile sizes, memory and device do not change the result.

>>> vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
>>> report = evaluate(vectors, ["cat", "cat", "dog", "dog"], ["pets"] * 4)
>>> report.separate["pets"]
{'recall@1': 0.75, 'map@r': 0.75, 'r-precision': 0.75}
>>> report.counts.queries, report.counts.queries_without_positive
(4, 0)
"""

import numbers
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.errors import UserError, check_kind
from unimetric.evaluation.distances import Distance
from unimetric.evaluation.labels import (
    Hashables,
    LabelSets,
    as_hashables,
    as_label_sets,
    factorize,
    rows_by_id,
    self_indices_of,
    warn_of_twins,
)
from unimetric.evaluation.metrics import Retrieval, average_precisions, judge_both
from unimetric.evaluation.neighbours import compared
from unimetric.evaluation.per_query import PerQuery, QueryResults
from unimetric.evaluation.report import Counts, DatasetCounts, Report, summarise
from unimetric.evaluation.rows import GALLERY_TILE, MEMORY, QUERY_TILE, Rows, Tiling, check_count
from unimetric.evaluation.statistics import RESAMPLES
from unimetric.evaluation.vectors import Vectors


class CopyWarning(UserWarning):
    """Queries that seem to be gallery items themselves, and find themselves."""


_EQUAL = {"cosine": 1 - 1e-6, "euclidean": 0.0, "poincare": -1e-5}
"""The least similarity of equal vectors, by the distance: they are rounded."""

Gallery = tuple[Vectors, Hashables, Hashables] | tuple[Vectors, Hashables, Hashables, Hashables | None]
"""Vectors, labels, datasets and optionally ids of the gallery."""


def evaluate(
    vectors: Vectors,
    labels: Hashables,
    datasets: Hashables,
    gallery: Gallery | None = None,
    ks: Sequence[int] = (1,),
    *,
    ids: Hashables | None = None,
    gallery_ids: Hashables | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    device: str | torch.device = "cpu",
    distance: str = "cosine",
    curvature: float = 0.1,
    mean_average_precision: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    memory: int = MEMORY,
    strict: bool = False,
) -> Report:
    """Score embeddings by retrieval, in each dataset and in the union of all.

    Args:
        vectors: The queries, shape [N, E], floating point: for "cosine" of any length but 0, for "poincare" within the
            ball of radius ``1 / sqrt(curvature)``. A memory-mapped array is never read whole.
        labels: N hashables, none missing (None, NaN, NaT, pandas' NA or blank text), compared within their dataset;
            frozensets for images with several labels.
        datasets: The queries' datasets, N hashables; their `str` names them in the report.
        gallery: The items to search: vectors [G, E], labels, datasets and, optionally, ids; by default the queries.
        ks: The k of each Recall@k, at least 1 each. One larger than the gallery takes all of it.
        ids: The image id of each query, N hashables, such as paths; None for an image that is not in the gallery.
        gallery_ids: The ids of the gallery, each at most once, instead of the fourth member of ``gallery``.
        query_tile: Maximum number of queries compared at once.
        gallery_tile: Gallery items compared at once. See `nearest_neighbours`.
        device: Device of the matrix products: "cpu", "cuda" or one CUDA device.
        distance: "cosine", "euclidean" or "poincare".
        curvature: For "poincare", ``c`` of the space of curvature ``-c``.
        mean_average_precision: Also compute "map", about ten times as long as all the rest.
        resamples: Bootstrap resamples of the intervals, at least 1.
        seed: Seed of the resamples and of the pairs for alignment and uniformity, at least 0.
        memory: Bytes for prepared vectors and lists of neighbours, see `nearest_neighbours`.
        strict: Raise for a query without a positive in the gallery, instead of skipping and counting it.

    Returns:
        The scores, their counts and confidence intervals, and the results of each query.

    Raises:
        UserError: an argument of the wrong type, shape, length or range, vectors that the distance does not accept, an
            id twice in the gallery or of two classes, two datasets with the same `str`, or nothing to measure.
    """
    depths, tiling = _depths(ks), Tiling(query_tile, gallery_tile, device, memory)
    _check_options(resamples, seed, distance, curvature)
    comparison = _compare(vectors, labels, datasets, gallery, ids, gallery_ids, (distance, curvature, memory))
    warn_of_twins(comparison.queries.classes(), comparison.gallery.classes())
    report = _report(comparison, depths, mean_average_precision, tiling, strict, int(resamples), int(seed))
    if gallery is not None and ids is None:
        _warn_of_copies(report.per_query.unified, _EQUAL[distance])
    return report


def _check_options(resamples: Any, seed: Any, distance: Any, curvature: Any) -> None:
    check_count(resamples, "resamples")
    check_count(seed, "seed", 0)
    check_kind("distance", distance, str, "cosine, euclidean or poincare")
    check_kind("curvature", curvature, numbers.Real, "a number")


def _warn_of_copies(results: QueryResults, equal: float) -> None:
    best = np.fmax(results.best_positive, results.best_negative)
    count = int((best >= equal).sum())
    if 2 * count >= len(best):
        warnings.warn(
            f"{count} of {len(best)} queries have the same vector as a gallery item: if they are the same images, give "
            "ids and gallery_ids, so that a query does not find itself, or leave out a gallery that is the queries",
            CopyWarning,
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Comparison:
    """Queries, gallery, and the gallery row of each query itself, or -1."""

    queries: "_Side"
    gallery: "_Side"
    self_indices: Tensor
    distance: Distance


def _compare(
    vectors: Vectors,
    labels: Hashables,
    datasets: Hashables,
    gallery: Gallery | None,
    ids: Hashables | None,
    gallery_ids: Hashables | None,
    distance: tuple[str, float, int],
) -> _Comparison:
    """Check both sides and prepare them."""
    gallery_vectors = None
    if gallery is not None:
        gallery_vectors, gallery_labels, gallery_datasets, gallery_ids = _unpack(gallery, gallery_ids)
    names = "vectors", "gallery vectors"
    query_rows, gallery_rows, comparison = compared(vectors, gallery_vectors, names, *distance)
    queries = searched = _side(query_rows, labels, datasets, "")
    several = _have_several(labels) or (gallery is not None and _have_several(gallery_labels))
    if several:
        queries = searched = queries.with_label_sets("labels")
    if gallery is None:
        self_indices = _same_rows(queries, ids, gallery_ids)
    else:
        searched = _side(gallery_rows, gallery_labels, gallery_datasets, "gallery ")
        if several:
            searched = searched.with_label_sets("gallery labels")
        self_indices = _rows_of_ids(queries, searched, ids, gallery_ids)
    return _Comparison(queries, searched, self_indices, comparison)


@dataclass(frozen=True)
class _Side:
    """The queries, or the gallery, after validation."""

    rows: Rows
    labels: Sequence[Hashable]
    datasets: Sequence[Hashable]

    def classes(self) -> Iterable[tuple[Hashable, Hashable]]:
        return zip(self.datasets, self.labels, strict=True)

    def with_label_sets(self, name: str) -> "_Side":
        return replace(self, labels=as_label_sets(self.labels, name))


def _have_several(labels: Hashables) -> bool:
    return isinstance(labels, Iterable) and any(isinstance(label, frozenset) for label in labels)


def _depths(ks: Any) -> list[int]:
    if isinstance(ks, str | numbers.Number) or not isinstance(ks, Iterable):
        raise UserError(f"ks: {ks!r}; give a list of whole numbers, such as [1, 10]")
    depths = list(ks)
    if not depths:
        raise UserError("ks: empty; give at least one whole number, such as [1]")
    for k in depths:
        check_count(k, "ks")
    return list(dict.fromkeys(int(k) for k in depths))


def _side(rows: Rows, labels: Hashables, datasets: Hashables, prefix: str) -> _Side:
    name = f"{prefix}vectors"
    return _Side(
        rows,
        as_hashables(labels, f"{prefix}labels", len(rows), name, missing_allowed=False),
        as_hashables(datasets, f"{prefix}datasets", len(rows), name, missing_allowed=False),
    )


def _unpack(gallery: Any, ids: Hashables | None) -> tuple[Vectors, Hashables, Hashables, Hashables | None]:
    if not isinstance(gallery, tuple | list) or len(gallery) not in (3, 4):
        what = f"{len(gallery)} members" if isinstance(gallery, tuple | list) else type(gallery).__name__
        raise UserError(f"gallery: got {what}; give (vectors, labels, datasets) or (vectors, labels, datasets, ids)")
    if len(gallery) == 3:
        return (*gallery, ids)
    if ids is not None and gallery[3] is not None:
        raise UserError("gallery_ids: given twice, here and as fourth member of gallery; give them once")
    return (*gallery[:3], ids if gallery[3] is None else gallery[3])


def _same_rows(queries: _Side, ids: Hashables | None, gallery_ids: Hashables | None) -> Tensor:
    if gallery_ids is not None:
        raise UserError("gallery_ids: given without a gallery; give ids only, or a gallery too")
    if ids is not None:
        # Without a gallery, ids add nothing, but one that occurs twice marks a copy that the query would find.
        rows_by_id(as_hashables(ids, "ids", len(queries.rows), "vectors"), "ids")
    return torch.arange(len(queries.rows))


def _rows_of_ids(queries: _Side, gallery: _Side, ids: Hashables | None, gallery_ids: Hashables | None) -> Tensor:
    if ids is None and gallery_ids is None:
        return torch.full((len(queries.rows),), -1)
    if ids is None or gallery_ids is None:
        missing = "ids" if ids is None else "gallery_ids"
        raise UserError(f"{missing}: not given, but the other side has ids; give both, or neither")
    query_ids = as_hashables(ids, "ids", len(queries.rows), "vectors")
    listed_gallery_ids = as_hashables(gallery_ids, "gallery_ids", len(gallery.rows), "gallery vectors")
    self_indices = self_indices_of(query_ids, listed_gallery_ids, "gallery_ids")
    _check_same_classes(queries, gallery, query_ids, self_indices)
    return self_indices


def _check_same_classes(queries: _Side, gallery: _Side, ids: Sequence[Hashable], self_indices: Tensor) -> None:
    """Refuse ids that are mere row numbers of each side: they would exclude gallery items that are not the query."""
    gallery_classes = list(gallery.classes())
    for row, (own, query_class) in enumerate(zip(self_indices.tolist(), queries.classes(), strict=True)):
        if own >= 0 and gallery_classes[own] != query_class:
            raise UserError(
                f"ids: {ids[row]!r} names query row {row}, (dataset, label) {query_class!r}, and gallery row "
                f"{own}, {gallery_classes[own]!r}; give different images different ids, such as their paths"
            )


def _report(
    comparison: _Comparison,
    ks: list[int],
    mean_average_precision: bool,
    tiling: Tiling,
    strict: bool,
    resamples: int,
    seed: int,
) -> Report:
    queries, gallery, distance = comparison.queries, comparison.gallery, comparison.distance
    (query_classes, gallery_classes), classes = factorize(queries.classes(), gallery.classes())
    (query_datasets, gallery_datasets), datasets = factorize(queries.datasets, gallery.datasets)
    names = _dataset_names(datasets)
    sides = queries.rows, gallery.rows, query_classes, gallery_classes
    retrieval = Retrieval(*sides, comparison.self_indices, distance, LabelSets.of(classes))
    has_positive = retrieval.positives() > 0
    _check_positives(has_positive, queries, strict)

    # The union of one dataset is that dataset.
    alone = len(names) == 1
    # Intervals, gaps and thresholds need Recall@1 even when it is not requested.
    separate, unified = judge_both(
        retrieval, None if alone else (query_datasets, gallery_datasets), list(dict.fromkeys([*ks, 1])), tiling
    )
    metrics = [*(f"recall@{k}" for k in ks), "map@r", "r-precision"]
    if mean_average_precision:
        metrics.append("map")
        for results in (separate, unified):
            results.scores["map"] = np.full(len(queries.rows), np.nan)
    parts, counts = {}, {}
    for code, name in enumerate(names):
        rows, gallery_rows = (query_datasets == code), (gallery_datasets == code)
        counts[name] = DatasetCounts(int(rows.sum()), int(gallery_rows.sum()), int((rows & ~has_positive).sum()))
        if bool(has_positive[rows].any()):
            part = rows.nonzero()[:, 0], gallery_rows.nonzero()[:, 0]
            parts[name] = retrieval.restrict(*part)
            if mean_average_precision:
                separate.scores["map"][part[0].numpy()] = average_precisions(parts[name], tiling)
        else:
            _forget(separate, rows.numpy())
    if mean_average_precision and not alone:
        unified.scores["map"] = average_precisions(retrieval, tiling).numpy()
    per_query = PerQuery(
        datasets=tuple(names),
        classes=tuple(dict.fromkeys([*queries.classes(), *gallery.classes()])),
        query_datasets=query_datasets.numpy(),
        gallery_datasets=gallery_datasets.numpy(),
        query_classes=query_classes.numpy(),
        gallery_classes=gallery_classes.numpy(),
        separate=separate,
        unified=unified,
    )
    counted = Counts(
        queries=len(queries.rows),
        gallery=len(gallery.rows),
        queries_without_positive=int((~has_positive).sum()),
        datasets=counts,
        datasets_left_out=tuple(name for name in names if name not in parts),
    )
    return summarise(per_query, counted, metrics, distance, resamples, seed, parts, retrieval)


def _check_positives(has_positive: Tensor, queries: _Side, strict: bool) -> None:
    without = (~has_positive).nonzero()[:, 0]
    if len(without) == len(has_positive):
        raise UserError(
            f"labels: none of the {len(has_positive)} queries has another image of its (dataset, label) in "
            "the gallery; nothing can be scored: give a gallery with the queries' classes"
        )
    if strict and len(without):
        row = int(without[0])
        raise UserError(
            f"labels: {len(without)} of {len(has_positive)} queries have no other image of their (dataset, label) in "
            f"the gallery, the first in row {row}, {(queries.datasets[row], queries.labels[row])!r}; complete the "
            "gallery, drop those queries, or leave out strict"
        )


def _forget(results: QueryResults, rows: npt.NDArray[np.bool_]) -> None:
    """Reset the results of some queries to those of queries that were not scored."""
    for values in (*results.scores.values(), results.best_positive, results.best_negative):
        values[rows] = np.nan
    results.nearest[rows] = -1


def _dataset_names(datasets: Sequence[Hashable]) -> list[str]:
    names: dict[str, Hashable] = {}
    for dataset in datasets:
        if names.setdefault(str(dataset), dataset) is not dataset:
            raise UserError(
                f"datasets: {names[str(dataset)]!r} and {dataset!r} are different datasets, but both would "
                f"be reported as {str(dataset)!r}; rename one"
            )
    return list(names)
