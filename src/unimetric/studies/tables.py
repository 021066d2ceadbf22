"""Tables of results as Markdown, CSV, LaTeX and terminal output."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unimetric.files import csv_text
from unimetric.progress import clock_time
from unimetric.studies.collect import Row, Summary
from unimetric.studies.names import MEMORY, PARAMETERS, RATIO, SECONDS

_COSTS = (PARAMETERS, RATIO, SECONDS, MEMORY)
_CORNER = "Recall@1, %"
_HEADINGS = {PARAMETERS: "trained", SECONDS: "time", MEMORY: "memory"}


@dataclass(frozen=True)
class Cell:
    """A cell's text; ``best`` marks the best value of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of text: its header, and for each row a name and cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def make_grid(rows: Sequence[Row], columns: Sequence[str]) -> Grid:
    """Return cells to read: Recall@1 in percent, with the standard deviation over several seeds.

    The best Recall@1 of a column is marked, with all that round to the same text, unless there is only one row. A
    missing value is a dash.
    """
    best = {column: _best(rows, column) for column in columns if column not in _COSTS}
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            summary = row.summary(column)
            text = "–" if summary is None else _text(column, summary)
            is_best = summary is not None and _mean(column, summary) == best.get(column)
            cells.append(Cell(text, is_best and len(rows) > 1))
        lines.append((row.name, tuple(cells)))
    return Grid(tuple(_HEADINGS.get(column, column) for column in columns), tuple(lines))


def _best(rows: Sequence[Row], column: str) -> str | None:
    summaries = [summary for row in rows if (summary := row.summary(column)) is not None]
    return _mean(column, max(summaries, key=lambda summary: summary.mean)) if summaries else None


def _mean(column: str, summary: Summary) -> str:
    return _FORMATS.get(column, _percent)(summary.mean)


def _text(column: str, summary: Summary) -> str:
    if column in _COSTS or summary.deviation is None:
        return _mean(column, summary)
    return f"{_percent(summary.mean)} ± {_percent(summary.deviation)}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(value: float) -> str:
    if value >= 999_950:  # rounds to 1000.0 k
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e3:.1f} k" if value >= 10_000 else f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


_FORMATS: dict[str, Callable[[float], str]] = {
    PARAMETERS: _count,
    RATIO: "{:.1f}".format,
    SECONDS: clock_time,
    MEMORY: _bytes,
}


def markdown(title: str, grid: Grid, notes: Sequence[str]) -> str:
    """Return the table in Markdown, with notes below it."""
    header, *rows = _written(grid, _markdown_escape, "**{}**")
    ruler = ["---", *["---:"] * len(grid.header)]
    lines = [
        f"# {_markdown_escape(title)}",
        "",
        *(f"| {' | '.join(line)} |" for line in (header, ruler, *rows)),
        "",
        *(f"- {_markdown_escape(note)}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def _written(grid: Grid, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    """Return the header and the rows of a table with escaped text."""
    rows = [
        [escape(name), *(bold.format(escape(cell.text)) if cell.best else escape(cell.text) for cell in cells)]
        for name, cells in grid.rows
    ]
    return [[*map(escape, (_CORNER, *grid.header))], *rows]


# An underscore between letters is one in Markdown too.
_MARKDOWN = re.compile(r"[\\|*`<~\[]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")


def _markdown_escape(text: str) -> str:
    return " ".join(_MARKDOWN.sub(r"\\\g<0>", text).split())


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # At the start of a row these would be arguments of the line break before it.
    "[": "{[}",
    "*": "{*}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "÷": r"$\div$",
}


def latex_escape(text: str) -> str:
    r"""Escape text for LaTeX.

    >>> latex_escape("R&D_1 50 %")
    'R\\&D\\_1 50 \\%'
    """
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def latex(title: str, grid: Grid, notes: Sequence[str]) -> str:
    r"""Return the table in LaTeX, for ``\usepackage{booktabs}``; the notes are comments."""
    comments = [f"% {' '.join(note.split())}" for note in (title, *notes)]
    header, *rows = (" & ".join(line) + r" \\" for line in _written(grid, latex_escape, r"\textbf{{{}}}"))
    lines = [
        *comments,
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(grid.header)}}}",
        r"\toprule",
        header,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def rows_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return a line per row with every column's mean and standard deviation in full; Recall@1 is in [0, 1]."""
    header = ["entry", "seeds", "seeds planned"]
    for column in columns:
        header += [f"{_long(column)} mean", f"{_long(column)} std"]
    lines: list[list[Any]] = [header]
    for row in rows:
        line: list[Any] = [row.name, len(row.seeds), len(row.planned)]
        for column in columns:
            summary = row.summary(column)
            line += ["", ""] if summary is None else [summary.mean, summary.deviation]
        lines.append(line)
    return csv_text(lines)


def _long(column: str) -> str:
    return column if column in _COSTS else f"recall@1 {column}"


def print_grid(title: str, grid: Grid, notes: Sequence[str], console: Console | None = None) -> None:
    """Print to standard output, as several tables of some columns each where the terminal is narrow."""
    console = console or Console()
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    # Names are wrapped at three eighths of the width.
    longest = max(map(cell_len, (_CORNER, *(name for name, _ in grid.rows))))
    name_width = min(longest, 3 * console.width // 8)
    widths = [
        max(map(cell_len, (heading, *(cells[index].text for _, cells in grid.rows))))
        for index, heading in enumerate(grid.header)
    ]
    for part in _parts(widths, console.width - name_width):
        console.print(_table(grid, part, name_width))
        console.print()
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Group columns in order, so that each group fits the width with two spaces before each column."""
    parts: list[list[int]] = [[]]
    left = room
    for index, width in enumerate(widths):
        if parts[-1] and width + 2 > left:
            parts.append([])
            left = room
        parts[-1].append(index)
        left -= width + 2
    return parts


def _table(grid: Grid, part: Sequence[int], name_width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    table.add_column(_CORNER, width=name_width, overflow="fold")
    for index in part:
        table.add_column(Text(grid.header[index]), justify="right", no_wrap=True)
    for name, cells in grid.rows:
        # As text, since names may look like rich's markup.
        table.add_row(
            Text(name), *(Text(cells[index].text, style="bold" if cells[index].best else "") for index in part)
        )
    return table


def results_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a line per run with its values by column; empty if a run has no value."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    return csv_text([names, *([line.get(name) for name in names] for line in lines)])
