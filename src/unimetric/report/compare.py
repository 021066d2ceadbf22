"""Runs side by side, with the probability that a difference is real: on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from unimetric.config import DeviceConfig
from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.files import write_text
from unimetric.report.analysis import Analysis, Score, analyse
from unimetric.report.build import flattened, percent, spread
from unimetric.report.collect import Measured, read_metrics, read_run
from unimetric.report.figures import interval_figure, short
from unimetric.report.page import render
from unimetric.report.statistics import Floats, bootstrap_harmonic_means, bootstrap_means, share_above

SIGNIFICANT = 0.975
"""A probability of this, or of 1 less it, is what a two-sided test at 5 % calls significant."""


@dataclass(frozen=True)
class Cell:
    """A run's Recall@1 in one respect; for all runs but the first, compared with the first.

    Attributes:
        score: With its interval.
        difference: From the first run, from -1 to 1.
        probability: The paired bootstrap's, that this run is better than the first, from 0 to 1.
    """

    score: Score
    difference: float | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs on the same queries. ``lines`` has a row for each dataset, then "harmonic" and "unified"."""

    runs: tuple[Measured, ...]
    names: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]
    queries: int


def compare_runs(
    folders: Sequence[Path], *, weights: str | None = None, device: DeviceConfig | None = None
) -> Comparison:
    """Compare two or more runs, query by query.

    Args:
        folders: Run folders, or such as ``unimetric evaluate`` wrote; the first is what the others are compared with.
        weights: The file of the backbones' weights, where images have to be embedded again and nothing else knows it.
        device: Where to embed again.

    Raises:
        UserError: fewer than two runs, one twice, one that lacks what is needed, or runs measured on different images.
    """
    if len(folders) < 2:
        raise UserError(f"compare needs two runs or more, got {len(folders)}: name them one after the other")
    resolved = [folder.resolve() for folder in folders]
    if twice := [folder for number, folder in enumerate(folders) if resolved[number] in resolved[:number]]:
        raise UserError(f"{twice[0]} is named twice: name each run once")
    _check_same_fingerprint(folders, [read_metrics(folder) for folder in folders])
    runs = tuple(read_run(folder, weights=weights, device=device) for folder in folders)
    analyses = [analyse(run, 1) for run in runs]
    separate, unified = _aligned(folders, analyses)
    first = analyses[0]
    groups = [(name, first.of_dataset(separate, name)) for name in first.datasets]
    lines = [(name, _cells(values.mean(axis=0), bootstrap_means(values), len(values))) for name, values in groups]
    values = [group for _, group in groups]
    means = np.array([group.mean(axis=0) for group in values])
    with np.errstate(divide="ignore"):
        harmonic = len(means) / (1 / means).sum(axis=0)
    lines.append(("harmonic", _cells(harmonic, bootstrap_harmonic_means(values), len(unified))))
    lines.append(("unified", _cells(unified.mean(axis=0), bootstrap_means(unified), len(unified))))
    return Comparison(runs, _distinct_names(runs), tuple(lines), len(unified))


def _cells(values: Floats, means: Floats, queries: int) -> tuple[Cell, ...]:
    """The cells of C runs, from their values [C] and the same resamples of all of them, [R, C]."""
    cells = []
    for run, value in enumerate(values):
        low, high = np.quantile(means[:, run], [0.025, 0.975])
        score = Score(float(value), float(low), float(high), queries)
        if run == 0:
            cells.append(Cell(score))
        else:
            cells.append(Cell(score, float(value - values[0]), share_above(means[:, [0, run]])))
    return tuple(cells)


def _check_same_fingerprint(folders: Sequence[Path], metrics: Sequence[dict[str, Any]]) -> None:
    prints = [entry.get("provenance", {}).get("measured_fingerprint") for entry in metrics]
    for folder, found in zip(folders, prints, strict=True):
        if found and prints[0] and found != prints[0]:
            raise UserError(
                f"{folders[0]} and {folder} were measured on different images (fingerprints {prints[0][:12]} and "
                f"{found[:12]}): measure both on the same with: unimetric evaluate RUN --data.sources ..."
            )


