"""The figures of a report. Each is narrow, so that it can be read on a phone, and scales up elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.report.analysis import Score
from unimetric.report.svg import FAINT, INK, drawing, line_dashes, series_colour, to_svg

WIDTH = 4.0
"""Inches, of 72 points each: as wide as the text on a phone."""

_MARKERS = "osD^vP"


def short(name: str, length: int = 16) -> str:
    """A name on one line of at most ``length`` characters.

    >>> short("a very long name indeed", 10)
    'a very lo…'
    """
    printable = "".join(character if character.isprintable() else " " for character in name)
    return printable if len(printable) <= length else printable[: length - 1] + "…"


def interval_figure(groups: Sequence[tuple[str, Sequence[Score | None]]], series: Sequence[str], name: str) -> str:
    """Horizontal bars with their 95 % intervals.

    Args:
        groups: For each dataset a bar of every series, from top to bottom; None leaves it out.
        series: What the bars of a group are; their names stand in a legend, if there is more than one.
        name: Of the figure, unique within the page.
    """
    with drawing():
        thick = 0.8 / len(series)
        legend = 0.2 * ((len(series) + 1) // 2) if len(series) > 1 else 0
        figure, axes = _figure(0.55 + legend + len(groups) * max(0.26, 0.15 * len(series)))
        for number in range(len(series)):
            known = [(place, scores[number]) for place, (_, scores) in enumerate(groups)]
            places = np.array([place + (number - (len(series) - 1) / 2) * thick for place, score in known if score])
            found = [score for _, score in known if score]
            values = np.array([100 * score.value for score in found])
            low, high = (np.array([100 * getattr(score, side) for score in found]) for side in ("low", "high"))
            axes.barh(places, values, 0.9 * thick, color=series_colour(number), label=short(series[number], 24))
            spread = np.maximum([values - low, high - values], 0)
            axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
        axes.set_yticks(range(len(groups)), [short(group) for group, _ in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("Recall@1, %")
        axes.grid(axis="x", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        return to_svg(figure, name)


def roc_figure(curves: Sequence[tuple[Mapping[str, Any], float, int | None]], name: str) -> str:
    """Receiver operating characteristics, with the equal error rate of each marked by a dot.

    Args:
        curves: Of each dataset the curve of `thresholds.RocCurve`, its equal error rate, and the dataset's number; None
            instead of a number stands for the union.
        name: Of the figure, unique within the page.
    """
    rates = [rate for curve, _, _ in curves for rate in curve["false_match_rates"] if rate > 0]
    least = 0.7 * min(rates, default=0.01)
    with drawing():
        figure, axes = _figure(3.1)
        even = np.geomspace(least, 1, 60)
        axes.plot(100 * even, 100 - 100 * even, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
        for curve, equal_error, number in curves:
            found = 100 - 100 * np.array(curve["false_non_match_rates"])
            # A rate of 0 has no place on a logarithmic axis; it stands at the edge.
            matched = 100 * np.maximum(curve["false_match_rates"], least)
            colour = INK if number is None else series_colour(number)
            dashes = [float(length) for length in line_dashes(number).split()]
            style = (0, tuple(dashes)) if dashes else "-"
            axes.plot(matched, found, color=colour, linewidth=2.2 if number is None else 1.2, linestyle=style)
            axes.plot(100 * max(equal_error, least), 100 - 100 * equal_error, color=colour, marker="o", markersize=4.5)
        axes.set_xscale("log")
        axes.set_xlim(100 * least, 100)
        axes.set_ylim(0, 101)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("false matches, % (logarithmic)")
        axes.set_ylabel("items that are there and match, %")
        axes.grid(linewidth=0.5)
        axes.tick_params(length=0, which="both")
        return to_svg(figure, name)


def prompt_figure(weights: Mapping[str, NDArray[np.float32]], name: str) -> str:
    """The average weight of every prompt, a row of bars for each dataset (PUMA, arXiv 2309.08944).

    Args:
        weights: Of every dataset, the average over its images of each of the M weights, from -1 to 1.
        name: Of the figure, unique within the page.
    """
    with drawing():
        figure, grid = _figure(0.7 + 0.42 * len(weights), rows=len(weights))
        largest = max(float(np.abs(values).max()) for values in weights.values()) or 1.0
        for number, (axes, (dataset, values)) in enumerate(zip(grid, weights.items(), strict=True)):
            axes.bar(np.arange(1, len(values) + 1), values, 0.8, color=series_colour(number))
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.set_ylim(-1.05 * largest, 1.05 * largest)
            axes.set_yticks([0], [short(dataset)])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_xticks([])
        axes = grid[-1]
        step = max(1, len(next(iter(weights.values()))) // 10)
        axes.set_xticks(range(1, len(next(iter(weights.values()))) + 1, step))
        axes.set_xlabel(f"prompt (bars from −{largest:.2f} to {largest:.2f})")
        return to_svg(figure, name)


def training_figure(log: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """The training loss over the steps and, where there was validation, its Recall@1; None where nothing was logged."""
    losses = [(row["step"], row["loss"]) for row in log if "loss" in row]
    validated = [row for row in log if "validation_harmonic" in row]
    if not losses:
        return None
    with drawing():
        figure, grid = _figure(3.6 if validated else 2.1, rows=2 if validated else 1, sharex=True)
        marker = "o" if len(losses) < 3 else None
        grid[0].plot(*zip(*losses, strict=True), color=series_colour(0), linewidth=1.3, marker=marker)
        grid[0].set_ylabel("training loss")
        if validated:
            steps = [row["step"] for row in validated]
            for number, part in enumerate(("harmonic", "unified")):
                values = [100 * row[f"validation_{part}"] for row in validated]
                grid[1].plot(
                    steps, values, color=series_colour(number), marker=_MARKERS[number], markersize=3, label=part
                )
            grid[1].set_ylabel("validation\nRecall@1, %")
            grid[1].legend()
        for axes in grid:
            axes.grid(linewidth=0.5)
            axes.tick_params(length=0)
        grid[-1].set_xlabel("step")
        return to_svg(figure, name)


def _figure(height: float, rows: int = 0, sharex: bool = False) -> tuple[Any, Any]:
    """A figure of the common width with one pair of axes, or a list of ``rows`` of them."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    if not rows:
        return figure, figure.subplots()
    return figure, list(figure.subplots(rows, 1, sharex=sharex, squeeze=False)[:, 0])
