"""Calibrate a database on labelled queries: thresholds and sets for its own rows, instead of those of a test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.formats.vectors import as_unicode
from unimetric.models.source import ModelSource
from unimetric.search.calibration import IDENTICAL
from unimetric.search.items import Refused
from unimetric.search.rows import item_id, stored_path
from unimetric.search.scoring import Vectors, vectors_of
from unimetric.search.stores import open_store
from unimetric.search.stores.base import Store

if TYPE_CHECKING:
    from unimetric.evaluation import Report
    from unimetric.models.embedder import Embedder


@dataclass(frozen=True)
class Calibrated:
    """The result of calibrating a database."""

    queries: int
    """Queries whose class has another image in the database."""
    absent: int
    """Queries whose class has none; they give a score for absent things only."""
    refused: tuple[Refused, ...]
    """Images that cannot be read."""
    opis: tuple[float | None, float | None]
    """The operating-point inconsistency of the queries and rows with one threshold, and as it is now."""
    copies: int
    """Queries that the database has a copy of, under another path; they find themselves."""


def calibrate_database(
    db: str | Path,
    queries: Sequence[Item],
    *,
    per_class: bool = False,
    batch_size: int = 32,
    source: ModelSource | None = None,
) -> Calibrated:
    """Compare labelled queries with every row, and record the thresholds and sets that follow from their scores.

    A query that is in the database itself, by dataset and path, is not compared with its own row.

    Args:
        db: A folder, or an object-storage URI.
        queries: Images with the labels and datasets of the database's rows.
        per_class: Give each class a threshold of its own, from its rows.
        batch_size: Images per forward pass.
        source: The model, if its folder was moved, and the device.

    Raises:
        UserError: no database or model, the database is being upgraded, no query can be read, or none is of a class of
            the database.
    """
    from unimetric.evaluation.evaluate_split import embed_items
    from unimetric.search.model import load_embedder
    from unimetric.search.upgrade.state import upgrade_state

    if upgrade_state(db) is not None:
        raise UserError(f"{db} is being upgraded: finish that with unimetric upgrade, or --rollback; then calibrate")
    if several := next((item for item in queries if item.labels), None):
        raise UserError(f"{several.path} has {len(several.labels)} labels: the queries of a calibration need one each")
    store = open_store(db)
    try:
        _check_datasets(store, queries)
        source = source or ModelSource()
        embedder = load_embedder(store, source)
        embedded = embed_items(embedder, queries, batch_size=batch_size, precision=source.device.precision)
        kept = [
            replace(item, label=as_unicode(item.label), dataset=as_unicode(item.dataset)) for item in embedded.items
        ]
        report, thresholds = _measure(store, embedder, kept, embedded.vectors, per_class)
        # Another process may have changed the rest of the record meanwhile.
        store.write_about({**store.read_about(), "calibration": {**thresholds, "database": True}})
    finally:
        store.close()
    refused = tuple(Refused(str(entry.path), entry.reason) for entry in embedded.skipped)
    absent = report.counts.queries_without_positive
    before = report.unified_thresholds.consistency
    opis = None if before is None else before.opis, thresholds["unified"]["consistency"]["opis"]
    unified = report.per_query.unified
    perfect = 1.0 if report.distance == "cosine" else 0.0
    copies = int((np.fmax(unified.best_positive, unified.best_negative) >= perfect - IDENTICAL).sum())
    return Calibrated(report.counts.queries - absent, absent, refused, opis, copies)


def _check_datasets(store: Store, queries: Sequence[Item]) -> None:
    """Refuse queries of datasets that the database does not have, before they are embedded."""
    present = set(store.rows(["dataset"])["dataset"].to_pylist())
    for name in dict.fromkeys(as_unicode(item.dataset) for item in queries):
        if name not in present:
            listed = ", ".join(sorted(present)) if len(present) <= 20 else f"{len(present)} others"
            raise UserError(
                f"the dataset {name!r} of the calibration is not in {store.place}, which has {listed or 'no rows'}; "
                "name it as the database does, as in NAME=PATH"
            )


def _measure(
    store: Store, embedder: Embedder, queries: Sequence[Item], vectors: Vectors, per_class: bool
) -> tuple[Report, dict[str, Any]]:
    """Return the report of the queries in the rows, and the thresholds to record, as in ``metrics.json``."""
    import torch

    from unimetric.evaluation import evaluate
    from unimetric.evaluation.evaluate_split import distance_options
    from unimetric.evaluation.labels import self_indices_of
    from unimetric.evaluation.metrics import Retrieval
    from unimetric.evaluation.neighbours import compared
    from unimetric.evaluation.rows import MEMORY
    from unimetric.search.class_thresholds import NO_LABEL, with_class_thresholds

    table = store.rows(["id", "dataset", "label", "vector"])
    rows, row_vectors = table.drop_columns(["vector"]).to_pydict(), vectors_of(table["vector"])
    # A row without a label is no query's class.
    labels = [label or NO_LABEL + id for label, id in zip(rows["label"], rows["id"], strict=True)]
    ids = [item_id(item.dataset, stored_path(item.path)) for item in queries]
    options = distance_options(embedder.geometry)
    report = evaluate(
        vectors,
        [item.label for item in queries],
        [item.dataset for item in queries],
        gallery=(row_vectors, labels, rows["dataset"], rows["id"]),
        ids=ids,
        **options,
    )
    if not per_class:
        return report, report.to_dict()["thresholds"]
    names = "queries", "rows"
    query_rows, gallery_rows, distance = compared(vectors, row_vectors, names, memory=MEMORY, **options)
    searched = Retrieval(
        query_rows,
        gallery_rows,
        torch.from_numpy(report.per_query.query_classes),
        torch.from_numpy(report.per_query.gallery_classes),
        self_indices_of(ids, rows["id"], "ids"),
        distance,
    )
    return report, with_class_thresholds(report, searched)
