"""Training curves in MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are followed."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger

from unimetric.errors import UserError, cause

_MOST = 100
"""Parameters in one request."""
_LONGEST = 500
"""Characters of a parameter's value."""


class MLflowLogger(Logger):
    """Logger of one run, called like its folder, or with ``run_id`` of one to continue.

    The run's options are shown as its parameters. A `UserError` if the tracking server refuses, cannot be reached, or
    does not have the run.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], run_id: str | None = None) -> None:
        # It counts its users by default.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "unimetric")
        try:
            if run_id is None:
                found = self._client.get_experiment_by_name(self._experiment)
                experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
                run = self._client.create_run(str(experiment), run_name=folder.resolve().name)
            else:
                run = self._client.get_run(run_id)
                self._client.update_run(run_id, status="RUNNING")
            self._id = str(run.info.run_id)
            if run_id is None:
                self.log_hyperparams(options)
        except MlflowException as error:
            raise UserError(
                f"--training.loggers mlflow: {cause(error)}; check MLFLOW_TRACKING_URI, or leave mlflow out"
            ) from error

    @property
    def name(self) -> str:
        """The experiment."""
        return self._experiment

    @property
    def version(self) -> str:
        """The identifier of the run."""
        return self._id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the values of one step."""
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        rows = [Metric(_name(name), float(value), now, step or 0) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=rows)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the run's parameters."""
        from mlflow.entities import Param

        rows = [Param(_name(name), str(value)[:_LONGEST]) for name, value in params.items()]
        for start in range(0, len(rows), _MOST):
            self._client.log_batch(self._id, params=rows[start : start + _MOST])

    def finalize(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FINISHED" if status == "success" else "KILLED")


def _name(text: str) -> str:
    """Return a name of the characters that MLflow allows.

    >>> _name("share/a=b")
    'share/a_b'
    """
    return re.sub(r"[^\w\-./ ]", "_", text)
