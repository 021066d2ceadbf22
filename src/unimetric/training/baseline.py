"""Comparison of a trained model with its own frozen backbone on the same queries."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from unimetric.errors import UserError
from unimetric.evaluation import paired_bootstrap
from unimetric.evaluation.evaluate_split import Measurement
from unimetric.training.resolve import Run
from unimetric.training.setup import build_embedder, describe

_KEPT = ("separate", "harmonic", "unified", "unified_gap", "intervals", "counts", "distance", "seconds")
"""The part of a measurement's numbers that a table shows."""


def compare_with_frozen(run: Run, measurement: Measurement) -> dict[str, Any]:
    """Return the part ``baseline`` of ``metrics.json``, for the measurement of a trained run on ``run.measured``.

    ``frozen``: the frozen backbone's numbers. ``difference``: Recall@1 of the trained model minus the frozen
    backbone's, with a paired 95 % bootstrap interval: for every dataset (``separate``), ``harmonic``, ``unified``. It
    is empty where nothing was measured.
    """
    trained = measurement.per_query
    if trained is None:
        return {}
    config = replace(run.config, model=run.config.model.frozen())
    embedder = build_embedder(config).to(run.fabric.device)
    if embedder.backbone.fingerprint != run.embedder.backbone.fingerprint:
        raise UserError(
            f"the weights of {config.model.backbone} changed during the training: measure the frozen backbone with "
            "unimetric evaluate --model.method frozen, or add --evaluation.baseline false"
        )
    query, gallery = run.measured["query"], run.measured["gallery"]
    frozen = run.evaluate(embedder, query, gallery, "Measuring the frozen backbone")
    assert frozen.per_query is not None  # noqa: S101  # there are queries
    kept = {name: value for name, value in frozen.metrics.items() if name in _KEPT}
    described = describe(config, embedder, kept, frozen.skipped)
    separate = paired_bootstrap(trained.by_dataset("separate"), frozen.per_query.by_dataset("separate"))
    unified = paired_bootstrap(trained.by_dataset("unified"), frozen.per_query.by_dataset("unified"))
    difference = {
        "separate": {name: asdict(value) for name, value in separate.datasets.items()},
        "harmonic": asdict(separate.harmonic),
        "unified": asdict(unified.overall),
    }
    return {"baseline": {"frozen": {name: described[name] for name in (*kept, "model")}, "difference": difference}}


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
