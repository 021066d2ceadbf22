"""Tables of measured numbers for the terminal."""

import itertools
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unimetric.errors import shown
from unimetric.progress import clock_time

_PACKAGED_NOTE = (
    "dinov2-small is a DINOv2 that was fine-tuned for saliency: its frozen numbers are well below the original's."
)

Row = tuple[str, dict[str, Any]]
"""A name and the content of its ``metrics.json``."""


def result_cells(rows: Sequence[Row], *, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return header and cells: per row a name, each dataset's Recall@1, harmonic mean, unified, parameters, time.

    Recall@1 is in percent, with known 95 % ``intervals`` as ``42.4 [40.1, 44.6]``; time is in minutes:seconds; missing
    values are shown as a dash.
    """
    datasets = list(dict.fromkeys(name for _, metrics in rows for name in metrics["separate"]))
    header = ["Recall@1, %", *datasets, "harmonic", "unified", "trained", "time"]
    return header, [[name, *_values(metrics, datasets, intervals)] for name, metrics in rows]


def _values(metrics: dict[str, Any], datasets: Sequence[str], intervals: bool) -> list[str]:
    separate = metrics["separate"]
    ends = metrics.get("intervals") if intervals else None
    return [
        *(
            _recall(separate[dataset], ends and ends["separate"][dataset]) if dataset in separate else "–"
            for dataset in datasets
        ),
        *(_recall(metrics[part], ends and ends[part]) if metrics[part] else "–" for part in ("harmonic", "unified")),
        _count(metrics["model"]["trainable_parameters"]),
        clock_time(metrics.get("training_seconds", 0) + metrics["seconds"]),
    ]


def _recall(values: dict[str, float], ends: dict[str, Sequence[float]] | None) -> str:
    return _with_interval(values["recall@1"], None if ends is None else ends.get("recall@1"))


def _with_interval(value: float, ends: Sequence[float] | None) -> str:
    """Return a share in percent, with its interval if known."""
    return _percent(value) if ends is None else f"{_percent(value)} [{', '.join(map(_percent, ends))}]"


def print_results(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print to standard output the fullest table that fits the terminal.

    A single model has a row for each dataset, with the dataset's loss in the union. Several models have a row each, or
    a column each if the terminal is too narrow. 95 % intervals are printed if there is room for them.
    """
    console = console or Console()
    console.print(_fitting(rows, console))
    for name, metrics in rows:
        console.print(_coverage(name, metrics), markup=False, highlight=False, soft_wrap=True)
    if any(metrics["model"].get("backbone") == "dinov2-small" for _, metrics in rows):
        console.print(_PACKAGED_NOTE, markup=False, highlight=False, soft_wrap=True)


def _fitting(rows: Sequence[Row], console: Console) -> Table:
    """Return the first table that fits, or the last one."""
    known = any("intervals" in metrics for _, metrics in rows)
    alone = len(rows) == 1 and bool(rows[0][1].get("unified_gap"))
    tables = []
    for intervals in (True, False) if known else (False,):
        header, cells = result_cells(rows, intervals=intervals)
        # The first name goes above the table, where it takes no column's width.
        title, header[0] = f"{header[0]} [95 % interval]" if intervals else header[0], ""
        turned = [list(column) for column in zip(header, *cells, strict=True)]
        if alone:
            lost = ["lost in the union", *_gaps(rows[0][1], intervals)]
            turned = [[*line, gap] for line, gap in itertools.zip_longest(turned, lost, fillvalue="")]
        else:
            tables.append(_table(header, cells, title))
        tables.append(_table(turned[0], turned[1:], title))
    wide = console.options.update(max_width=10_000)
    fitting = (table for table in tables if console.measure(table, options=wide).maximum <= console.width)
    return next(fitting, tables[-1])


def _gaps(metrics: dict[str, Any], intervals: bool) -> list[str]:
    """Return each dataset's loss of Recall@1 in the union."""
    gaps, ends = metrics["unified_gap"], metrics.get("intervals") if intervals else None
    return [_with_interval(gaps[name], ends and ends["unified_gap"][name]) for name in metrics["separate"]]


def _table(header: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        header_style="bold",
        box=box.SIMPLE,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left", no_wrap=index > 0)
    for row in cells:
        # As text, because names may look like rich's markup.
        table.add_row(*map(Text, row))
    return table


def _coverage(name: str, metrics: dict[str, Any]) -> str:
    counts = metrics["counts"]
    parts = [f"{name}: {counts['queries']} queries against {counts['gallery']} images"]
    if counts["queries_without_positive"]:
        parts.append(f"{counts['queries_without_positive']} of them without a positive, skipped")
    if counts["skipped_files"]:
        parts.append(f"{counts['skipped_files']} files skipped, named in metrics.json")
    if left_out := counts["datasets_left_out"]:
        parts.append(f"no number for {', '.join(map(shown, left_out))}")
    return ", ".join(parts)


def _percent(value: float) -> str:
    # A sum with 0.0, so that no loss is "-0.0".
    return f"{round(100 * value, 1) + 0.0:.1f}"


def _count(value: int) -> str:
    if value >= 10_000:
        return f"{value / 1e6:.2f} M"
    return str(value)
