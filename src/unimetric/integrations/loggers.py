"""Experiment loggers by name, each a `Logger` of Lightning Fabric: TensorBoard, CSV, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unimetric.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is made for.

    Attributes:
        folder: The run folder.
        first_step: Rows after this step will be written again.
        options: Every option of the run, by dotted name.
        known_as: The name that the logger's own service gave this run before it was resumed; None for a new one.
    """

    folder: Path
    first_step: int
    options: Mapping[str, Any]
    known_as: str | None = None


@dataclass(frozen=True)
class LoggerKind:
    """One kind of logger.

    Attributes:
        make: Returns the logger of a run.
        package: Module that it needs.
        folder: Its part of the run folder, if it has one.
        keeps_rows: Rows that were logged stay, so a resumed run must not log them again. `make` then returns a logger
            whose ``version`` is the service's own name of the run.
    """

    make: Callable[[LoggedRun], Logger]
    package: str | None = None
    folder: str | None = None
    keeps_rows: bool = False


def _tensorboard(run: LoggedRun) -> Logger:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    # Its readers drop older rows from this step on.
    return TensorBoardLogger(run.folder, name="tensorboard", version="", purge_step=run.first_step + 1)


def _csv(run: LoggedRun) -> Logger:
    from lightning_fabric.loggers.csv_logs import CSVLogger

    # It is written anew from the rows of the log.
    shutil.rmtree(run.folder / "csv", ignore_errors=True)
    return CSVLogger(run.folder, name="csv", version="", flush_logs_every_n_steps=1)


def _wandb(run: LoggedRun) -> Logger:
    from unimetric.integrations.wandb_logger import WandbLogger

    return WandbLogger(run.folder, run.options, run.known_as)


def _mlflow(run: LoggedRun) -> Logger:
    from unimetric.integrations.mlflow_logger import MLflowLogger

    return MLflowLogger(run.folder, run.options, run.known_as)


LOGGERS: dict[LoggerName, LoggerKind] = {
    "tensorboard": LoggerKind(_tensorboard, package="tensorboard", folder="tensorboard"),
    "csv": LoggerKind(_csv, folder="csv"),
    "wandb": LoggerKind(_wandb, package="wandb", folder="wandb", keeps_rows=True),
    "mlflow": LoggerKind(_mlflow, package="mlflow", keeps_rows=True),
}


def chosen_loggers(names: Literal["auto"] | Sequence[LoggerName]) -> list[LoggerName]:
    """Return the loggers that a configuration names, all installed; ``auto`` is TensorBoard if it is installed."""
    if names == "auto":
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    for name in names:
        package = LOGGERS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"--training.loggers {name} needs the package {package}: pip install 'unimetric[{name}]'")
    return list(dict.fromkeys(names))
