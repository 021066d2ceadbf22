"""Write the report of a run as one HTML file."""

from pathlib import Path
from typing import Annotated

from unimetric.arguments import NonNegativeInt, PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.errors import OptionError
from unimetric.files import check_writable, make_folder
from unimetric.models.source import ModelSource


def report(
    run: Path,
    *,
    out: Path | None = None,
    mistakes: NonNegativeInt = 6,
    neighbours: PositiveInt = 5,
    points: PositiveInt = 2000,
    model: Path | None = None,
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Write one HTML file: numbers with intervals, figures and the most confident mistakes.

    Args:
        run: Run folder, or folder that unimetric evaluate wrote.
        out: The file; by default RUN/report.html.
        mistakes: Mistakes of each dataset.
        neighbours: Neighbours shown with each mistake.
        points: Points on the map, at most.
        model: Run folder or model folder, if RUN holds no model.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        device: Device and precision.
    """
    from unimetric.progress import log_status
    from unimetric.report.build import ReportOptions, write_report
    from unimetric.report.collect import read_metrics

    read_metrics(run)
    out = check_out(out or run / "report.html", ".html")
    make_folder(out.parent)
    options = ReportOptions(mistakes, neighbours, points)
    for note in write_report(run, out, options, ModelSource(model, weights, device)):
        log_status(f"note: {note}")
    log_status(f"The report is in {out}.")
    return 0


def check_out(out: Path, suffix: str) -> Path:
    """Return the path after a check of its suffix, and that a file can be written there."""
    if out.suffix.lower() not in (suffix, ".htm" if suffix == ".html" else suffix):
        raise OptionError(f"--out is {out}: name a {suffix} file")
    if out.is_dir():
        raise OptionError(f"--out is {out}, a folder: name a {suffix} file")
    check_writable(out.parent)
    return out
