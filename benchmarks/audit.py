"""Precision and recall of `unimetric audit` on planted faults, beside imagehash and cleanlab alone.

The photographs of a folder of domains get re-encoded, cropped and mirrored copies (2 %), leaks to the other side of the
split and blank pictures (1 % each), and wrong labels: 5 % to a random class, 5 % to the most similar one, and both at
once. All are measured at the default settings. With --model, ``cleaned.csv`` becomes the train side as the audit of
both kinds of wrong labels leaves it, all suggestions accepted, and ``doubtful.csv`` the same without images of doubtful
labels; ``dirty.csv`` and ``clean.csv`` are always written.

    python benchmarks/audit.py FOLDER_OF_DOMAINS --work runs/audit [--model RUN]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from audit_faults import Planted, plant_pictures, relabelled, write_manifest, wrong_labels
from machine import write_result
from unimetric.curation.audit import Findings, find_all, sides_of
from unimetric.curation.decisions import AUDIT_FILE, apply_decisions, write_audit
from unimetric.curation.findings import Finding
from unimetric.curation.measurements import Measurements, measure
from unimetric.data.catalog import Dataset, Item
from unimetric.data.sources import read_sources
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

VERDICTS = Path(__file__).parent / "audit_verdicts.json"
"""Findings in the photographs as they are that were right, judged by eye: groups of names of files."""

DOUBTFUL = 0.05
"""Probability of a wrong label from which an image is left out of ``doubtful.csv``."""

Pairs = set[frozenset[Path]]


def main() -> None:
    """Plant the faults, audit them with each choice of wrong labels, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="keeps the planted pictures and the measurements")
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    work, name = arguments.work, "trained" if arguments.model else "packaged"
    planted = plant_pictures(arguments.folder, work / "pictures")
    packaged = Embedder(make_backbone("dinov2-small", image_size=112), "frozen")
    measured = measure(planted.items, packaged, packaged.fingerprint, work / "packaged", "auto")
    similar_by = np.asarray(measured.vectors)
    if arguments.model:
        trained = Embedder.from_pretrained(arguments.model)
        measured = measure(
            planted.items, trained, trained.fingerprint, work / f"trained-{arguments.model.parent.name}", "auto"
        )
    result: dict[str, Any] = {"photographs": planted.originals, "images": len(planted.items)}
    for choice in ("random", "similar", "both"):
        wrong = wrong_labels(planted, similar_by, choice)
        labelled = replace(measured, items=tuple(relabelled(planted, wrong)))
        datasets = by_dataset(labelled.items)
        started = time.perf_counter()
        found = find_all(labelled, sides_of(datasets, "given")[0])
        findings = found.findings
        result[choice] = {"seconds": round(time.perf_counter() - started, 1), "kinds": scores(findings, planted, wrong)}
        if choice != "both":
            paths = cleanlab_alone(labelled)
            result[choice]["kinds"]["wrong labels, cleanlab alone"] = score_labels(paths, planted, wrong)
        if choice == "random":
            result[choice]["kinds"]["copies, imagehash alone"] = score_pairs(
                hash_alone(labelled), planted, {"smaller", "cropped", "mirrored", "leak"}
            )
        print(choice, json.dumps(result[choice], indent=1), flush=True)
    write_manifests(work, planted, list(labelled.items), found if arguments.model else None)
    write_result(f"audit_{name}", result)


def by_dataset(items: Sequence[Item]) -> list[Dataset]:
    """Return the datasets of items."""
    names = dict.fromkeys(item.dataset for item in items)
    return [Dataset(name, tuple(item for item in items if item.dataset == name)) for name in names]


def scores(findings: Sequence[Finding], planted: Planted, wrong: dict[Path, str]) -> dict[str, dict[str, float]]:
    """Return precision and recall of every kind of fault."""
    groups = {
        kind: {frozenset(item.path for item in f.images) for f in findings if f.kind in kinds and f.drop}
        for kind, kinds in {"copies": ("near-copy", "exact-copy"), "leaks": ("leak",), "blank": ("blank",)}.items()
    }
    blank = {path for path, kind in planted.kinds.items() if kind == "blank"}
    labels = {f.images[0].path for f in findings if f.kind == "wrong-label"}
    return {
        "copies": score_pairs(groups["copies"], planted, {"smaller", "cropped", "mirrored", "leak"}),
        **{
            kind: {"recall": recall_of(groups["copies"], planted, {kind})}
            for kind in ("smaller", "cropped", "mirrored")
        },
        "leaks": score_pairs(groups["leaks"], planted, {"leak"}),
        "blank": _ratios(len({p for g in groups["blank"] for p in g} & blank), len(groups["blank"]), len(blank)),
        "wrong labels": score_labels(labels, planted, wrong),
    }


