"""Numbers of a page: headline, all metrics, confusion, alignment and uniformity."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from unimetric.report.analysis import Analysis
from unimetric.report.words import cell, percent, spread, two_digits


def tiles(analysis: Analysis) -> list[dict[str, str]]:
    """Return the two headline numbers of a run."""
    words = {"harmonic": "harmonic mean of the datasets, each among its own images", "unified": "in the union of all"}
    scores = {part: analysis.total(part) for part in words}
    return [
        {
            "label": f"{part.capitalize()} Recall@1",
            "value": f"{percent(score.value)} %",
            "words": f"{words[part]}; 95 %: {spread(score)}",
        }
        for part, score in scores.items()
    ]


def headline(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Yield rows of Recall@1 in both galleries, and their gap."""
    for name in analysis.datasets:
        yield {
            "total": False,
            "name": name,
            "separate": cell(analysis.separate(name)),
            "unified": cell(analysis.unified(name)),
            "gap": cell(analysis.gap(name)),
            "queries": analysis.scored(name),
        }
    everything = {"total": True, "gap": None, "queries": analysis.scored()}
    yield everything | {"name": "harmonic mean", "separate": cell(analysis.total("harmonic")), "unified": None}
    yield everything | {"name": "all queries", "separate": None, "unified": cell(analysis.total("unified"))}


def metric_rows(numbers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield rows of all metrics, each with its interval."""
    names, intervals = list(numbers["unified"]), numbers["intervals"]

    def cells(values: Mapping[str, float], ends: Mapping[str, Any]) -> list[dict[str, str]]:
        return [
            {"text": percent(values[name]), "interval": "–".join(map(percent, ends[name])) if name in ends else ""}
            for name in names
        ]

    for name, values in numbers["separate"].items():
        yield {"total": False, "name": name, "values": cells(values, intervals["separate"][name])}
    for part in ("harmonic", "unified"):
        yield {"total": True, "name": part, "values": cells(numbers[part], intervals[part])}


def confusion(numbers: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the domain confusion of the datasets with queries; None for a single dataset."""
    names, matrix = numbers["domain_confusion"]["datasets"], numbers["domain_confusion"]["matrix"]
    if len(names) < 2:
        return None
    rows = [
        {
            "name": name,
            "cells": [
                {"text": _share(share), "heat": math.ceil(5 * share), "self": row == column}
                for column, share in enumerate(shares)
            ],
        }
        for row, (name, shares) in enumerate(zip(names, matrix, strict=True))
        if shares is not None
    ]
    return {"names": names, "rows": rows}


def _share(share: float) -> str:
    if share == 0:
        return "·"
    return "<1" if share < 0.005 else f"{100 * share:.0f}"


def spread_rows(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return alignment and uniformity of every dataset and the union; ``sampled`` if pairs were drawn."""
    parts = [*numbers["spread"]["separate"].items(), ("union of all", numbers["spread"]["unified"])]
    rows = [
        {
            "name": name,
            "total": number == len(parts) - 1,
            "values": [
                "–" if values[part] is None else two_digits(values[part]) for part in ("alignment", "uniformity")
            ],
        }
        for number, (name, values) in enumerate(parts)
    ]
    return {"rows": rows, "sampled": any(values["sampled"] for _, values in parts)}
