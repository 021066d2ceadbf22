"""The tables of `audit.py`, `audit_scale.py` and the trainings as one page, ``results/audit.md``.

    python benchmarks/audit_table.py RUNS

RUNS holds ``train-dirty``, ``train-cleaned`` and ``train-clean``, see ``audit_training.yaml``.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Merge the results and write the page."""
    models = {
        name: json.loads((RESULTS / f"audit_{name}.json").read_text())
        for name in ("packaged", "trained")
        if (RESULTS / f"audit_{name}.json").is_file()
    }
    training = trainings(Path(sys.argv[1]))
    scale = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("audit_scale_*.json"))]
    by_eye = json.loads((Path(__file__).parent / "audit_verdicts.json").read_text())["shares"]
    merged = {"planted": models, "training": training, "scale": scale, "as_it_is": by_eye}
    (RESULTS / "audit.json").write_text(json.dumps(merged, indent=2) + "\n")
    lines = ["# What the audit finds", ""]
    lines += (
        planted_table(models) + label_table(models) + training_table(training) + eye_table(by_eye) + scale_table(scale)
    )
    (RESULTS / "audit.md").write_text("\n".join(lines))


def planted_table(models: dict[str, Any]) -> list[str]:
    """Precision and recall of every kind, one column a model."""
    lines = [
        "## Planted faults",
        "",
        "| precision / recall | " + " | ".join(models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    rows = [
        ("copies (smaller, cropped, mirrored, leaked)", "random", "copies"),
        ("copies, imagehash alone", "random", "copies, imagehash alone"),
        ("leaks", "random", "leaks"),
        ("blank pictures", "random", "blank"),
        ("wrong labels, random class", "random", "wrong labels"),
        ("the same, cleanlab alone", "random", "wrong labels, cleanlab alone"),
        ("wrong labels, most similar class", "similar", "wrong labels"),
        ("the same, cleanlab alone", "similar", "wrong labels, cleanlab alone"),
        ("wrong labels, both at once", "both", "wrong labels"),
    ]
    for name, choice, kind in rows:
        cells = [_pair(model[choice]["kinds"][kind]) for model in models.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def label_table(models: dict[str, Any]) -> list[str]:
    """Wrong labels by collection."""
    columns = [(name, choice) for name in models for choice in ("random", "similar")]
    lines = [
        "## Wrong labels by collection",
        "",
        "| precision / recall | " + " | ".join(f"{n}, {c}" for n, c in columns) + " |",
    ]
    lines.append("|---|" + "---:|" * len(columns))
    found = {column: models[column[0]][column[1]]["kinds"]["wrong labels"]["datasets"] for column in columns}
    datasets = next(iter(found.values()))
    cells = {dataset: " | ".join(_pair(found[column][dataset]) for column in columns) for dataset in datasets}
    return [*lines, *(f"| {dataset} | {row} |" for dataset, row in cells.items()), ""]


def _pair(row: dict[str, float]) -> str:
    return f"{row['precision']:.2f} / {row['recall']:.2f}"


def trainings(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Harmonic and unified Recall@1 in percent of every finished seed, by manifest."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("dirty", "cleaned", "clean"):
        files = sorted(folder.glob(f"train-{name}/ours/all/seed-*/metrics.json"))
        metrics = {int(file.parent.name[5:]): json.loads(file.read_text()) for file in files}
        found[name] = {
            "seeds": list(metrics),
            "harmonic": [round(100 * m["harmonic"]["recall@1"], 2) for m in metrics.values()],
            "unified": [round(100 * m["unified"]["recall@1"], 2) for m in metrics.values()],
        }
    return found


def training_table(training: dict[str, dict[str, list[float]]]) -> list[str]:
    """Means over seeds, and the share of the loss that came back."""
    lines = [
        "## Training on dirty, cleaned and clean photographs",
        "",
        "| Recall@1, % | harmonic | unified | seeds |",
        "|---|---:|---:|---|",
    ]
    for name, row in training.items():
        cells = [_spread(row[measure]) for measure in ("harmonic", "unified")]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {', '.join(map(str, row['seeds']))} |")
    return [*lines, ""]


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def eye_table(shares: dict[str, list[int]]) -> list[str]:
    """Findings in the photographs as they are that were looked at, and how many were right."""
    lines = ["## The photographs as they are", "", "| kind | looked at | right |", "|---|---:|---:|"]
    return [*lines, *(f"| {kind} | {seen} | {right} |" for kind, (seen, right) in shares.items()), ""]


def scale_table(results: list[dict[str, Any]]) -> list[str]:
    """Seconds of every step."""
    lines = [
        "## Scale",
        "",
        "| images | width | seconds | pairs by hashes, by vectors | pairs compared | memory above start |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        pairs = f"{r['seconds']['pairs by hashes']}, {r['seconds']['pairs by vectors']}"
        lines.append(
            f"| {r['images']:,} | {r['width']} | {r['seconds_in_all']} | {pairs} | {r['pairs_compared']:,} | "
            f"{r['peak_mb_above_start']} MB |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