def score_pairs(groups: Pairs, planted: Planted, kinds: set[str]) -> dict[str, float]:
    """Return precision over groups, recall over planted pictures; pairs judged right by eye count as right."""
    judged = [set(names) for names in json.loads(VERDICTS.read_text())["copies"]] if VERDICTS.is_file() else []
    wanted = {frozenset((p, planted.sources[p])) for p, kind in planted.kinds.items() if kind != "blank"}
    right = [
        group
        for group in groups
        if any(pair <= group for pair in wanted) or any(len(names & {_name(p) for p in group}) > 1 for names in judged)
    ]
    alone = [group for group in groups if any(pair <= group for pair in wanted)]
    return {
        "precision": round(len(right) / max(len(groups), 1), 3),
        "precision, only planted ones right": round(len(alone) / max(len(groups), 1), 3),
        "recall": recall_of(groups, planted, kinds),
        "found": len(groups),
    }


def recall_of(groups: Pairs, planted: Planted, kinds: set[str]) -> float:
    """Return the share of planted pictures of some kinds that are in one group with their source."""
    pairs = [frozenset((p, planted.sources[p])) for p, kind in planted.kinds.items() if kind in kinds]
    return round(sum(any(pair <= group for group in groups) for pair in pairs) / len(pairs), 3)


def score_labels(found: set[Path], planted: Planted, wrong: dict[Path, str]) -> dict[str, Any]:
    """Return precision and recall, overall and by dataset; leaks have a wrong label too, but are not in the recall."""
    also = {path for path, kind in planted.kinds.items() if kind == "leak"} & found
    datasets = {item.path: item.dataset for item in planted.items}
    each = {}
    for name in sorted(set(datasets.values())):
        inside = {path for path in found if datasets[path] == name}
        true = {path for path in wrong if datasets[path] == name}
        each[name] = _ratios(len(inside & true), len(inside - also), len(true))
    return {**_ratios(len(found & set(wrong)), len(found - also), len(wrong)), "datasets": each}


def _ratios(right: int, found: int, planted: int) -> dict[str, float]:
    precision = round(right / found, 3) if found else 1.0
    return {"precision": precision, "recall": round(right / max(planted, 1), 3), "found": found}


def _name(path: Path) -> str:
    return "/".join(path.parts[-3:])


def hash_alone(measured: Measurements, distance: int = 32) -> Pairs:
    """Pairs whose hashes differ in at most 32 of 256 bits, as users of imagehash find them."""
    rows = measured.shows_something
    signs = np.unpackbits(measured.hashes[rows, 0], axis=1).astype(np.float32) * 2 - 1
    close = np.triu(signs @ signs.T >= 256 - 2 * distance, 1)
    return {frozenset(measured.items[rows[place]].path for place in pair) for pair in np.argwhere(close)}


def cleanlab_alone(measured: Measurements) -> set[Path]:
    """Wrong labels by cleanlab as its tutorial uses it: five folds of logistic regression on the embeddings."""
    found = set()
    for dataset in by_dataset([measured.items[row] for row in measured.shows_something]):
        number = {item: row for row, item in enumerate(measured.items)}
        rows = [number[item] for item in dataset.items]
        given = np.unique([item.label for item in dataset.items], return_inverse=True)[1]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
        probabilities = cross_val_predict(model, measured.vectors[rows], given, cv=5, method="predict_proba")
        issues = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
        found |= {dataset.items[place].path for place in issues}
    return found


def write_manifests(work: Path, planted: Planted, dirty: list[Item], found: Findings | None) -> None:
    """Write ``clean.csv`` and ``dirty.csv`` and, from an audit, the cleaned ones, all with the same clean test side."""
    clean = list(planted.items[: planted.originals])
    test = [item for item in clean if item.role == "test"]
    write_manifest(work / "clean.csv", clean)
    write_manifest(work / "dirty.csv", [item for item in dirty if item.role == "train"] + test)
    if found is None:
        return
    write_audit(work / AUDIT_FILE, dirty, found.findings, found.doubts)
    (work / "decisions.json").write_text(json.dumps({"accepted": accepted(found.findings), "rejected": []}))
    for name, doubtful in (("cleaned.csv", None), ("doubtful.csv", DOUBTFUL)):
        apply_decisions(work / AUDIT_FILE, work / "decisions.json", work / "all.csv", doubtful)
        kept = [item for dataset in read_sources([str(work / "all.csv")]) for item in dataset.items]
        write_manifest(work / name, [item for item in kept if item.role == "train"] + test)


def accepted(findings: Sequence[Finding]) -> list[int]:
    """Return the numbers of the findings that suggest something, one new label an image."""
    relabelled: set[Path] = set()
    numbers = []
    for number, finding in enumerate(findings):
        if finding.relabel is not None and finding.images[0].path in relabelled:
            continue
        if finding.suggestion != "look":
            numbers.append(number)
        if finding.relabel is not None:
            relabelled.add(finding.images[0].path)
    return numbers


if __name__ == "__main__":
    main()
