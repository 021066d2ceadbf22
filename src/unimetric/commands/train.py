"""Train a model, or continue a run that was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from unimetric.arguments import Common
from unimetric.config import RunConfig
from unimetric.config_resolution import with_shorthands
from unimetric.errors import MissingOptionError, OptionError
from unimetric.yaml_files import as_yaml

if TYPE_CHECKING:
    from unimetric.formats.run_folder import RunFolder


def train(
    sources: list[str] | None = None,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    strict: bool = False,
    print_config: bool = False,
    options: Annotated[
        RunConfig,
        Common(
            {
                *("data.split", "data.validation_fraction", "data.workers", "data.cache"),
                *("model.backbone", "model.weights", "model.image_size", "model.method", "model.options"),
                *("model.embedding_size", "model.nested_sizes", "loss.name", "loss.options", "sampling.name"),
                *("training.start", "training.epochs", "training.steps", "training.batch_size"),
                *("training.learning_rate", "training.schedule", "training.seed"),
                *("device.accelerator", "device.processes", "device.precision"),
            }
        ),
    ],
) -> int:
    """Train a model on one or more image collections, and measure it on held-out classes.

    Args:
        sources: Class folders, manifests or benchmark datasets. They replace --data.sources.
        out: Run folder to write.
        resume: Run folder to continue, with its own configuration.
        strict: Stop at an unreadable image or a query without a positive. Otherwise it is skipped.
        print_config: Print the configuration as YAML for --config, and stop.
        options: Configuration of the run.
    """
    config = with_shorthands(options, sources, strict)
    if print_config:
        print(as_yaml(config), end="")  # noqa: T201
        return 0
    if out is not None and resume is not None:
        raise OptionError("--out and --resume are both given: --resume writes into the run that it continues")
    place = resume or out
    if place is None:
        raise MissingOptionError("--out is missing: name the run folder to write, for example --out runs/first")
    # After the options are known to be good, because torch takes seconds to load.
    from unimetric.formats.run_folder import RunFolder
    from unimetric.progress import log_status
    from unimetric.training.interrupt import Interrupted
    from unimetric.training.loop import train

    folder = RunFolder(place)
    try:
        metrics = train(config, folder, resume=resume is not None)
    except (Interrupted, KeyboardInterrupt) as stop:
        return stopped(stop, folder)
    if metrics and not metrics["counts"]["queries"]:
        log_status(f"The model is in {folder.model}; no classes were held out to measure it on.")
    elif metrics:
        print_trained(config.model.method, metrics)
        log_status(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
        log_status(f"For a page with the mistakes: unimetric report {folder.path}")
    return 0


def print_trained(method: str, metrics: dict[str, Any]) -> None:
    """Print the table of a trained model, below its frozen backbone where that was measured, and the difference."""
    from unimetric.progress import log_status
    from unimetric.report.tables import print_results
    from unimetric.training.baseline import comparison_lines

    baseline = metrics.get("baseline")
    frozen = [] if baseline is None else [("frozen backbone", baseline["frozen"])]
    print_results([*frozen, (method, metrics)])
    for line, warning in comparison_lines(baseline) if baseline else ():
        log_status(line, style="yellow" if warning else "")


def stopped(stop: BaseException, folder: RunFolder) -> int:
    """Print the command that continues a stopped run; return the exit code; a `KeyboardInterrupt` if there is none."""
    if isinstance(stop, KeyboardInterrupt) and not folder.config.is_file():
        raise stop
    text = f"stopped; {folder.how_to_resume}" if isinstance(stop, KeyboardInterrupt) else str(stop)
    print(f"unimetric: {text}", file=sys.stderr)  # noqa: T201
    return 130
