"""Training curves in Weights & Biases; WANDB_MODE, WANDB_PROJECT and its other variables are followed."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger

from unimetric.errors import UserError, cause
from unimetric.progress import log_status


class WandbLogger(Logger):
    """Logger of one run, or with ``run_id`` of one to continue; its files lie in ``RUN/wandb``.

    The run's options are shown as its configuration. A `UserError` if not logged in, or the server cannot be reached.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], run_id: str | None = None) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "unimetric"),
                name=os.environ.get("WANDB_NAME", folder.resolve().name),
                id=run_id or uuid.uuid4().hex[:8],
                resume="allow",
                dir=folder,
                config=dict(options),
                settings=wandb.Settings(console="off", silent=True),
            )
        # Its own base class covers login, network and settings.
        except wandb.Error as error:
            raise UserError(
                f"--training.loggers wandb: {cause(error)}; log in with wandb login, or set WANDB_MODE=offline"
            ) from error
        if not self._run.offline:
            log_status(f"Weights & Biases: {self._run.url}")

    @property
    def name(self) -> str:
        """The project."""
        return str(self._run.project)

    @property
    def version(self) -> str:
        """The identifier of the run."""
        return str(self._run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the values of one step."""
        self._run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the run's configuration."""
        self._run.config.update(dict(params), allow_val_change=True)

    def finalize(self, status: str) -> None:
        """Write what is pending and end the run."""
        self._run.finish(exit_code=0 if status == "success" else 1)
