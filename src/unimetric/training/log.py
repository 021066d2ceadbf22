"""Training log: one JSON object per line, and TensorBoard's files if it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from unimetric.files import explain_os_error, write_text


class TrainingLog:
    """Writer of ``log.jsonl``; a context manager, so that nothing is left pending however the run ends.

    Args:
        folder: The run folder.
        first_step: Rows after this step come from a part of the run that is repeated, and are dropped.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.path = folder / "log.jsonl"
        kept = [line for line in _lines(self.path) if _step(line) <= first_step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, **values: float) -> None:
        """Add a row with the number of steps done and named values."""
        with explain_os_error(self.path, "write"), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush the rows to disk: a checkpoint that survives a power cut must not be ahead of its log."""
        with explain_os_error(self.path, "write"), self.path.open("rb+") as file:
            os.fsync(file.fileno())

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()


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
