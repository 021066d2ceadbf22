"""Run a matrix of methods, losses, datasets and seeds, and write its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unimetric.config import run_config
from unimetric.config_resolution import typed_config
from unimetric.errors import UserError
from unimetric.files import check_writable
from unimetric.packaged_configs import benchmark_path

if TYPE_CHECKING:
    from unimetric.studies.execute import Failure
    from unimetric.studies.plan import Check, Plan
    from unimetric.studies.state import Folder, State
    from unimetric.studies.tables import Grid


def benchmark(matrix: str, sources: list[str] | None = None, *, out: Path, dry_run: bool = False) -> int:
    """Run a matrix of methods, losses, datasets and seeds, and write its tables.

    Finished runs are skipped, and stopped ones continue. Packaged matrices are listed in the documentation.

    Args:
        matrix: YAML file of the benchmark, or the name of a packaged one.
        sources: Class folders, manifests or benchmark datasets. They replace the file's.
        out: Folder for runs and tables.
        dry_run: List the runs and their states, and run nothing.
    """
    from unimetric.progress import log_status
    from unimetric.studies.tables import print_grid

    path = benchmark_path(matrix)
    if path.name != Path(matrix).name and Path(path.name).is_file():
        log_status(f"note: {matrix} is the packaged benchmark; for the file in this folder, write ./{path.name}")
    if dry_run:
        for name, state in list_benchmark(path, sources or [], out, check=typed_config):
            print(f"{state:8} {name}")  # noqa: T201
        return 0
    outcome = run_benchmark(path, sources or [], out, check=typed_config)
    print_grid(outcome.title, outcome.grid, outcome.notes)
    log_status(f"The tables are in {out}: table.md, table.csv, table.tex, results.csv, results.json.")
    if outcome.stopped:
        log_status("unimetric: stopped, nothing is lost; run the same command again to continue")
        return 130
    for failure in outcome.failures:
        log = "" if failure.log is None else f"; see {failure.log}"
        log_status(f"failed: {failure.run}: {failure.reason}{log}")
    return 1 if outcome.failures else 0


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
    from unimetric.studies.execute import execute
    from unimetric.studies.process import Stopped
    from unimetric.studies.results import write_report

    plan, folder = _prepare(path, sources, out, check)

    def after_each() -> None:
        write_report(plan, folder)

    _check_options(plan)
    check_writable(out)
    stopped = False
    failures: list[Failure] = []
    try:
        failures = execute(plan, folder, after_each)
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
    from unimetric.studies.execute import listed

    return listed(*_prepare(path, sources, out, check))


def _prepare(path: Path, sources: Sequence[str], out: Path, check: Check) -> tuple[Plan, Folder]:
    from unimetric.studies.matrix_file import read_matrix
    from unimetric.studies.plan import make_plan
    from unimetric.studies.state import Folder

    return make_plan(read_matrix(path), sources, check), Folder(out)


def _check_options(plan: Plan) -> None:
    # Imports torch.
    from unimetric.training.setup import check_options

    for run in plan.checked_runs():
        with _origin(f"{plan.file.path}, {run.entry}"):
            check_options(run.config)


@contextmanager
def _origin(origin: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
