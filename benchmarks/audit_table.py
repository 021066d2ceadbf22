"""The tables of `audit.py`, `audit_scale.py` and the trainings as one page, ``results/audit.md``.

    BENCHMARK_RESULTS=RUNS/results python benchmarks/audit.py ...
    python benchmarks/audit_table.py RUNS

RUNS also holds ``train-dirty``, ``train-cleaned``, ``train-doubtful`` and ``train-clean``, see ``audit_training.yaml``.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

INTRODUCTION = """uml8-mini, 5,092 photographs of eight collections, with planted faults; the protocol is in
`docs/audit.md`. Measured on 2026-11-26 and 27 on a 2-core AMD EPYC with avx512_bf16, one thread a process.
Commands: `benchmarks/audit.py`, `unimetric benchmark benchmarks/audit_training.yaml`, `benchmarks/audit_table.py`."""

CAUTION = """Cleaned with all suggestions of the audit by the model that was trained on the dirty photographs (seed 0),
accepted unseen: 67 of the 257 wrong labels are found, beside 11 right ones. Models that were trained without the
images that they judge find hardly more: four folds, 468 steps each, 0.79 / 0.29 of these wrong labels, where the
dirty run's own model (seed 2), judged in the same four folds, finds 0.78 / 0.27. "Doubtful" also lacks the images that
`--doubtful 0.05` leaves out: of 2,458 images 347, 101 of which have one of the 203 wrong labels that are left."""

PROBE = """A head on the frozen packaged backbone (`benchmarks/audit_probe.py`, four seeds) hardly differs between
seeds. Wrong labels alone make the loss. Removing them is nearly as good as correcting them, and as many images less as
are doubtful cost at most a third of the loss. 0.05 was chosen of 0.5, 0.2, 0.1 and 0.05 by such a probe, on these
photographs."""

MILLION = """A million vectors of 128 numbers by tiles (`audit_million_1000000.json`): whitening 3 s, classification
with 1,000 classes 14 s (in proportion to the classes). Of 4,096 images, the neighbours take 10 s twice and
the close hashes 35 s twice; for all images, that makes 1.4 and 4.7 hours. Memory above the vectors is at
most 2 GB, for the hashes as float32."""

COPIES = """Recall of the copies that were planted among parts of photographs:
{recall}.
Of the {found:,} findings of copies, {others:,} were not planted: parts of one product photograph look alike. The
audit of made-up pictures was measured before a pair took half the time."""

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Merge the results and write the page."""
    runs = Path(sys.argv[1])
    parts = runs / "results"
    models = {name: json.loads((parts / f"audit_{name}.json").read_text()) for name in ("packaged", "trained")}
    training = trainings(runs)
    scale = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("audit_scale_*.json"))]
    probe = json.loads((RESULTS / "audit_probe.json").read_text())
    probe = {name: row for name, row in probe.items() if isinstance(row, dict) and "images" in row}
    by_eye = json.loads((Path(__file__).parent / "audit_verdicts.json").read_text())["shares"]
    merged = {"planted": models, "training": training, "as_it_is": by_eye}
    (RESULTS / "audit.json").write_text(json.dumps(merged, indent=2) + "\n")
    lines = ["# What the audit finds", "", INTRODUCTION, ""]
    lines += (
        planted_table(models)
        + label_table(models)
        + training_table(training)
        + probe_table(probe)
        + eye_table(by_eye)
        + scale_table(scale)
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
    precision = f"{row['precision']:.2f}" if row["found"] else "-"
    return f"{precision} / {row['recall']:.2f}"


def trainings(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Harmonic and unified Recall@1 and MAP@R in percent of every finished seed, by manifest."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("dirty", "cleaned", "doubtful", "clean"):
        files = sorted(folder.glob(f"train-{name}/ours/all/seed-*/metrics.json"))
        metrics = {int(file.parent.name[5:]): json.loads(file.read_text()) for file in files}
        found[name] = {"seeds": list(metrics)} | {
            f"{view} {label}": [round(100 * m[view][measure], 2) for m in metrics.values()]
            for measure, label in (("recall@1", "Recall@1"), ("map@r", "MAP@R"))
            for view in ("harmonic", "unified")
        }
    return found


def training_table(training: dict[str, dict[str, list[float]]]) -> list[str]:
    """Means over seeds, and the share of the loss that came back."""
    columns = [column for column in next(iter(training.values())) if column != "seeds"]
    lines = [
        "## Training on dirty, cleaned and clean photographs",
        "",
        "| % | " + " | ".join(columns) + " | seeds |",
        "|---|" + "---:|" * len(columns) + "---|",
    ]
    for name, row in training.items():
        cells = [_spread(row[column]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {', '.join(map(str, row['seeds']))} |")
    for name in ("cleaned", "doubtful"):
        back = [f"{came_back(training, name, column):.0%}" for column in columns]
        lines.append(f"| came back, {name} | " + " | ".join(back) + " | |")
    return [*lines, "", CAUTION, ""]


def came_back(training: dict[str, dict[str, list[float]]], name: str, measure: str) -> float:
    """Return the gain by cleaning over the loss by dirt, from the means over seeds."""
    dirty, cleaned, clean = (statistics.mean(training[row][measure]) for row in ("dirty", name, "clean"))
    return (cleaned - dirty) / (clean - dirty)


def probe_table(probe: dict[str, dict[str, Any]]) -> list[str]:
    """MAP@R of the probe, and the share of the loss that came back."""
    lines = [
        "## A quick probe",
        "",
        "| MAP@R, % | images | wrong labels | harmonic | unified | came back |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    dirty, clean = (probe[name]["harmonic, unified"] for name in ("dirty", "clean"))
    for name, row in probe.items():
        scores = row["harmonic, unified"]
        shares = [f"{(s - d) / (c - d):.0%}" for s, d, c in zip(scores, dirty, clean, strict=True)]
        cells = [f"{score:.2f} ± {spread:.2f}" for score, spread in zip(scores, row["spread"], strict=True)]
        lines.append(
            f"| {name} | {row['images']:,} | {row['wrong labels']} | {' | '.join(cells)} | {', '.join(shares)} |"
        )
    return [*lines, "", PROBE, ""]


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
    if not results:
        return []
    lines = [
        "## Scale",
        "",
        "Seconds on two cores, before all other processes; memory in MB above the start, with and without mapped",
        "files, which the system can drop. Commands: `benchmarks/audit_scale.py`, `benchmarks/audit_million.py`.",
        "",
        "| images | pictures | in all | pairs by hash, embedding | pairs compared | labels | table, page | memory |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        seconds, memory = r["seconds"], r["peak_mb_above_start"]
        proposals = [value for name, value in seconds.items() if name.startswith("pairs by ")]
        compared = seconds["near copies in all"] - sum(proposals)
        lines.append(
            f"| {r['images']:,} | {r['pictures']} | {seconds['in all']} | {', '.join(map(str, proposals))} | "
            f"{r['pairs_compared']:,} in {compared:.0f} | {seconds['labels and strangers in all']} | "
            f"{seconds['table and page']} | {memory['all']:,}, {memory['without mapped files']:,} |"
        )
    return [*lines, "", *(COPIES.format(**recalls(r)) for r in results if "copies" in r), "", MILLION, ""]


def recalls(result: dict[str, Any]) -> dict[str, Any]:
    """Return the findings of copies among parts of photographs, in words and numbers."""
    copies = result["copies"]
    recall = ", ".join(f"{kind} {share:.2f}" for kind, share in sorted(copies["recall"].items(), key=lambda i: i[1]))
    return {"recall": recall, "found": copies["findings"], "others": copies["of them without a planted copy"]}


if __name__ == "__main__":
    main()