def _aligned(folders: Sequence[Path], analyses: Sequence[Analysis]) -> tuple[Floats, Floats]:
    """Separate and unified hits of C runs, [P, C] each, the queries in the order of the first run."""
    keys = [_keys(analysis.queries) for analysis in analyses]
    galleries = [sorted(_keys(analysis.vectors.gallery)) for analysis in analyses]
    separate, unified = [], []
    for folder, analysis, own, gallery in zip(folders, analyses, keys, galleries, strict=True):
        row = {key: number for number, key in enumerate(own)}
        odd = sorted(set(row) ^ set(keys[0])) or sorted(set(gallery) ^ set(galleries[0]))
        if odd:
            raise UserError(
                f"{folders[0]} and {folder} were measured on different images; {odd[0][2]!r} of {odd[0][0]!r} is in "
                "one of them only: measure both on the same with: unimetric evaluate RUN --data.sources ..."
            )
        order = np.array([row[key] for key in keys[0]])
        separate.append(analysis.separate_hits[order])
        unified.append(analysis.unified_hits[order])
    return np.stack(separate, axis=1), np.stack(unified, axis=1)


def _keys(items: Sequence[Item]) -> list[tuple[str, str, str, int]]:
    """Dataset, label, file name, and which of those of that name: the folders may lie elsewhere on another machine."""
    keys: list[tuple[str, str, str, int]] = [("", "", "", 0)] * len(items)
    seen: dict[tuple[str, str, str], int] = {}
    for number in sorted(range(len(items)), key=lambda number: str(items[number].path)):
        item = items[number]
        name = (item.dataset, item.label, item.path.name)
        seen[name] = seen.get(name, -1) + 1
        keys[number] = (*name, seen[name])
    return keys


def _distinct_names(runs: Sequence[Measured]) -> tuple[str, ...]:
    """The last parts of the folders' paths, as many as it takes to tell them apart."""
    parts = [run.folder.absolute().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(str(run.folder) for run in runs)


def probability_words(cell: Cell) -> str:
    """A difference, the probability that it is an improvement, and a mark where that is beyond doubt."""
    if cell.difference is None or cell.probability is None:
        return ""
    probability = cell.probability
    mark = " ▲" if probability >= SIGNIFICANT else " ▼" if probability <= 1 - SIGNIFICANT else ""
    words = ">0.999" if probability > 0.999 else "<0.001" if probability < 0.001 else f"{probability:.3f}"
    sign = "+" if cell.difference >= 0 else ""
    return f"{sign}{percent(cell.difference)}, P {words}{mark}"


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table to standard output, a run below the other."""
    console = console or Console()
    for number, name in enumerate(comparison.names):
        # As text, because names may look like rich's markup.
        console.print(Text(name if number else f"{name} (what the others are compared with)", style="bold"))
        width = max(len(short(line, 24)) for line, _ in comparison.lines)
        for line, cells in comparison.lines:
            cell = cells[number]
            text = f"  {short(line, 24):{width}}  {percent(cell.score.value):>5}  [{spread(cell.score):>10}]"
            console.print(Text(f"{text}  {probability_words(cell)}".rstrip()), soft_wrap=True)
    console.print(
        Text(
            f"Recall@1 in percent over {comparison.queries} queries, with 95 % intervals. P: the paired bootstrap's "
            "probability that the run is better than the first."
        ),
        soft_wrap=True,
    )


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    totals = ("harmonic", "unified")
    last = len(comparison.lines) - len(totals)
    lines = [
        {
            "name": name,
            "total": number >= last,
            "cells": [
                {"value": percent(cell.score.value), "interval": spread(cell.score), "words": probability_words(cell)}
                for cell in cells
            ],
        }
        for number, (name, cells) in enumerate(comparison.lines)
    ]
    groups = [(name, [cell.score for cell in cells]) for name, cells in comparison.lines]
    values = {
        "runs": list(comparison.names),
        "summary": f"{comparison.queries:,} queries, the same for all runs.",
        "notes": [
            f"{run.folder} holds no vectors.parquet: its images were embedded again."
            for run in comparison.runs
            if run.embedded_again
        ],
        "lines": lines,
        "bars": Markup(interval_figure(groups, comparison.names, "bars")),  # noqa: S704 - escaped by matplotlib
        "differences": _differences(comparison.runs),
    }
    write_text(out, render("compare.html.j2", values))


def _differences(runs: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """What always matters, and the options and origins that are not the same for all runs."""
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
