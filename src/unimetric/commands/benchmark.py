"""Run a matrix of methods, losses, datasets and seeds, and write its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unimetric.config import run_config
from unimetric.errors import UserError
from unimetric.files import check_writable
from unimetric.studies.execute import Failure, execute, listed
from unimetric.studies.matrix_file import read_matrix
from unimetric.studies.plan import Check, Plan, make_plan
from unimetric.studies.process import Stopped
from unimetric.studies.results import write_report
from unimetric.studies.state import Folder, State
from unimetric.studies.tables import Grid


@dataclass(frozen=True)
class Outcome:
    """Result of a benchmark.

    Args:
        title: The table's title.
        grid: The table of the finished runs.
        notes: The notes below the table.
        failures: The runs that failed.
        stopped: True after Ctrl-C or SIGTERM.
    """

    title: str
    grid: Grid
    notes: list[str]
    failures: list[Failure]
    stopped: bool


def run_benchmark(path: Path, sources: Sequence[str], out: Path, *, check: Check = run_config) -> Outcome:
    """Run everything that is not done; the tables are rewritten after every run.

    Args:
        path: The benchmark's YAML file.
        sources: As in `DataConfig.sources`, instead of the file's.
        out: The folder for runs and tables.
        check: Makes a configuration of options.

    Raises:
        UserError: the file, an entry or a source is bad, or the folder holds runs with other options.
    """
    plan, folder = _prepare(path, sources, out, check)
    _check_options(plan)
    check_writable(out)
    stopped = False
    failures: list[Failure] = []
    try:
        failures = execute(plan, folder, lambda: _write(plan, folder))
    except Stopped:
        stopped = True
    grid, notes = write_report(plan, folder, failures)
    return Outcome(plan.file.title, grid, notes, failures, stopped)


def list_benchmark(
    path: Path, sources: Sequence[str], out: Path, *, check: Check = run_config
) -> list[tuple[str, State]]:
    """List every run of a benchmark with its state; nothing is run or written, and torch is not imported.

    Raises:
        UserError: as for `run_benchmark`, apart from options of methods and losses, which need torch to be checked.
    """
    return listed(*_prepare(path, sources, out, check))


def _prepare(path: Path, sources: Sequence[str], out: Path, check: Check) -> tuple[Plan, Folder]:
    return make_plan(read_matrix(path), sources, check), Folder(out)


def _write(plan: Plan, folder: Folder) -> None:
    write_report(plan, folder)


def _check_options(plan: Plan) -> None:
    # Imports torch.
    from unimetric.training.build import check_options

    for run in plan.checked_runs():
        with _origin(f"{plan.file.path}, {run.entry}"):
            check_options(run.config)


@contextmanager
def _origin(origin: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
