"""Comparison of a trained model with its own frozen backbone on the same queries.

The backbone is measured once for the same code, weights, images and size; its numbers are kept in the user's cache.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimetric.data.catalog import Item
from unimetric.data.images import image_file
from unimetric.errors import UserError
from unimetric.evaluation import paired_bootstrap
from unimetric.evaluation.evaluate_split import Measurement
from unimetric.evaluation.per_query import PerQuery
from unimetric.files import cache_folder, make_folder, write_bytes
from unimetric.models.devices import choose_precision
from unimetric.progress import log_status
from unimetric.training.provenance import code_version
from unimetric.training.resolve import Run
from unimetric.training.setup import build_embedder, describe

_KEPT = ("separate", "harmonic", "unified", "unified_gap", "intervals", "counts", "distance", "seconds")
"""The part of a measurement's numbers that a table shows."""


@dataclass(frozen=True)
class Baseline:
    """The frozen backbone's numbers, as in ``metrics.json``, and the result of every query."""

    metrics: dict[str, Any]
    per_query: PerQuery


def compare_with_frozen(run: Run, measurement: Measurement) -> dict[str, Any]:
    """Return the part ``baseline`` of ``metrics.json``, for the measurement of a trained run on ``run.measured``.

    ``frozen``: the frozen backbone's numbers. ``difference``: Recall@1 of the trained model minus the frozen
    backbone's, with a paired 95 % bootstrap interval: for every dataset (``separate``), ``harmonic``, ``unified``. It
    is empty where nothing was measured.
    """
    trained = measurement.per_query
    if trained is None:
        return {}
    path = cache_folder() / "baselines" / f"{_key(run)}.npz"
    baseline = _read(path)
    if baseline is None or _queries(baseline.per_query) != _queries(trained):
        baseline = _measure(run)
        _write(path, baseline)
    separate, unified = (
        paired_bootstrap(trained.by_dataset(protocol), baseline.per_query.by_dataset(protocol))
        for protocol in ("separate", "unified")
    )
    difference = {
        "separate": {name: asdict(value) for name, value in separate.datasets.items()},
        "harmonic": asdict(separate.harmonic),
        "unified": asdict(unified.overall),
    }
    return {"baseline": {"frozen": baseline.metrics, "difference": difference}}


def comparison_lines(baseline: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """The differences in words, from the part ``baseline`` of ``metrics.json``; warnings are marked True."""
    difference = baseline["difference"]
    both = ", ".join(f"{_points(difference[name])} {name}" for name in ("harmonic", "unified"))
    yield f"Training changed Recall@1 by {both} (percentage points; paired 95 % intervals).", False
    for name, values in difference["separate"].items():
        if values["difference"] < 0:
            yield f"warning: dataset {name!r} got worse than with the frozen backbone: {_points(values)}", True


def _points(values: Mapping[str, float]) -> str:
    change, low, high = (f"{100 * values[name]:+.1f}" for name in ("difference", "low", "high"))
    return f"{change} [{low}, {high}]"


def _key(run: Run) -> str:
    """Return a SHA-256 of everything that determines the frozen backbone's numbers."""
    backbone, evaluate = run.embedder.backbone, run.evaluate
    content = [
        # Another version may cut, embed or count otherwise.
        code_version(),
        backbone.fingerprint,
        backbone.image_size,
        run.config.model.pool,
        [run.fabric.device.type, choose_precision(evaluate.precision, run.fabric.device)],
        [evaluate.ks, evaluate.mean_average_precision],
        [run.config.data.cache, run.config.data.reduced_decode],
        [[side, *_facts(items)] for side, items in run.measured.items()],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _facts(items: Sequence[Item]) -> Iterator[list[Any]]:
    for item in items:
        path = image_file(item.path)
        status = path.stat() if path.is_file() else None
        file = None if status is None else [status.st_size, status.st_mtime_ns]
        yield [item.dataset, item.label, item.path.name, file]


def _measure(run: Run) -> Baseline:
    config = replace(run.config, model=run.config.model.frozen())
    embedder = build_embedder(config).to(run.fabric.device)
    if embedder.backbone.fingerprint != run.embedder.backbone.fingerprint:
        raise UserError(
            f"the weights of {config.model.backbone} changed during the training: measure the frozen backbone with "
            "unimetric evaluate --model.method frozen, or add --evaluation.baseline false"
        )
    query, gallery = run.measured["query"], run.measured["gallery"]
    measurement = run.evaluate(embedder, query, gallery, "Measuring the frozen backbone")
    assert measurement.per_query is not None  # noqa: S101  # there are queries
    kept = {name: value for name, value in measurement.metrics.items() if name in _KEPT}
    described = describe(config, embedder, kept, measurement.skipped)
    return Baseline({name: described[name] for name in (*kept, "model")}, measurement.per_query)


def _queries(measured: PerQuery) -> list[tuple[str, ...]]:
    """Return the classes of the queries, in their order."""
    return [tuple(map(str, measured.classes[number])) for number in measured.query_classes]


def _read(path: Path) -> Baseline | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return Baseline(json.loads(str(arrays.pop("metrics"))), PerQuery.from_arrays(arrays))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log_status(f"note: {path} is damaged ({error}); the frozen backbone is measured again", style="yellow")
        return None


def _write(path: Path, baseline: Baseline) -> None:
    file = io.BytesIO()
    arrays: dict[str, Any] = {"metrics": np.array(json.dumps(baseline.metrics)), **baseline.per_query.to_arrays()}
    np.savez_compressed(file, **arrays)
    try:
        make_folder(path.parent)
        write_bytes(path, file.getvalue())
    except UserError as error:
        log_status(f"note: the frozen backbone's numbers are not kept for the next run: {error}", style="yellow")
