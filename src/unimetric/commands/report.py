"""Reports: check where they are to be written, make them, write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimetric.config import DeviceConfig
from unimetric.errors import UserError
from unimetric.files import check_writable, make_folder
from unimetric.report.build import ReportOptions, write_report
from unimetric.report.collect import read_metrics
from unimetric.report.compare import compare_runs, print_comparison, write_comparison
from unimetric.report.inspect import inspect_image, print_inspection, write_inspection


def report_run(
    run: Path,
    out: Path,
    *,
    mistakes: int,
    neighbours: int,
    points: int,
    model: Path | None = None,
    weights: str | None = None,
    device: DeviceConfig | None = None,
) -> list[str]:
    """Write a run's report: see `write_report`, whose notes are returned."""
    options = ReportOptions(mistakes, neighbours, points)
    read_metrics(run)
    _check_file(out, ".html")
    make_folder(out.parent)
    return write_report(run, out, options, model=model, weights=weights, device=device)


def compare_to_file(
    runs: Sequence[Path], out: Path | None, *, weights: str | None = None, device: DeviceConfig | None = None
) -> None:
    """Print the comparison of runs and, with ``out``, write it as HTML: see `compare_runs`."""
    if out is not None:
        _check_file(out, ".html")
    comparison = compare_runs(runs, weights=weights, device=device)
    print_comparison(comparison)
    if out is not None:
        make_folder(out.parent)
        write_comparison(comparison, out)


def inspect_to_file(
    run: Path,
    image: Path,
    out: Path,
    *,
    k: int,
    model: Path | None = None,
    weights: str | None = None,
    device: DeviceConfig | None = None,
) -> None:
    """Print an image's neighbours and prompt weights, and draw them: see `inspect_image`."""
    read_metrics(run)
    _check_file(out, ".png")
    inspection = inspect_image(run, image, k, model=model, weights=weights, device=device)
    print_inspection(inspection)
    make_folder(out.parent)
    write_inspection(inspection, out)


def _check_file(out: Path, suffix: str) -> None:
    if out.suffix.lower() not in (suffix, ".htm" if suffix == ".html" else suffix):
        raise UserError(f"--out is {out}: name a {suffix} file")
    if out.is_dir():
        raise UserError(f"--out is {out}, a folder: name a {suffix} file")
    check_writable(out.parent)
