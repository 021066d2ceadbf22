"""The page's part on budgets: bytes per image against Recall@1."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from unimetric.report.analysis import Score
from unimetric.report.figures import figure_with_rows
from unimetric.report.svg import drawing, series_colour, to_svg
from unimetric.report.words import cell

_PARTS = ("harmonic", "unified")
_MARKERS = "osD^"


def budget_values(numbers: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the page's values of budgets, a curve and a table; None if none were measured."""
    budgets = numbers.get("budgets")
    if not budgets:
        return None
    points = budgets["points"]
    return {
        "figure": budget_figure(points, "budgets"),
        "rows": list(_rows(points)),
        "rescored": budgets["rescored"],
        "sizes": len({point["size"] for point in points}) > 1,
    }


def type_name(point: Mapping[str, Any]) -> str:
    """Return the type of a point in words.

    >>> type_name({"type": "bit", "rescored": True})
    'bit, rescored'
    """
    return f"{point['type']}, rescored" if point["rescored"] else str(point["type"])


def _rows(points: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    whole = points[0]
    for point in points:
        yield {
            "bytes": f"{point['bytes']:,}",
            "second": f"+ {point['copy_bytes']:,}" if point["copy_bytes"] else "",
            "size": point["size"],
            "type": type_name(point),
            **{part: cell(Score(point[part], *point["intervals"][part])) for part in _PARTS},
            "kept": [f"{100 * point[part] / whole[part]:.1f}" if whole[part] else "–" for part in _PARTS],
        }


def budget_figure(points: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """Draw Recall@1 over the bytes per image of the points of `measure_budgets`, on a logarithmic axis.

    Every type has a line, with 95 % intervals. The figure's name is unique within the page.
    """
    types = list(dict.fromkeys(map(type_name, points)))
    with drawing():
        figure, grid = figure_with_rows(4.6, 2)
        for axes, part in zip(grid, _PARTS, strict=True):
            for number, kind in enumerate(types):
                own = sorted((p for p in points if type_name(p) == kind), key=lambda point: int(point["bytes"]))
                values = np.array([100 * point[part] for point in own])
                ends = 100 * np.array([point["intervals"][part] for point in own]).T
                axes.errorbar(
                    [point["bytes"] for point in own],
                    values,
                    yerr=np.maximum([values - ends[0], ends[1] - values], 0),
                    color=series_colour(number),
                    marker=_MARKERS[number % len(_MARKERS)],
                    markersize=3.5,
                    linewidth=1.4,
                    elinewidth=0.7,
                    label=kind,
                )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_ylabel(f"{part}\nRecall@1, %")
            axes.grid(linewidth=0.5)
            axes.tick_params(length=0, which="both")
        grid[-1].set_xlabel("bytes per image (logarithmic)")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        return to_svg(figure, name)
