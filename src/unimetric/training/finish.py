"""The end of a run: measure, save the model, and write the numbers with their provenance."""

from typing import Any

from unimetric.data.catalog import ClassIndex, Unusable
from unimetric.errors import UserError
from unimetric.evaluation.budgets import measure_budgets
from unimetric.evaluation.evaluate_split import Measurement
from unimetric.files import write_json
from unimetric.formats.vectors import write_measured
from unimetric.geometry import Sphere
from unimetric.progress import log_status
from unimetric.training.baseline import compare_with_frozen
from unimetric.training.checkpoint import Progress
from unimetric.training.drift import measure_extension
from unimetric.training.extension import make_replay
from unimetric.training.provenance import provenance
from unimetric.training.resolve import Run
from unimetric.training.rotation import rotate
from unimetric.training.setup import describe, unmeasured


def write_results(run: Run, progress: Progress) -> dict[str, Any]:
    """Measure on the configured classes; save model, vectors and numbers; return the content of ``metrics.json``."""
    config, split, folder = run.config, run.split, run.folder
    try:
        _fit_sizes(run)
        measurement = _measure(run)
    except UserError as error:
        # Images that cannot be read, and vectors that are not finite, are found only now, after all of the training.
        run.embedder.save_pretrained(run.folder.model)
        raise UserError(f"{error}; the trained model is saved in {run.folder.model}") from error
    trained, validated = (
        [Unusable(items[number].path, reason) for number, reason in sorted(found.items())]
        for items, found in ((split.train, progress.skipped), (split.validation, progress.skipped_validation))
    )
    skipped = [*split.unusable, *trained, *validated, *measurement.skipped]
    metrics = describe(config, run.embedder, measurement.metrics, skipped)
    metrics["counts"] |= {
        "train_images": len(split.train),
        "train_classes": len(ClassIndex.of(split.train)),
        "skipped_train_files": len(trained),
        "skipped_validation_files": len(validated),
        "skipped_steps": len(progress.skipped_steps),
    }
    if progress.skipped_steps:
        log_status(f"{len(progress.skipped_steps)} of {progress.step} steps were skipped: not finite", style="yellow")
    metrics["training_seconds"] = round(progress.seconds, 1)
    metrics["training_steps"] = progress.step
    cost = run.clock.cost(run.embedder.device, progress.peak_memory)
    metrics |= provenance(config, split, run.embedder.backbone.fingerprint, cost)
    if config.evaluation.budgets and measurement.vectors is not None:
        metrics["budgets"] = measure_budgets(measurement.vectors, run.embedder.sizes, run.embedder.geometry)
    if config.evaluation.baseline:
        metrics |= compare_with_frozen(run, measurement)
    metrics |= measure_extension(config, split, run.embedder, run.extension, run.evaluate)
    if config.data.replay_per_class:
        make_replay(config, split, folder, run.embedder.backbone.image_size, config.data.replay_per_class)
    run.embedder.save_pretrained(folder.model, metrics=metrics)
    if measurement.vectors is not None:
        write_measured(folder.vectors, measurement.vectors)
    write_json(folder.metrics, metrics)
    return metrics


def _fit_sizes(run: Run) -> None:
    """Give a model on the sphere the rotation that shortens its vectors."""
    embedder = run.embedder
    if not isinstance(embedder.geometry, Sphere):
        return
    if run.extension is not None and run.extension.compatible:
        # Short vectors of the old model are searched with those of this one.
        embedder.sizes = run.extension.teacher.sizes
        return
    rotate(embedder, run.split.train, run.evaluate)


def _measure(run: Run) -> Measurement:
    if not run.measured["query"]:
        return unmeasured()
    classes = run.config.evaluation.classes
    return run.evaluate(run.embedder, run.measured["query"], run.measured["gallery"], f"Measuring on {classes} classes")
