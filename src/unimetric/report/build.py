"""The report of a run: one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from unimetric.config import DeviceConfig
from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.files import write_text
from unimetric.report.analysis import Analysis, Mistake, Neighbour, Score, analyse
from unimetric.report.collect import Measured, load_embedder, model_folder, read_log, read_run
from unimetric.report.embedding_map import map_positions, shown
from unimetric.report.figures import interval_figure, prompt_figure, training_figure
from unimetric.report.page import render
from unimetric.report.svg import SERIES
from unimetric.report.thumbnails import thumbnail

_PROMPT_IMAGES = 200
_SKIPPED_SHOWN = 100
_MAP_SIDE, _MAP_MARGIN = 340, 12
_SHAPES = (
    "M-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0z",  # disc
    "M-2 -2h4v4h-4z",  # square
    "M0 -2.7L2.6 2L-2.6 2z",  # triangle
    "M0 -2.9L2.9 0L0 2.9L-2.9 0z",  # diamond
)


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Args:
        mistakes: Of each dataset.
        neighbours: Beside each of them.
        points: On the map, at most.
    """

    mistakes: int = 6
    neighbours: int = 5
    points: int = 2000

    def __post_init__(self) -> None:
        for name, least in (("mistakes", 0), ("neighbours", 1), ("points", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"--{name} is {value}: use {least} or more")


def write_report(
    folder: Path,
    out: Path,
    options: ReportOptions | None = None,
    *,
    model: Path | None = None,
    weights: str | None = None,
    device: DeviceConfig | None = None,
) -> list[str]:
    """Write the report of a run, or of what ``unimetric evaluate`` wrote, as one HTML file.

    Args:
        folder: Where ``metrics.json`` lies, and ``vectors.parquet``; without the latter, images are embedded again.
        out: The file.
        options: What it shows.
        model: Where the model is, for its prompts; None looks in the folder, and above it.
        weights: The file of the backbone's weights, where nothing else knows it.
        device: Where to compute.

    Returns:
        Notes on what is not as in other reports; they stand on top of the page.

    Raises:
        UserError: something that is needed is missing or damaged, or the file cannot be written.
    """
    options, device = options or ReportOptions(), device or DeviceConfig()
    measured = read_run(folder, model=model, weights=weights, device=device)
    analysis = analyse(measured, options.neighbours)
    place = model or model_folder(folder)
    prompts, notes = _prompts(measured, analysis, place, weights, device)
    if measured.embedded_again:
        notes.insert(
            0,
            "This folder holds no vectors.parquet, so the images were embedded again for this page: intervals, "
            "neighbours and figures may differ in the last digits from the numbers in metrics.json.",
        )
    write_text(out, render("report.html.j2", _values(measured, analysis, options, prompts, notes)))
    return notes


def _values(
    measured: Measured, analysis: Analysis, options: ReportOptions, prompts: dict[str, Any] | None, notes: list[str]
) -> dict[str, Any]:
    metrics, scores = measured.metrics, analysis.scores()
    sections = {
        "numbers": "Numbers",
        "confusion": "Confusion",
        "prompts": "Prompts",
        "training": "Training",
        "space": "Map",
        "mistakes": "Mistakes",
        "skipped": "Left out",
        "origin": "How it was made",
    }
    if not prompts:
        del sections["prompts"]
    skipped = metrics.get("skipped", [])
    groups = [(name, (scores["separate"][name], scores["unified"][name])) for name in analysis.datasets]
    return {
        "name": measured.name,
        "summary": _summary(metrics),
        "sections": list(sections.items()),
        "notes": notes,
        "tiles": _tiles(scores),
        "queries": len(analysis.rows),
        "headline": list(_headline(analysis, scores)),
        "bars": _svg(interval_figure(groups, ("own gallery", "union"), "bars")),
        "metrics": list(metrics["unified"]),
        "metric_rows": list(_metric_rows(metrics)),
        "confusion": _confusion(analysis) if len(analysis.vectors.datasets) > 1 else None,
        "prompts": prompts,
        "training": _training(measured),
        "map": _map(analysis, options.points),
        "neighbours": options.neighbours,
        "similarity_words": "the cosine" if measured.geometry.distance == "cosine" else "the hyperbolic distance",
        "mistakes": [_mistakes(analysis, name, options.mistakes) for name in analysis.datasets],
        "left_out": _left_out(metrics["counts"]),
        "skipped": [(entry["path"], entry["reason"]) for entry in skipped[:_SKIPPED_SHOWN]],
        "skipped_total": len(skipped),
        "origin": _origin(measured),
        "configuration": list(flattened(metrics.get("configuration", {}))),
    }


def _svg(text: str) -> Markup:
    """An SVG of `to_svg`, in which names are escaped already."""
    return Markup(text)  # noqa: S704


def _summary(metrics: Mapping[str, Any]) -> str:
    model = metrics["model"]
    parts = [
        f"{model['method']} on {model.get('backbone', 'an unknown backbone')}",
        f"{model['image_size']} px" if "image_size" in model else "",
        f"embeddings of {model['embedding_size']} numbers" if "embedding_size" in model else "",
        f"{model['trainable_parameters']:,} trained parameters" if "trainable_parameters" in model else "",
    ]
    return ", ".join(part for part in parts if part)


def _tiles(scores: Mapping[str, Mapping[str, Score]]) -> list[dict[str, str]]:
    words = {"harmonic": "harmonic mean of the datasets, each among its own images", "unified": "in the union of all"}
    return [
        {
            "label": f"{part.capitalize()} Recall@1",
            "value": f"{percent(score.value)} %",
            "words": f"{words[part]}; 95 %: {spread(score)}",
        }
        for part, score in scores["all"].items()
    ]


def _headline(analysis: Analysis, scores: Mapping[str, Mapping[str, Score]]) -> Iterator[dict[str, Any]]:
    for name in analysis.datasets:
        separate, unified = scores["separate"][name], scores["unified"][name]
        yield {
            "total": False,
            "name": name,
            "separate": _cell(separate),
            "unified": _cell(unified),
            "gap": percent(separate.value - unified.value),
            "queries": separate.queries,
        }
    everything = {"total": True, "gap": "", "queries": len(analysis.rows)}
    yield everything | {"name": "harmonic mean", "separate": _cell(scores["all"]["harmonic"]), "unified": None}
    yield everything | {"name": "all queries", "separate": None, "unified": _cell(scores["all"]["unified"])}


def _cell(score: Score) -> dict[str, str]:
    return {"text": percent(score.value), "interval": spread(score)}


def percent(value: float) -> str:
    """A share in percent, with one digit.

    >>> percent(0.1234)
    '12.3'
    """
    return f"{100 * value:.1f}".replace("-", "−")


def spread(score: Score) -> str:
    """The interval of a score, in percent."""
    return f"{percent(score.low)}–{percent(score.high)}"


def _metric_rows(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = list(metrics["unified"])
    for name, values in metrics["separate"].items():
        yield {"total": False, "name": name, "values": [percent(values[metric]) for metric in names]}
    for part in ("harmonic", "unified"):
        yield {"name": part, "values": [percent(metrics[part][metric]) for metric in names], "total": True}


def _confusion(analysis: Analysis) -> dict[str, Any]:
    names, shares, queries = analysis.confusion()
    rows = [
        {
            "name": name,
            "cells": [
                {
                    "text": _share(shares[row, column]),
                    "heat": 0 if shares[row, column] == 0 else 1 + min(4, int(5 * shares[row, column])),
                    "self": row == column,
                }
                for column in range(len(names))
            ],
        }
        for row, name in enumerate(names)
        if queries[row]
    ]
    return {"names": names, "rows": rows}


def _share(share: float) -> str:
    if share == 0:
        return "·"
    return "<1" if share < 0.005 else f"{100 * share:.0f}"


def _prompts(
    measured: Measured, analysis: Analysis, place: Path | None, weights: str | None, device: DeviceConfig
) -> tuple[dict[str, Any] | None, list[str]]:
    """What the page shows of the model's prompts; None for a model without any, or with the reason as a note."""
    model = measured.metrics["model"]
    if model["method"] != "puma":
        return None, []
    if place is None:
        reason = f"no model lies in {measured.folder}; name it with --model"
        return None, [f"The weights of the prompts are left out: {reason}."]
    from unimetric.models.devices import choose_device
    from unimetric.report.prompts import average_prompt_weights

    images = {
        name: [item.path for item in analysis.vectors.query if item.dataset == name] for name in analysis.datasets
    }
    try:
        embedder = load_embedder(place, weights).to(choose_device(device.accelerator))
        averages = average_prompt_weights(embedder, images, _PROMPT_IMAGES)
    except UserError as error:
        # The rest of the page needs no model, and may be read where there is none.
        return None, [f"The weights of the prompts are left out: {error}."]
    if averages is None:
        return None, []
    rows = [{"name": name, "values": [f"{value:.2f}" for value in values]} for name, values in averages.items()]
    figure = _svg(prompt_figure(averages, "prompts"))
    count = len(next(iter(averages.values())))
    return {"figure": figure, "rows": rows, "count": count, "images": _PROMPT_IMAGES}, []


def _training(measured: Measured) -> dict[str, Any]:
    log = read_log(measured.folder)
    figure = training_figure(log, "training")
    if figure is None:
        return {
            "figure": None,
            "words": "This folder has no log.jsonl with a training loss: nothing was trained in it.",
        }
    losses = [row for row in log if "loss" in row]
    first, last = losses[0], losses[-1]
    words = f"The training loss, {last['loss']:.2f} after {last['step']:,} steps"
    words += f"; {first['loss']:.2f} after {first['step']:,}." if len(losses) > 1 else "."
    if any("validation_harmonic" in row for row in log):
        words += " Below it, Recall@1 on the validation classes."
    return {"figure": _svg(figure), "words": words}


def _map(analysis: Analysis, count: int) -> dict[str, Any]:
    vectors = analysis.vectors
    rows = shown(vectors, count)
    positions = _MAP_MARGIN + (_MAP_SIDE - 2 * _MAP_MARGIN) * map_positions(vectors.query_vectors[rows])
    datasets = tuple(dict.fromkeys(item.dataset for item in vectors.query))
    number = {name: index for index, name in enumerate(datasets)}
    hit = dict(zip(analysis.rows.tolist(), analysis.unified_hits.tolist(), strict=True))
    items = [vectors.query[row] for row in rows]
    points = [
        {
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "colour": number[item.dataset] % SERIES,
            "shape": number[item.dataset] // SERIES % len(_SHAPES),
            "right": hit.get(row, 1),
            "text": _point_words(item, hit.get(row)),
        }
        for row, item, (x, y) in zip(rows.tolist(), items, positions, strict=True)
    ]
    own = {name: np.array([item.dataset == name for item in items]) for name in datasets}
    middles = {name: np.median(positions[rows_of], axis=0) for name, rows_of in own.items()}
    words = (
        f"{len(rows):,} of {len(vectors.query):,} queries, drawn so that near means alike (principal components, then "
        "t-SNE); distances between far groups mean nothing. Outlined: queries whose nearest neighbour is wrong."
    )
    return {
        "points": points,
        "shapes": _SHAPES,
        "labels": _labels(middles) if len(datasets) <= 24 else [],
        "legend": [
            {
                "name": name,
                "colour": number[name] % SERIES,
                "shape": number[name] // SERIES % len(_SHAPES),
                "count": int(own[name].sum()),
            }
            for name in datasets
        ],
        "words": words,
    }


def _labels(middles: Mapping[str, NDArray[np.float64]]) -> list[dict[str, str]]:
    """Names at the middles of their datasets, moved down where one would cover another, and in from the edge."""
    placed: list[tuple[str, float, float]] = []
    for name, (x, y) in sorted(middles.items(), key=lambda entry: float(entry[1][1])):
        x = min(max(float(x), 45.0), _MAP_SIDE - 45.0)
        for _, other_x, other_y in placed:
            if abs(x - other_x) < 60 and y - other_y < 10:
                y = max(float(y), other_y + 10)
        placed.append((name, x, float(y)))
    return [{"name": name, "x": f"{x:.1f}", "y": f"{min(y, _MAP_SIDE - 4.0):.1f}"} for name, x, y in placed]


def _point_words(item: Item, hit: float | None) -> str:
    result = {None: "no other image of its class", 1.0: "neighbour right", 0.0: "neighbour wrong"}[hit]
    return f"{item.dataset} · {item.label} · {item.path.name} · {result}"


def _mistakes(analysis: Analysis, name: str, count: int) -> dict[str, Any]:
    hits = analysis.of_dataset(analysis.unified_hits, name)
    return {
        "name": name,
        "queries": f"{len(hits):,}",
        "wrong": int((hits == 0).sum()),
        "mistakes": [_mistake(mistake) for mistake in analysis.mistakes(name, count)],
    }


def _mistake(mistake: Mistake) -> dict[str, Any]:
    return {
        "query": picture(mistake.query, "Query"),
        "neighbours": [
            picture(neighbour.item, "Right neighbour" if neighbour.right else "Wrong neighbour")
            | {"right": neighbour.right, "similarity": similarity(neighbour)}
            for neighbour in mistake.neighbours
        ],
    }


def picture(item: Item, role: str) -> dict[str, Any]:
    """An image as templates show it; ``picture`` is None where it cannot be read."""
    return {
        "picture": thumbnail(item.path),
        "alt": f"{role}, {item.label} of {item.dataset}: {item.path.name}",
        "file": item.path.name,
        "label": item.label,
        "dataset": item.dataset,
    }


def similarity(neighbour: Neighbour) -> str:
    """The cosine, or the hyperbolic distance, with three digits."""
    return f"{abs(neighbour.similarity):.3f}" if neighbour.similarity <= 0 else f"{neighbour.similarity:.3f}"


def _left_out(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("queries", "Queries"),
        ("gallery", "Gallery images"),
        ("queries_without_positive", "Queries without another image of their class; no part of any mean"),
        ("skipped_files", "Files that could not be read"),
        ("skipped_train_files", "Of them, among the training images"),
        ("skipped_validation_files", "Of them, among the validation images"),
        ("train_images", "Training images"),
        ("train_classes", "Training classes"),
    ]
    known = [(words, f"{counts[name]:,}") for name, words in lines if counts.get(name) is not None]
    if counts.get("datasets_left_out"):
        known.append(("Datasets without a number of their own", ", ".join(counts["datasets_left_out"])))
    return known


def _origin(measured: Measured) -> list[tuple[str, str]]:
    metrics = measured.metrics
    parts: dict[str, Any] = {
        name: metrics[name] for name in ("provenance", "model", "machine", "cost") if name in metrics
    }
    names = ("training_steps", "training_seconds", "seconds")
    times: dict[str, Any] = {name: metrics[name] for name in names if name in metrics}
    return [("folder", str(measured.folder)), *flattened(parts), *flattened(times)]


def flattened(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested options as dotted names and words."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{before}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{before}{name}", text or "–"
