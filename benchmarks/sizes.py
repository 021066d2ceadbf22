"""Bytes per image against Recall@1 of trained models: every size, by nested training or a rotation, and every type.

    python benchmarks/sizes.py FOLDER_OF_DOMAINS RUN... [--name NAME]

A RUN is a run folder of ``unimetric train``, or ``frozen`` for the backbone and data of the first run without training.
Test vectors are read from the run folders. A model gets the rotation of its folder, or one that is fitted here on its
train images, as training fits it; one with nested sizes is also measured by its first numbers without a rotation. Runs
whose folders differ in the seed only, as ``unimetric benchmark`` names them, are one row with the mean and the standard
deviation over the seeds.

Results: ``benchmarks/results/NAME.json`` and ``NAME.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe_machine
from unimetric.evaluation.budgets import measure_budgets
from unimetric.evaluation.evaluate_split import Evaluator
from unimetric.formats.run_folder import RunFolder
from unimetric.formats.vectors import MeasuredVectors, read_measured
from unimetric.geometry import Sphere
from unimetric.models.embedder import Embedder
from unimetric.models.sizes import Sizes, fit_rotation
from unimetric.training.rotation import rotate
from unimetric.training.setup import build_embedder, load_split

RESULTS = Path(__file__).parent / "results"
BOUND = "by a rotation fitted to the test images themselves"
"""A reference that no user has: the directions that keep the similarities of these vectors best."""


def measured(folder: Path, images: Path) -> list[dict[str, Any]]:
    """Measure the budgets of one run, in one way or two."""
    start = time.process_time()
    vectors, sizes = vectors_and_sizes(folder, images)
    print(f"{folder}: {time.process_time() - start:.0f} s for the rotation")
    ways = {"by a rotation": sizes}
    if sizes.nested:
        ways["by the first numbers"] = replace(sizes, rotation=None)
    ways[BOUND] = replace(sizes, rotation=fit_rotation(vectors.gallery_vectors))
    return [budgets_of(folder, vectors, sizes, way) for way, sizes in ways.items()]


def budgets_of(folder: Path, vectors: MeasuredVectors, sizes: Sizes, way: str) -> dict[str, Any]:
    """Measure the budgets of one run in one way."""
    fitted = time.process_time()
    budgets = measure_budgets(vectors, sizes, Sphere())
    assert budgets is not None
    return {
        "run": "/".join(folder.parts[-3:]),
        "way": way,
        "nested_sizes": list(sizes.nested),
        "rotation_images": None if sizes.rotation is None else sizes.rotation.images,
        "seconds": round(time.process_time() - fitted, 2),
        "points": budgets["points"],
        "rescored": budgets["rescored"],
    }


def vectors_and_sizes(folder: Path, images: Path) -> tuple[MeasuredVectors, Sizes]:
    """Return the test vectors of a run, and the means to shorten them."""
    vectors = read_measured(folder / "vectors.parquet")
    model = RunFolder(folder).model
    if model.is_dir():
        embedder = Embedder.from_pretrained(model)
        if embedder.sizes.rotation is not None:
            return vectors, embedder.sizes
        config = RunFolder(folder).read_config()
    else:
        config = RunFolder(next(folder.parents[2].glob("*/*/seed-*/config.yaml")).parent).read_config()
        config = replace(config, model=replace(config.model, method="frozen", options={}, nested_sizes=[]))
        embedder = build_embedder(config).eval()
    config = replace(config, data=replace(config.data, sources=[str(images)]))
    rotate(embedder, load_split(config).train, Evaluator())
    return vectors, embedder.sizes


def rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every model, size and type, over its seeds."""
    models: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        models.setdefault(f"{run['run'].split('/seed-')[0]}: shorter {run['way']}", []).append(run)
    found = []
    for name, seeds in models.items():
        for place, point in enumerate(seeds[0]["points"]):
            row = {key: point[key] for key in ("size", "type", "rescored", "bytes", "copy_bytes")}
            row |= {"model": name, "seeds": len(seeds)}
            for part in ("harmonic", "unified"):
                values = [run["points"][place][part] for run in seeds]
                kept = [run["points"][place][part] / run["points"][0][part] for run in seeds]
                row[part] = statistics.mean(values)
                row[f"{part}_sd"] = statistics.stdev(values) if len(values) > 1 else None
                row[f"{part}_kept"] = statistics.mean(kept)
                row[f"{part}_interval"] = point["intervals"][part] if len(seeds) == 1 else None
            found.append(row)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a result."""
    machine, rescored = result["machine"], result["runs"][0]["rescored"]
    lines = [
        "# Bytes per image against Recall@1",
        "",
        f"`{result['command']}`, {machine['cores']} cores of {machine['processor']}, shared with other work, "
        f"{result['date']}.",
        "",
        "Recall@1 in percent on the test classes, harmonic mean of the datasets and unified, with 95 % intervals over",
        "the queries or ± the standard deviation over the seeds. “Kept” is the share of the first row's, whole float32",
        f"vectors. “Rescored”: the best {rescored} by one bit a number are compared again by an int8 copy, whose bytes",
        "come after the +.",
    ]
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["model"] == model]
        if model.endswith(BOUND):
            own = [row for row in own if row["type"] == "float32"]
        seeds = f", {own[0]['seeds']} seeds" if own[0]["seeds"] > 1 else ""
        lines += [
            "",
            f"## {model}{seeds}",
            "",
            "| bytes | size | type | harmonic | kept | unified | kept |",
            "|---:|---:|---|---:|---:|---:|---:|",
        ]
        for row in own:
            kind = f"{row['type']}, rescored" if row["rescored"] else row["type"]
            size = f"{row['bytes']} + {row['copy_bytes']}" if row["copy_bytes"] else str(row["bytes"])
            cells = [value for part in ("harmonic", "unified") for value in (_score(row, part), _kept(row, part))]
            lines.append("| " + " | ".join([size, str(row["size"]), kind, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _score(row: dict[str, Any], part: str) -> str:
    value = f"{100 * row[part]:.1f}"
    if row[f"{part}_sd"] is not None:
        return f"{value} ± {100 * row[f'{part}_sd']:.1f}"
    low, high = row[f"{part}_interval"]
    return f"{value} [{100 * low:.1f}, {100 * high:.1f}]"


def _kept(row: dict[str, Any], part: str) -> str:
    return f"{100 * row[f'{part}_kept']:.1f}"


def main() -> None:
    """Measure the runs, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--name", default="sizes")
    arguments = parser.parse_args()
    runs = [run for folder in arguments.runs for run in measured(folder, arguments.images)]
    names = " ".join("/".join(folder.parts[-3:]) for folder in arguments.runs)
    result = {
        "command": f"python benchmarks/sizes.py {arguments.images.name} {names}",
        "machine": describe_machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows(runs),
        "runs": [{key: value for key, value in run.items() if key != "points"} for run in runs],
    }
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{arguments.name}.md").write_text(markdown(result))
    print(f"{RESULTS / arguments.name}.md", file=sys.stderr)


if __name__ == "__main__":
    main()
