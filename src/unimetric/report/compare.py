"""Comparison of runs, with the probability that a difference is real: terminal output and page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from unimetric import __version__
from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.evaluation import paired_bootstrap
from unimetric.evaluation.per_query import Protocol
from unimetric.evaluation.statistics import Difference, Floats
from unimetric.evaluation.thresholds import Calibration
from unimetric.files import repeated, write_text
from unimetric.html_page import render, short
from unimetric.report.analysis import Analysis, Score, analyse
from unimetric.report.collect import Measured, read_metrics, read_run
from unimetric.report.figures import interval_figure
from unimetric.report.words import flattened, percent, spread

PROTOCOLS: tuple[Protocol, ...] = ("separate", "unified")

SIGNIFICANT = 0.975
"""Probabilities from this, or up to 1 minus this, are significant in a two-sided test at 5 %."""


@dataclass(frozen=True)
class Cell:
    """One Recall@1 of a run, and for all runs but the first its difference from that one."""

    score: Score
    difference: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs on the same queries. ``lines`` has a row for each dataset, then "harmonic" and "unified"."""

    analyses: tuple[Analysis, ...]
    names: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]
    queries: int
    opis: tuple[tuple[str, tuple[float | None, ...]], ...]
    """The operating-point inconsistency of every dataset's own gallery, then of the union, for each run."""

    @property
    def runs(self) -> tuple[Measured, ...]:
        """The compared runs."""
        return tuple(analysis.measured for analysis in self.analyses)


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare the folders of two or more runs, or of evaluations, query by query, with the first.

    Raises:
        UserError: fewer than two runs, one given twice, an incomplete one, or runs measured on different images.
    """
    if len(folders) < 2:
        raise UserError(f"compare needs two runs or more, got {len(folders)}: name them one after the other")
    if twice := repeated(folders):
        raise UserError(f"{twice} is named twice: name each run once")
    _check_same_fingerprint(folders, [read_metrics(folder) for folder in folders])
    runs = tuple(read_run(folder) for folder in folders)
    analyses = [analyse(run) for run in runs]
    orders = _orders(folders, analyses)
    compared = {}
    for protocol in PROTOCOLS:
        first, *others = (_hits(run, protocol, order, analyses[0]) for run, order in zip(analyses, orders, strict=True))
        compared[protocol] = [paired_bootstrap(other, first) for other in others]
    separate, unified = compared["separate"], compared["unified"]
    lines = [
        (name, _cells([run.separate(name) for run in analyses], [found.datasets[name] for found in separate]))
        for name in analyses[0].datasets
    ]
    lines += [
        ("harmonic", _cells([run.total("harmonic") for run in analyses], [found.harmonic for found in separate])),
        ("unified", _cells([run.total("unified") for run in analyses], [found.overall for found in unified])),
    ]
    return Comparison(tuple(analyses), _distinct_names(runs), tuple(lines), analyses[0].scored(), _opis(analyses))


def _opis(analyses: Sequence[Analysis]) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
    """Return the operating-point inconsistency of the galleries, in the order of the lines."""

    def values(galleries: Iterable[Calibration]) -> tuple[float | None, ...]:
        return tuple(None if own.consistency is None else own.consistency.opis for own in galleries)

    # By name, since each run may have its datasets in another order.
    reports = [run.report for run in analyses]
    rows = [(name, values(report.separate_thresholds[name] for report in reports)) for name in analyses[0].datasets]
    return (*rows, ("unified", values(report.unified_thresholds for report in reports)))


def _cells(scores: Sequence[Score], differences: Sequence[Difference]) -> tuple[Cell, ...]:
    """Return the first run's cell and those of the runs compared with it."""
    return tuple(Cell(score, difference) for score, difference in zip(scores, [None, *differences], strict=True))


def _check_same_fingerprint(folders: Sequence[Path], metrics: Sequence[dict[str, Any]]) -> None:
    prints = [entry.get("provenance", {}).get("measured_fingerprint") for entry in metrics]
    for folder, found in zip(folders, prints, strict=True):
        if found and prints[0] and found != prints[0]:
            raise UserError(
                f"{folders[0]} and {folder} were measured on different images (fingerprints {prints[0][:12]} and "
                f"{found[:12]}): measure both on the same with: unimetric evaluate RUN --data.sources ..."
            )


def _orders(folders: Sequence[Path], analyses: Sequence[Analysis]) -> list[NDArray[np.int64]]:
    """Return for each run the rows of the first run's queries, [Q]."""
    keys = [_keys(analysis.vectors.query) for analysis in analyses]
    galleries = [set(_keys(analysis.vectors.gallery)) for analysis in analyses]
    orders = []
    for folder, own, gallery in zip(folders, keys, galleries, strict=True):
        row = {key: number for number, key in enumerate(own)}
        odd = sorted(set(row) ^ set(keys[0])) or sorted(gallery ^ galleries[0])
        if odd:
            raise UserError(
                f"{folders[0]} and {folder} were measured on different images; {odd[0][2]!r} of {odd[0][0]!r} is in "
                "one of them only: measure both on the same with: unimetric evaluate RUN --data.sources ..."
            )
        orders.append(np.array([row[key] for key in keys[0]]))
    return orders


