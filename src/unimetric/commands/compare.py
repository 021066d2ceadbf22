"""Compare runs."""

from pathlib import Path

from unimetric.commands.report import check_out
from unimetric.files import make_folder


def compare(runs: list[Path], *, out: Path | None = None) -> int:
    """Put runs side by side, with the probability that a difference from the first is real.

    Args:
        runs: Run folders, or folders that unimetric evaluate wrote.
        out: HTML file to write as well.
    """
    from unimetric.progress import log_status
    from unimetric.report.compare import compare_runs, print_comparison, write_comparison

    if out is not None:
        check_out(out, ".html")
    comparison = compare_runs(runs)
    print_comparison(comparison)
    if out is not None:
        make_folder(out.parent)
        write_comparison(comparison, out)
        log_status(f"The comparison is in {out}.")
    return 0
