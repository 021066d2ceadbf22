"""The page's part on thresholds between match and no match."""

from collections.abc import Mapping
from typing import Any

from unimetric.report.analysis import Analysis
from unimetric.report.figures import roc_figure
from unimetric.report.svg import SERIES, line_dashes
from unimetric.report.words import percent, similarity


def threshold_values(analysis: Analysis) -> dict[str, Any]:
    """Return the page's values of thresholds: curves, and a table of every dataset and the union."""
    thresholds, distance = analysis.numbers["thresholds"], analysis.measured.geometry.distance
    parts: list[tuple[str, Mapping[str, Any]]] = [*thresholds["separate"].items()]
    # With one dataset, the union is that dataset.
    if len(analysis.vectors.datasets) > 1:
        parts.append(("union of all", thresholds["unified"]))
    alone = len(parts) == 1
    rates = _rates(parts)
    curves = [
        (name, values["roc"], values["equal_error_rate"], None if not alone and number == len(parts) - 1 else number)
        for number, (name, values) in enumerate(parts)
        if values["roc"] is not None
    ]
    unreached = [
        point for point in thresholds["unified"]["operating_points"] if point["wanted_false_match_rate"] not in rates
    ]
    return {
        "figure": roc_figure([curve[1:] for curve in curves], "roc") if curves else None,
        "legend": [
            {"name": name, "line": "ink" if number is None else f"s{number % SERIES}", "dashes": line_dashes(number)}
            for name, _, _, number in curves
        ],
        "rates": [_rate(rate) for rate in rates],
        "rows": [
            {
                "name": name,
                "total": not alone and number == len(parts) - 1,
                "equal": _equal_error(values, distance),
                "consistency": _consistency(values),
                "cells": [_cell(values, rate, distance) for rate in rates],
            }
            for number, (name, values) in enumerate(parts)
        ],
        "compared": "below" if distance == "cosine" else "above",
        "measure": "cosine" if distance == "cosine" else "hyperbolic distance",
        "unreached": ", ".join(
            f"{_rate(point['wanted_false_match_rate'])} ({point['impostors_needed']:,})" for point in unreached
        ),
        "queries": thresholds["unified"]["impostors"],
    }


def _rates(parts: list[tuple[str, Mapping[str, Any]]]) -> list[float]:
    """Return the false-match rates for which a dataset or the union has a threshold."""
    points = [point for _, values in parts for point in values["operating_points"]]
    reached = {point["wanted_false_match_rate"] for point in points if point["threshold"] is not None}
    return sorted(reached, reverse=True)


def _cell(values: Mapping[str, Any], rate: float, distance: str) -> dict[str, str]:
    point = next(point for point in values["operating_points"] if point["wanted_false_match_rate"] == rate)
    if point["threshold"] is None:
        return {"text": "–", "words": f"takes {point['impostors_needed']:,} queries"}
    identified = point["identified"]
    words = "" if identified is None else f"finds {percent(identified)} %"
    return {"text": similarity(point["threshold"], distance), "words": words}


def _equal_error(values: Mapping[str, Any], distance: str) -> dict[str, str]:
    if values["equal_error_rate"] is None:
        return {"text": "–", "words": ""}
    words = f"at {similarity(values['equal_error_threshold'], distance)}"
    return {"text": f"{percent(values['equal_error_rate'])} %", "words": words}


def _consistency(values: Mapping[str, Any]) -> dict[str, str]:
    found = values.get("consistency")
    if found is None or found["opis"] is None:
        return {"text": "–", "words": ""}
    return {"text": f"{found['opis']:.4f}", "words": f"{found['classes']:,} classes"}


def _rate(rate: float) -> str:
    """A rate in percent, with as many digits as it has.

    >>> _rate(0.1), _rate(0.0001)
    ('10 %', '0.01 %')
    """
    return f"{100 * rate:.10f}".rstrip("0").rstrip(".") + " %"