def _hits(run: Analysis, protocol: Protocol, order: NDArray[np.int64], first: Analysis) -> dict[str, Floats]:
    """Return 1 for right and 0 for wrong nearest neighbours, by dataset and in the first run's order of queries."""
    per_query = run.report.per_query
    results = per_query.separate if protocol == "separate" else per_query.unified
    hits = results.scores["recall@1"][order]
    datasets = np.array([item.dataset for item in first.vectors.query], dtype=object)
    return {name: hits[datasets == name] for name in first.datasets}


def _keys(items: Sequence[Item]) -> list[tuple[str, str, str, int]]:
    """Return dataset, label, file name and its number among equal ones; folders may differ between machines."""
    keys: list[tuple[str, str, str, int]] = [("", "", "", 0)] * len(items)
    seen: dict[tuple[str, str, str], int] = {}
    for number in sorted(range(len(items)), key=lambda number: str(items[number].path)):
        item = items[number]
        name = (item.dataset, item.label, item.path.name)
        seen[name] = seen.get(name, -1) + 1
        keys[number] = (*name, seen[name])
    return keys


def _distinct_names(runs: Sequence[Measured]) -> tuple[str, ...]:
    """Return the shortest ends of the folders' paths that differ."""
    parts = [run.folder.absolute().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(str(run.folder) for run in runs)


def difference_words(cell: Cell) -> tuple[str, str]:
    """A difference with its interval; and the probability that it is an improvement, marked if significant."""
    if cell.difference is None:
        return "", ""
    low, high, probability = cell.difference.low, cell.difference.high, cell.difference.probability
    mark = " ▲" if probability >= SIGNIFICANT else " ▼" if probability <= 1 - SIGNIFICANT else ""
    words = ">0.999" if probability > 0.999 else "<0.001" if probability < 0.001 else f"{probability:.3f}"
    return f"{_signed(cell.difference.difference)} [{_signed(low)}, {_signed(high)}]", f"P {words}{mark}"


def _signed(value: float) -> str:
    """A difference in percent points, never minus zero.

    >>> _signed(0.0123), _signed(-0.00001)
    ('+1.2', '0.0')
    """
    words = percent(value)
    return words if value < 0 or words == "0.0" else f"+{words}"


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table to standard output, a run below the other."""
    console = console or Console()
    for number, name in enumerate(comparison.names):
        # As text, because names may look like rich's markup.
        console.print(Text(name if number else f"{name} (the others are compared with it)", style="bold"))
        width = max(len(short(line, 24)) for line, _ in comparison.lines)
        for line, cells in comparison.lines:
            cell = cells[number]
            interval = f"[{percent(cell.score.low)}, {percent(cell.score.high)}]"
            text = f"  {short(line, 24):{width}}  {percent(cell.score.value):>5} {interval:14}"
            difference, probability = difference_words(cell)
            console.print(Text(f"{text} {difference:20} {probability}".rstrip()), soft_wrap=True)
        _, values = comparison.opis[-1]
        words = opis_words(values[number], None if number == 0 else values[0])
        console.print(Text(f"  {'OPIS':{width}}  {' '.join(words)}".rstrip()), soft_wrap=True)
    console.print(
        Text(
            f"Recall@1 in percent over {comparison.queries} queries, with 95 % intervals; then the difference from the "
            "first run, and the paired bootstrap's probability P that the run is better. OPIS is the operating-point "
            "inconsistency of the union, from 0: how differently one threshold treats the classes; lower is better."
        ),
        soft_wrap=True,
    )


def opis_words(value: float | None, first: float | None) -> tuple[str, str]:
    """An operating-point inconsistency, and its difference from the first run's.

    >>> opis_words(0.0412, 0.0452)
    ('0.0412', '−0.0040')
    """
    if value is None:
        return "–", ""
    return f"{value:.4f}", "" if first is None else f"{value - first:+.4f}".replace("-", "−")


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write the comparison as one HTML file."""
    totals = ("harmonic", "unified")
    last = len(comparison.lines) - len(totals)
    lines = [
        {
            "name": name,
            "total": number >= last,
            "cells": [
                {"value": percent(cell.score.value), "interval": spread(cell.score), "words": difference_words(cell)}
                for cell in cells
            ],
        }
        for number, (name, cells) in enumerate(comparison.lines)
    ]
    groups = [(name, [cell.score for cell in cells]) for name, cells in comparison.lines]
    values = {
        "runs": list(comparison.names),
        "version": __version__,
        "summary": f"{comparison.queries:,} queries, the same for all runs.",
        "lines": lines,
        "opis": [
            {
                "name": name,
                "total": row == len(comparison.opis) - 1,
                "cells": [opis_words(value, None if not n else own[0]) for n, value in enumerate(own)],
            }
            for row, (name, own) in enumerate(comparison.opis)
        ],
        "bars": interval_figure(groups, comparison.names, "bars"),
        "differences": _differences(comparison.runs),
    }
    write_text(out, render("unimetric.report", "compare.html.j2", "style.css", "map.js", values))


def _differences(runs: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """Return method, backbone and images, and the options and origins that differ between runs."""
    parts = ("model", "configuration", "provenance", "machine", "cost")
    trees = [dict(flattened({name: run.metrics[name] for name in parts if name in run.metrics})) for run in runs]
    names = list(dict.fromkeys(name for tree in trees for name in tree))
    always = ("model.method", "model.backbone", "model.trainable_parameters", "provenance.measured_fingerprint")
    rows = []
    for name in names:
        values = [tree.get(name, "–") for tree in trees]
        if name in always or len(set(values)) > 1:
            rows.append((name, values))
    return [("folder", [str(run.folder) for run in runs]), *rows]
