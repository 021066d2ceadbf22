"""A threshold for each class of a database: offsets of its similarities, and the rates that thresholds then have.

The offsets come from the rows alone, compared with each other; the queries only measure the rates. A row is judged by
its similarity less the offset of its class. The order of the answers stays that of the similarities.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimetric.evaluation import Report
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.opis import class_offsets, class_pairs, inconsistency
from unimetric.evaluation.per_query import QueryResults
from unimetric.evaluation.thresholds import Calibration, calibrate

Floats = NDArray[np.float64]

NO_LABEL = "\0"
"""The first character of the class that a row without a label is given, which no label has."""

_QUERIES, _ROWS = 256, 16_384
"""Queries and rows that are compared at once."""


def _row_offsets(report: Report, rows: Retrieval) -> tuple[Floats, dict[str, dict[str, Any]]]:
    """Return the offsets of the classes of rows that are each searched in all others, [C], and their record.

    The record has, for every dataset, ``labels``: the offset of each; and ``other``: that of rows without a label and
    of classes that are added later.
    """
    classes = [(str(dataset), str(label)) for dataset, label in report.per_query.classes]
    labelled = torch.tensor([not label.startswith(NO_LABEL) for _, label in classes])[rows.gallery_classes]
    kept = labelled.nonzero()[:, 0]
    pairs = class_pairs(rows.restrict(kept, kept))
    members = rows.gallery_classes.bincount(minlength=len(classes)).numpy()[pairs.classes]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(dataset for dataset, _ in classes))}
    groups = [numbers[classes[number][0]] for number in pairs.classes]
    values = class_offsets(pairs, groups, members.tolist())
    record: dict[str, dict[str, Any]] = {name: {"labels": {}, "other": 0.0} for name in numbers}
    for number, value in zip(pairs.classes.tolist(), values.tolist(), strict=True):
        dataset, label = classes[number]
        record[dataset]["labels"][label] = value
    for own in record.values():
        own["other"] = float(np.mean(list(own["labels"].values()))) if own["labels"] else 0.0
    by_class = [record[dataset]["labels"].get(label, record[dataset]["other"]) for dataset, label in classes]
    return np.array(by_class), record


def with_class_thresholds(report: Report, searched: Retrieval) -> dict[str, Any]:
    """Return the thresholds of a report, as in ``metrics.json``, for similarities less the offsets of their classes.

    Sets with a guarantee stay those of the similarities. ``searched`` has the queries and rows of the report.
    """
    per_query = report.per_query
    gallery, classes = searched.gallery, searched.gallery_classes
    rows = Retrieval(gallery, gallery, classes, classes, torch.arange(len(gallery)), searched.distance)
    offsets, record = _row_offsets(report, rows)
    separate = {}
    for name, calibration in report.separate_thresholds.items():
        number = per_query.datasets.index(name)
        chosen = torch.from_numpy(per_query.query_datasets == number).nonzero()[:, 0]
        part = searched.restrict(chosen, torch.from_numpy(per_query.gallery_datasets == number).nonzero()[:, 0])
        results = _some(per_query.separate, chosen.numpy())
        separate[name] = _calibrated(calibration, part, results, offsets).to_dict()
    unified = _calibrated(report.unified_thresholds, searched, per_query.unified, offsets).to_dict()
    return {"unified": unified, "separate": separate, "classes": record}


def _some(results: QueryResults, rows: NDArray[np.int64]) -> QueryResults:
    return QueryResults(
        {name: values[rows] for name, values in results.scores.items()},
        results.nearest[rows],
        results.best_positive[rows],
        results.best_negative[rows],
    )


def _calibrated(calibration: Calibration, searched: Retrieval, results: QueryResults, by_class: Floats) -> Calibration:
    genuine = results.best_positive - by_class[searched.query_classes.numpy()]
    impostors = _best_of_others(searched, torch.from_numpy(by_class))
    pairs = class_pairs(searched)
    consistency = inconsistency(pairs.shifted(by_class[pairs.classes]))
    hits = results.scores["recall@1"]
    return replace(calibrate(genuine, impostors, hits), sets=calibration.sets, consistency=consistency)


def _best_of_others(searched: Retrieval, by_class: Tensor) -> Floats:
    """Return the highest similarity less its offset of each query to a row of another class, [Q]; NaN for none."""
    best = torch.full((len(searched.queries),), -torch.inf, dtype=torch.float64)
    for start in range(0, len(searched.queries), _QUERIES):
        queries = searched.queries[start : start + _QUERIES].double()
        own = searched.query_classes[start : start + _QUERIES]
        for first in range(0, len(searched.gallery), _ROWS):
            rows, classes = searched.gallery[first : first + _ROWS], searched.gallery_classes[first : first + _ROWS]
            values = searched.distance.reported(searched.distance.similarities(queries, rows.double()))
            values = (values - by_class[classes]).masked_fill(own[:, None] == classes, -torch.inf)
            best[start : start + _QUERIES] = torch.maximum(best[start : start + _QUERIES], values.amax(dim=1))
    return torch.where(best == -torch.inf, torch.nan, best).numpy()
