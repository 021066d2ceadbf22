"""What report, compare and inspect do with their options."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from unimetric.config import DeviceConfig
from unimetric.runners import model_options, tell


def report(options: Namespace) -> int:
    """Write a run's page."""
    from unimetric.commands.report import report_run

    run = Path(options.run).expanduser()
    out = Path(options.out).expanduser() if options.out else run / "report.html"
    for note in report_run(
        run,
        out,
        mistakes=options.mistakes,
        neighbours=options.neighbours,
        points=options.points,
        **model_options(options),
    ):
        tell(f"note: {note}")
    tell(f"The report is in {out}.")
    return 0


def compare(options: Namespace) -> int:
    """Write the page of two or more runs side by side."""
    from unimetric.commands.report import compare_to_file

    compare_to_file(
        [Path(run).expanduser() for run in options.runs],
        Path(options.out).expanduser() if options.out else None,
        weights=options.weights,
        device=DeviceConfig(**options.device.as_dict()),
    )
    if options.out:
        tell(f"The comparison is in {options.out}.")
    return 0


def inspect(options: Namespace) -> int:
    """Draw an image with what is near it, and what the model looks at."""
    from unimetric.commands.report import inspect_to_file

    run, image = Path(options.run).expanduser(), Path(options.image).expanduser()
    out = Path(options.out).expanduser() if options.out else run / "inspect" / f"{image.stem}.png"
    inspect_to_file(run, image, out, k=options.k, **model_options(options))
    tell(f"The picture is in {out}.")
    return 0
