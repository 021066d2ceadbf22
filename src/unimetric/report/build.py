"""Report of a run in one HTML file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric import __version__
from unimetric.errors import UserError
from unimetric.files import write_text
from unimetric.html_page import render
from unimetric.models.source import ModelSource
from unimetric.report.analysis import Analysis, analyse
from unimetric.report.budgets import budget_values
from unimetric.report.collect import Measured, located, read_log, read_run
from unimetric.report.examples import mistakes, worst_classes
from unimetric.report.figures import interval_figure, prompt_figures, training_figure
from unimetric.report.numbers import confusion, headline, metric_rows, spread_rows, tiles
from unimetric.report.space import map_values
from unimetric.report.thresholds import threshold_values
from unimetric.report.words import flattened, two_digits

REPORT = "report.html"
"""Name of a run's report in its folder."""

_PROMPT_IMAGES = 200
_SKIPPED_SHOWN = 100


@dataclass(frozen=True)
class ReportOptions:
    """Sizes of a report.

    Args:
        mistakes: Mistakes of each dataset; at least 0.
        neighbours: Neighbours of each mistake; at least 1.
        points: Most points on the map; at least 1.
    """

    mistakes: int = 6
    neighbours: int = 5
    points: int = 2000


def write_report(
    folder: Path, out: Path, options: ReportOptions | None = None, source: ModelSource | None = None
) -> list[str]:
    """Write the report of a run, or of an evaluation, as one HTML file; return the notes on parts that it lacks.

    The model is for its prompts; without a path, it is the one in the folder or above it.

    Raises:
        UserError: a part is missing or damaged, or the file cannot be written.
    """
    options, source = options or ReportOptions(), source or ModelSource()
    measured = read_run(folder)
    analysis = analyse(measured)
    prompts, notes = _prompts(measured, analysis, located(source, folder))
    values = _values(analysis, options, prompts, notes)
    write_text(out, render("unimetric.report", "report.html.j2", "style.css", "map.js", values))
    return notes


def _values(
    analysis: Analysis, options: ReportOptions, prompts: dict[str, Any] | None, notes: list[str]
) -> dict[str, Any]:
    measured, numbers = analysis.measured, analysis.numbers
    sections = {
        "numbers": "Numbers",
        "confusion": "Confusion",
        "thresholds": "Match or no match",
        "budgets": "Bytes",
        "prompts": "Prompts",
        "training": "Training",
        "space": "Embedding",
        "mistakes": "Mistakes",
        "worst": "Worst classes",
        "skipped": "Skipped",
        "origin": "Origin",
    }
    budgets = budget_values(numbers)
    for name, values in (("prompts", prompts), ("budgets", budgets)):
        if not values:
            del sections[name]
    skipped = measured.metrics.get("skipped", [])
    groups = [(name, (analysis.separate(name), analysis.unified(name))) for name in analysis.datasets]
    return {
        "name": measured.name,
        "version": __version__,
        "summary": _summary(measured.metrics),
        "sections": list(sections.items()),
        "notes": notes,
        "tiles": tiles(analysis),
        "queries": analysis.scored(),
        "headline": list(headline(analysis)),
        "bars": interval_figure(groups, ("own gallery", "union"), "bars"),
        "metrics": list(numbers["unified"]),
        "metric_rows": list(metric_rows(numbers)),
        "confusion": confusion(numbers),
        "thresholds": threshold_values(analysis),
        "budgets": budgets,
        "prompts": prompts,
        "training": _training(measured),
        "map": map_values(analysis, options.points),
        "spread": spread_rows(numbers),
        "neighbours": options.neighbours,
        "cosine": measured.geometry.distance == "cosine",
        "mistakes": [mistakes(analysis, name, options.mistakes, options.neighbours) for name in analysis.datasets],
        "worst": [worst_classes(analysis, name) for name in analysis.datasets],
        "left_out": _left_out(measured.metrics["counts"]),
        "skipped": [(entry["path"], entry["reason"]) for entry in skipped[:_SKIPPED_SHOWN]],
        "skipped_total": len(skipped),
        "origin": _origin(measured),
        "configuration": list(flattened(measured.metrics.get("configuration", {}))),
    }


def _summary(metrics: Mapping[str, Any]) -> str:
    model = metrics["model"]
    parts = [
        f"{model['method']} on {model.get('backbone', 'an unknown backbone')}",
        f"{model['image_size']} px" if "image_size" in model else "",
        f"embeddings of {model['embedding_size']} numbers" if "embedding_size" in model else "",
        f"{model['trainable_parameters']:,} trained parameters" if "trainable_parameters" in model else "",
    ]
    return ", ".join(part for part in parts if part)


def _prompts(measured: Measured, analysis: Analysis, source: ModelSource) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the page's values of the prompts; None without any, and a note with the reason if the model is missing."""
    model = measured.metrics["model"]
    if model["method"] != "puma":
        return None, []
    if source.path is None:
        reason = f"no model lies in {measured.folder}; name it with --model"
        return None, [f"The prompts are left out: {reason}."]
    from unimetric.report.prompts import average_prompt_weights

    images = {
        name: [item.path for item in analysis.vectors.query if item.dataset == name] for name in analysis.datasets
    }
    try:
        averages = average_prompt_weights(source.load(), images, _PROMPT_IMAGES)
    except UserError as error:
        # The rest of the page needs no model.
        return None, [f"The prompts are left out: {error}."]
    if averages is None:
        return None, []
    rows = [{"name": name, "values": [two_digits(value) for value in values]} for name, values in averages.items()]
    count = len(next(iter(averages.values())))
    figures = prompt_figures(averages, "prompts")
    return {"figures": figures, "rows": rows, "count": count, "images": _PROMPT_IMAGES}, []


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
    words = f"The training loss, smoothed over a twentieth of the run: {last['loss']:.2f} after {last['step']:,} steps"
    words += f"; {first['loss']:.2f} after {first['step']:,}." if len(losses) > 1 else "."
    if any("validation_harmonic" in row for row in log):
        words += " Below it, Recall@1 on the validation classes."
    return {"figure": figure, "words": words}


def _left_out(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("queries", "Queries"),
        ("gallery", "Gallery images"),
        ("queries_without_positive", "Queries without another image of their class (not measured)"),
        ("skipped_files", "Files that could not be read"),
        ("skipped_train_files", "Of these, training images"),
        ("skipped_validation_files", "Of these, validation images"),
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
