"""Figures of a report, narrow enough for a phone; they scale up elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from unimetric.html_page import short
from unimetric.report.analysis import Score
from unimetric.report.svg import FAINT, FONT_SIZE, INK, drawing, line_dashes, series_colour, to_svg

WIDTH = 4.0
"""Inches of 72 points each: the width of the text on a phone of 320 pixels."""

_MARKERS = "osD^vP"


def interval_figure(groups: Sequence[tuple[str, Sequence[Score | None]]], series: Sequence[str], name: str) -> Markup:
    """Draw horizontal bars with their 95 % intervals.

    Args:
        groups: For each dataset a bar of every series, from top to bottom; None for no bar.
        series: Names of a group's bars; several of them are shown in a legend.
        name: The figure's name, unique within the page.
    """
    with drawing():
        thick = 0.8 / len(series)
        columns = 2 if max(map(len, series)) <= 14 else 1
        legend = 0.24 * -(-len(series) // columns) if len(series) > 1 else 0
        figure, (axes,) = figure_with_rows(0.65 + legend + len(groups) * max(0.28, 0.16 * len(series)))
        bars = []
        for number in range(len(series)):
            known = [(place, scores[number]) for place, (_, scores) in enumerate(groups)]
            places = np.array([place + (number - (len(series) - 1) / 2) * thick for place, score in known if score])
            found = [score for _, score in known if score]
            values = np.array([100 * score.value for score in found])
            low, high = (np.array([100 * getattr(score, side) for score in found]) for side in ("low", "high"))
            bars.append(axes.barh(places, values, 0.9 * thick, color=series_colour(number)))
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
            legend = figure.legend(bars, map(str, range(len(series))), loc="outside upper left", ncols=columns)
            # Set afterwards, since matplotlib drops entries whose names begin with an underscore.
            for text, own in zip(legend.get_texts(), series, strict=True):
                text.set_text(short(own, 24))
        return to_svg(figure, name)


def roc_figure(curves: Sequence[tuple[Mapping[str, Any], float, int | None]], name: str) -> Markup:
    """Draw receiver operating characteristics, with a dot at each equal error rate.

    A curve is that of `thresholds.RocCurve`, its equal error rate, and its dataset's number, or None for the union. The
    figure's name is unique within the page.
    """
    rates = [rate for curve, _, _ in curves for rate in curve["false_match_rates"] if rate > 0]
    least = 0.7 * min(rates, default=0.01)
    with drawing():
        figure, (axes,) = figure_with_rows(3.1)
        even = np.geomspace(least, 1, 60)
        axes.plot(100 * even, 100 - 100 * even, color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
        for curve, equal_error, number in curves:
            found = 100 - 100 * np.array(curve["false_non_match_rates"])
            # A rate of 0 is drawn at the edge of the logarithmic axis.
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
        axes.set_ylabel("items in it that match, %")
        axes.grid(linewidth=0.5)
        axes.tick_params(length=0, which="both")
        return to_svg(figure, name)


def prompt_figures(similarities: Mapping[str, NDArray[np.float32]], name: str) -> tuple[Markup, Markup]:
    """Draw the average similarity of every prompt, a row of bars for each dataset (PUMA, arXiv 2309.08944, Figure 3).

    For each dataset, the averages over its images of the M similarities are in [-1, 1]. The second figure has their
    differences from the mean over the datasets. The name is unique within the page.
    """
    mean = np.mean(list(similarities.values()), axis=0)
    differences = {dataset: values - mean for dataset, values in similarities.items()}
    return (
        _prompt_bars(similarities, "average similarity", f"{name}-own"),
        _prompt_bars(differences, "difference from the mean", f"{name}-difference"),
    )


def _prompt_bars(rows: Mapping[str, NDArray[np.float32]], title: str, name: str) -> Markup:
    with drawing():
        figure, grid = figure_with_rows(0.9 + 0.45 * len(rows), len(rows))
        every = np.stack([*rows.values()])
        low, high = min(0.0, float(every.min())), max(0.0, float(every.max()))
        margin = 0.05 * (high - low) or 1.0
        for number, (axes, (dataset, values)) in enumerate(zip(grid, rows.items(), strict=True)):
            axes.bar(np.arange(1, len(values) + 1), values, 0.8, color=series_colour(number))
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.set_ylim(low - margin, high + margin)
            axes.set_yticks([0], [short(dataset)])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_xticks([])
        # A title of the axes would be cut off at the right.
        words = f"{title}, {low:.2f} to {high:.2f}".replace("-", "−")
        figure.suptitle(words, x=0, horizontalalignment="left", fontsize=FONT_SIZE)
        grid[-1].set_xticks(range(1, every.shape[1] + 1, max(1, every.shape[1] // 8)))
        grid[-1].set_xlabel("prompt")
        return to_svg(figure, name)


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Return the centred running mean over a share of all values; fewer at both ends.

    >>> smoothed([0.0, 3.0, 0.0, 3.0], share=0.75)
    [1.5, 1.0, 2.0, 1.5]
    """
    reach = round(share * len(values)) // 2
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    mean: list[float] = ((sums[last] - sums[first]) / (last - first)).tolist()
    return mean


def training_figure(log: Sequence[Mapping[str, Any]], name: str) -> Markup | None:
    """Draw the smoothed training loss over the raw one, and the Recall@1 of validation; None without any loss."""
    losses = [(row["step"], row["loss"]) for row in log if "loss" in row]
    validated = [row for row in log if "validation_harmonic" in row]
    if not losses:
        return None
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    with drawing():
        figure, grid = figure_with_rows(4.0 if validated else 2.4, 2 if validated else 1, sharex=True)
        marker = "o" if len(losses) < 3 else None
        grid[0].plot(steps, values, color=FAINT, linewidth=0.8)
        grid[0].plot(steps, smoothed(values), color=series_colour(0), linewidth=1.6, marker=marker)
        grid[0].set_ylabel("training loss")
        if validated:
            for number, part in enumerate(("harmonic", "unified")):
                grid[1].plot(
                    [row["step"] for row in validated],
                    [100 * row[f"validation_{part}"] for row in validated],
                    color=series_colour(number),
                    marker=_MARKERS[number],
                    markersize=3,
                    label=part,
                )
            grid[1].set_ylabel("validation\nRecall@1, %")
            grid[1].legend()
        for axes in grid:
            axes.grid(linewidth=0.5)
            axes.tick_params(length=0)
        grid[-1].set_xlabel("step")
        return to_svg(figure, name)


def figure_with_rows(height: float, rows: int = 1, sharex: bool = False) -> tuple[Any, list[Any]]:
    """Return a figure of the common width with a list of pairs of axes, from top to bottom."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(rows, 1, sharex=sharex, squeeze=False)[:, 0])
