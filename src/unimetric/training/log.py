"""What a run says while it trains: one JSON object a line, and TensorBoard's files where it is installed."""

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
    """Appends rows to ``log.jsonl``; a context manager, so that nothing is left pending however the run ends.

    Args:
        folder: The run folder.
        first_step: Rows of this step and later ones are from a part of the run that was lost, and are dropped.
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
        """Have the rows reach the disk: a checkpoint that outlives a power cut must not be ahead of its log."""
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
    # A line without its end was cut off while being written.
    return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def _step(line: str) -> float:
    """The step of a row; infinity for what is no row, as a power cut leaves it behind."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
