"""Training log: one JSON object per line, and the same rows in the chosen experiment loggers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unimetric.errors import cause
from unimetric.files import explain_os_error, write_json, write_text
from unimetric.integrations.loggers import LOGGERS, LoggedRun, LoggerName, chosen_loggers
from unimetric.progress import log_status

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

_RowKey = tuple[float, frozenset[str]]


@dataclass
class _OpenLogger:
    name: LoggerName
    logger: Logger
    logged: frozenset[_RowKey]
    """Rows that it has already, from a part of the run that is repeated."""
    failed: bool = False


class TrainingLog:
    """Writer of ``log.jsonl`` and of experiment loggers; a context manager that closes them however the run ends.

    Args:
        folder: The run folder.
        first_step: Rows after this step come from a part of the run that is repeated, and are dropped.
        loggers: Names of `LOGGERS`; ``auto`` is TensorBoard if it is installed.
        options: The run's options, by section.

    Raises:
        UserError: a logger cannot be started, or the file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int = 0,
        loggers: Literal["auto"] | Sequence[LoggerName] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.path = folder / "log.jsonl"
        lines = _lines(self.path)
        kept = [line for line in lines if _step(line) <= first_step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._rows = [json.loads(line) for line in kept]
        repeated = [json.loads(line) for line in lines if first_step < _step(line) < math.inf]
        self._repeated = frozenset(map(_row_key, repeated))
        self._names = folder / "loggers.json"
        self._known_as: dict[str, str] = json.loads(self._names.read_text()) if self._names.is_file() else {}
        flat = {f"{section}.{name}": v for section, values in (options or {}).items() for name, v in values.items()}
        self._loggers: list[_OpenLogger] = []
        for name in chosen_loggers(loggers):
            self._loggers.append(self._open(name, LoggedRun(folder, first_step, flat, self._known_as.get(name))))

    def _open(self, name: LoggerName, run: LoggedRun) -> _OpenLogger:
        kind = LOGGERS[name]
        continues = kind.keeps_rows and run.known_as is not None
        opened = _OpenLogger(name, kind.make(run), self._repeated if continues else frozenset())
        if kind.keeps_rows:
            self._known_as[name] = str(opened.logger.version)
            write_json(self._names, self._known_as)
        if name != "tensorboard" and not continues:
            for row in self._rows:
                self._pass_on(opened, row)
        return opened

    def write(self, step: int, **values: float) -> None:
        """Add a row with the number of steps done and named values."""
        row = {"step": step, **values}
        with explain_os_error(self.path, "write"), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for opened in self._loggers:
            if _row_key(row) not in opened.logged:
                self._pass_on(opened, row)

    def _pass_on(self, opened: _OpenLogger, row: Mapping[str, Any]) -> None:
        try:
            opened.logger.log_metrics({name: value for name, value in row.items() if name != "step"}, row["step"])
        # A tracking server that fails must not end a run of days; `log.jsonl` has every row.
        except Exception as error:
            if not opened.failed:
                log_status(
                    f"note: {opened.name} has not taken the row of step {row['step']} ({type(error).__name__}: "
                    f"{cause(error)}); the run goes on, and log.jsonl has every row",
                    style="yellow",
                )
            opened.failed = True

    def flush(self) -> None:
        """Flush the rows to disk: a checkpoint that survives a power cut must not be ahead of its log."""
        with explain_os_error(self.path, "write"), self.path.open("rb+") as file:
            os.fsync(file.fileno())
        for opened in self._loggers:
            opened.logger.save()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for opened in self._loggers:
            opened.logger.finalize("success" if kind is None else "aborted")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    # A line without an end was cut off while it was written.
    return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def _step(line: str) -> float:
    """Return the step of a row; infinity for a damaged line, such as a power cut leaves."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _row_key(row: Mapping[str, Any]) -> _RowKey:
    """Return the identity of a row: the step, and the names of the values, since validation has a row of its own."""
    return float(row["step"]), frozenset(row)
