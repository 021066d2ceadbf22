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
from unimetric.studies.plan import Check, Plan, make_plan
from unimetric.studies.process import Stopped
from unimetric.studies.report import write_report
from unimetric.studies.state import Folder, State
from unimetric.studies.tables import Grid


@dataclass(frozen=True)
class Outcome:
    """How a benchmark ended.

    Args:
        title: Of the table.
        grid: The table, as far as it goes.
        notes: What to know about it.
        failures: The runs that failed.
        stopped: Whether it was interrupted.
    """

    title: str
    grid: Grid
    notes: list[str]
    failures: list[Failure]
    stopped: bool


def run_benchmark(path: Path, sources: Sequence[str], out: Path, *, check: Check = run_config) -> Outcome:
    """Run what is not done yet; the tables are rewritten after every run.

    Args:
        path: The benchmark's YAML file.
        sources: As in `DataConfig.sources`, instead of the file's.
        out: The folder for runs and tables.
        check: How options become a configuration.

    Raises:
        UserError: the file, an entry or a source is bad, or the folder holds runs of other options.
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
    """Every run of a benchmark with its state; nothing is run or written, and torch is not imported.

    Raises:
        UserError: as for `run_benchmark`, apart from options of methods and losses, which need torch to be checked.
    """
    return listed(*_prepare(path, sources, out, check))


def _prepare(path: Path, sources: Sequence[str], out: Path, check: Check) -> tuple[Plan, Folder]:
    return make_plan(path, sources, check=check), Folder(out)


def _write(plan: Plan, folder: Folder) -> None:
    write_report(plan, folder)


def _check_options(plan: Plan) -> None:
    # Here, because it imports torch.
    from unimetric.training.build import check_options

    for entry in plan.entries:
        for model in entry.models:
            for candidate in plan.chooser(entry, model)[0].candidates or ({},):
                with _naming(f"{plan.file.path}, {entry.name}"):
                    check_options(plan.run(entry, model, entry.seeds[0], candidate).config)


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
