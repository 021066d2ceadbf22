"""MAP@R of a head trained on the frozen packaged backbone, on dirty, cleaned and clean photographs: a quick probe.

Trainings of the backbone differ more between seeds than dirty and clean photographs do; this one hardly differs, and
takes seconds. The folder is that of `audit.py`, which writes the manifests. Three more are made of them: the clean one
with the wrong labels of the dirty one, without the images that have these, and without as many as are doubtful.

    python benchmarks/audit_probe.py runs/audit
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from machine import write_result
from unimetric.losses import place_proxies
from unimetric.losses.curricularface import CurricularFace
from unimetric.training.discriminant import ClassStatistics, linear_discriminant

STEPS, BATCH, WARMUP, RATE, PROXY_RATE, SEEDS = 312, 16, 40, 1e-3, 0.1, 4

Table = dict[str, tuple[str, str]]
"""Dataset and label of every image, by path."""


def main() -> None:
    """Train the head on every manifest with four seeds and write the means."""
    work = Path(sys.argv[1])
    names = [item[0] for item in json.loads((work / "audit.json").read_text())["items"]]
    vectors = F.normalize(torch.from_numpy(np.load(work / "packaged" / "vectors.npy")), dim=1)
    features = dict(zip(names, vectors, strict=True))
    clean, test = read(work / "clean.csv", "train"), read(work / "clean.csv", "test")
    tables = {name: read(work / f"{name}.csv", "train") for name in ("dirty", "cleaned", "doubtful")}
    dirty = tables["dirty"]
    tables["wrong labels only"] = {path: dirty[path] for path in clean}
    tables["wrong labels removed"] = {path: label for path, label in clean.items() if dirty[path] == label}
    fewer = random.Random(0).sample(sorted(clean), len(clean) - len(tables["cleaned"]) + len(tables["doubtful"]))
    tables["clean, fewer at random"] = {path: clean[path] for path in fewer}
    tables["clean"] = clean
    result = {}
    for name, table in tables.items():
        wrong = sum(table[path] != label for path, label in clean.items() if path in table)
        scores = np.array([probe(table, test, features, seed) for seed in range(SEEDS)])
        spread = np.round(scores.std(axis=0, ddof=1), 3).tolist()
        mean = np.round(scores.mean(axis=0), 3).tolist()
        result[name] = {"images": len(table), "wrong labels": wrong, "harmonic, unified": mean, "spread": spread}
        print(name, result[name], flush=True)
    write_result("audit_probe", result)


def read(path: Path, side: str) -> Table:
    """Return the images of one side of a manifest."""
    with path.open(newline="") as file:
        return {row["path"]: (row["dataset"], row["label"]) for row in csv.DictReader(file) if row["split"] == side}


def probe(train: Table, test: Table, features: dict[str, torch.Tensor], seed: int) -> tuple[float, float]:
    """Return harmonic and unified MAP@R in percent on the test side, of a head that starts from the discriminant."""
    classes = {label: number for number, label in enumerate(sorted(set(train.values())))}
    x, y = torch.stack([features[path] for path in train]), torch.tensor([classes[label] for label in train.values()])
    statistics = ClassStatistics.empty(len(classes), x.shape[1])
    statistics.add(x, y)
    start = linear_discriminant(statistics, 128)
    head = torch.nn.Linear(x.shape[1], 128)
    head.load_state_dict({"weight": start.weight.float(), "bias": start.bias.float()})
    torch.manual_seed(seed)
    loss = CurricularFace(len(classes), 128)
    place_proxies(loss, F.normalize(start.class_means, dim=1).float())
    optimiser = torch.optim.AdamW(
        [{"params": head.parameters(), "lr": RATE}, {"params": loss.parameters(), "lr": PROXY_RATE}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + STEPS * BATCH // len(x))])
    for rows in order.split(BATCH)[:STEPS]:
        optimiser.zero_grad()
        loss(F.normalize(head(x[rows]), dim=1), y[rows]).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = F.normalize(head(torch.stack([features[path] for path in test])), dim=1).numpy()
    labels = np.unique([" ".join(label) for label in test.values()], return_inverse=True)[1]
    datasets = np.array([dataset for dataset, _ in test.values()])
    each = [map_at_r(found[datasets == name], labels[datasets == name]) for name in np.unique(datasets)]
    return 100 * len(each) / sum(1 / value for value in each), 100 * map_at_r(found, labels)


def factor(step: int) -> float:
    """Return the cosine schedule's share of the rate."""
    return (step + 1) / (WARMUP + 1) if step < WARMUP else (1 + math.cos(math.pi * (step - WARMUP) / STEPS)) / 2


def map_at_r(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean average precision at R, each image a query to all others."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    same = labels[:, None] == labels
    relevant = same.sum(axis=1) - 1
    hits = np.take_along_axis(same, np.argsort(-similar, axis=1)[:, : relevant.max()], axis=1)
    hits &= np.arange(relevant.max()) < relevant[:, None]
    precision = hits.cumsum(axis=1) / (1 + np.arange(relevant.max()))
    return float(((precision * hits).sum(axis=1) / relevant.clip(1))[relevant > 0].mean())


if __name__ == "__main__":
    main()
