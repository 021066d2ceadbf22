"""Run a matrix of methods, losses, datasets and seeds, and write its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unimetric.config_resolution import typed_config
from unimetric.errors import UserError
from unimetric.files import check_writable
from unimetric.packaged_configs import benchmark_path

if TYPE_CHECKING:
    from unimetric.studies.plan import Plan


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
    from unimetric.studies.execute import execute, listed
    from unimetric.studies.matrix_file import read_matrix
    from unimetric.studies.plan import make_plan
    from unimetric.studies.process import Stopped
    from unimetric.studies.results import write_report
    from unimetric.studies.state import Folder
    from unimetric.studies.tables import print_grid

    path = benchmark_path(matrix)
    if path.name != Path(matrix).name and Path(path.name).is_file():
        log_status(f"note: {matrix} is the packaged benchmark; for the file in this folder, write ./{path.name}")
    plan, folder = make_plan(read_matrix(path), sources or [], typed_config), Folder(out)
    if dry_run:
        for name, state in listed(plan, folder):
            print(f"{state:8} {name}")  # noqa: T201
        return 0
    _check_options(plan)
    check_writable(out)
    failures, stopped = [], False
    try:
        failures = execute(plan, folder, lambda: write_report(plan, folder))
    except Stopped:
        stopped = True
    print_grid(plan.file.title, *write_report(plan, folder, failures))
    log_status(f"The tables are in {out}: table.md, table.csv, table.tex, results.csv, results.json.")
    if stopped:
        log_status("unimetric: stopped, nothing is lost; run the same command again to continue")
        return 130
    for failure in failures:
        log = "" if failure.log is None else f"; see {failure.log}"
        log_status(f"failed: {failure.run}: {failure.reason}{log}")
    return 1 if failures else 0


def _check_options(plan: Plan) -> None:
    # Imports torch.
    from unimetric.training.setup import check_options

    for run in plan.checked_runs():
        try:
            check_options(run.config)
        except UserError as error:  # noqa: PERF203 - each names its entry
            raise UserError(f"{plan.file.path}, {run.entry}: {error}") from error
