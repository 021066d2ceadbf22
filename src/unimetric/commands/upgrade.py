"""Change a search database to another model while it serves."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from unimetric.arguments import Group, PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.config_values import refuse_without_effect
from unimetric.errors import MissingOptionError, OptionError, UserError, escaped
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from unimetric.search.upgrade.embedding import UpgradeOptions

_THRESHOLD = Group("threshold of a match")


def upgrade(
    db: str,
    *,
    model: Path | None = None,
    rollback: bool = False,
    live: Literal["better", "now", "both"] = "better",
    size: PositiveInt | None = None,
    sample: PositiveInt = 1000,
    missing: Literal["stop", "map", "thumbnail", "delete"] = "stop",
    batch_size: PositiveInt = 32,
    commit_rows: PositiveInt = 1024,
    weights: str | None = None,
    metrics: Annotated[str | None, _THRESHOLD] = None,
    false_match_rate: Annotated[float | None, _THRESHOLD] = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Change a search database to another model while it is searched and served.

    The images are embedded anew; until that is done, the old vectors are moved into the new model's space. A command
    that was stopped continues.

    Args:
        db: Database that unimetric index made.
        model: The new model: run folder, model folder or name of a backbone.
        rollback: Undo an upgrade that is not finished.
        live: Switch when the new model is better, or now; or use both. ``both`` embeds every query with both
            models until the end.
        size: Numbers of a vector; by default as many as now, or all. Whole vectors become all numbers of the new model.
        sample: Images that both models embed before they are compared.
        missing: Rows whose image is gone: stop, map, thumbnail or delete. ``stop`` stops before the end, ``map`` keeps
            the moved vectors, ``thumbnail`` embeds the thumbnails, ``delete`` deletes the rows.
        batch_size: Images per forward pass.
        commit_rows: Rows to write at once, at most 10 s apart.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        metrics: The metrics.json with the new thresholds; by default that of MODEL.
        false_match_rate: Call an answer a match from the threshold of this false-match rate. It is 0.1, 0.01, 0.001 or
            0.0001; without it, the confidence of an answer decides.
        device: Device and precision.
    """
    if rollback and model is not None:
        raise OptionError("--rollback takes no --model: leave one of the two out")
    if not rollback and model is None:
        raise MissingOptionError("--model is missing: name the new model, or undo an upgrade with --rollback")
    try:
        from unimetric.search.upgrade.embedding import UpgradeOptions
        from unimetric.search.upgrade.rollback import clean
        from unimetric.search.upgrade.run import upgrade_lock
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error

    options = UpgradeOptions(sample, live, missing, batch_size, commit_rows, device.precision)
    if rollback:
        others = {"weights": weights, "size": size, "metrics": metrics, "false_match_rate": false_match_rate}
        _refuse_beside_rollback(options, others)
    with upgrade_lock(db):
        clean(db)
        if model is None:
            return _roll_back(db, device)
        return _run(db, ModelSource(model, weights, device, size), options, metrics, false_match_rate)


def _refuse_beside_rollback(options: UpgradeOptions, others: dict[str, Any]) -> None:
    given = {**asdict(options), **others, "precision": None}
    refuse_without_effect(given, asdict(type(options)()), "with --rollback")


def _roll_back(db: str, device: DeviceConfig) -> int:
    from unimetric.progress import log_status
    from unimetric.search.upgrade.rollback import roll_back

    carried = roll_back(db, device, log_status)
    log_status(f"The old model answers again; {carried} rows that were written meanwhile were carried over.")
    return 0


def _run(
    db: str, source: ModelSource, options: UpgradeOptions, metrics: str | None, false_match_rate: float | None
) -> int:
    from unimetric.progress import console, log_status, progress_bar
    from unimetric.search.upgrade.run import start_upgrade

    try:
        with progress_bar() as bar:
            task = bar.add_task("Upgrading", total=None, note="")

            def progressed(done: int, rows: int) -> None:
                bar.update(task, completed=done, total=rows)
                if not console.is_terminal:
                    log_status(f"{done} of {rows} rows are embedded")

            started = start_upgrade(
                db,
                source,
                metrics=metrics,
                false_match_rate=false_match_rate,
                options=options,
                log=lambda line: log_status(escaped(line)),
                on_progress=progressed,
            )
            result = started.run(replace(source, size=started.stores.new.about["model"]["shortened_to"]).load())
    except KeyboardInterrupt:
        log_status("unimetric: stopped, what was written is kept; run the same command again to continue")
        return 130
    if result.is_finished:
        log_status(f"{result.rows} rows are in {db}, {result.embedded} of them embedded by {source.path}.")
        return 0
    log_status(
        f"{result.rows - result.embedded} of {result.rows} rows have no readable image and are found by moved vectors: "
        "put the images back and run the command again, or finish with --missing map, thumbnail or delete"
    )
    return 1
