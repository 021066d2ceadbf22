"""Answers of a search database while it is upgraded: how much of the full upgrade's Recall@1 each share of rows gives.

    python benchmarks/upgrade.py FOLDER_OF_DOMAINS --runs RUNS --cache CACHE

FOLDER_OF_DOMAINS is the one that the runs in RUNS were trained on: ``RUNS/NAME/all/seed-0`` for each name in `PAIRS`;
a name that is no run is a backbone, which is embedded without training. The database holds the images of classes that
no model was trained on, and each of them is also a query, without its own row: the gallery of `unimetric
evaluate`. Vectors are kept in CACHE, so that only the first run embeds.

Goal: at least 0.97 of the full upgrade's unified Recall@1 with 5 % of the rows done, and more with each further share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from machine import write_result
from unimetric.data.images import decode_image
from unimetric.data.sources import read_sources
from unimetric.evaluation.evaluate_split import embed_items
from unimetric.formats.run_folder import RunFolder
from unimetric.models.embedder import Embedder
from unimetric.search.scoring import Vectors, unit
from unimetric.search.upgrade.decision import Comparison, Gallery, compare
from unimetric.search.upgrade.maps import KINDS, LARGEST, Map, fit_map
from unimetric.search.upgrade.thresholds import shifted
from unimetric.training.provenance import measured_sides
from unimetric.training.setup import load_split

PAIRS = (("lora", "full"), ("puma-p-0.2", "ours"), ("ours", "full"), ("dinov2-small", "ours"))
SHARES = (0.05, 0.10, 0.25, 0.50)
SEEDS = (0, 1, 2)
GOAL = 0.97
RATE = 0.01
"""The false-match rate of the threshold."""
PAIRS_OF_OTHERS = (129, 258, 645, 1291)
"""Numbers of pairs from other rows than those that are searched."""
VIEWED = 0.05
"""The share of rows of which further views are embedded, to have more pairs."""
VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "centre": lambda image: ImageOps.fit(image, (max(1, image.width * 4 // 5), max(1, image.height * 4 // 5))),
    "corner": lambda image: image.crop((0, 0, max(1, image.width * 4 // 5), max(1, image.height * 4 // 5))),
}


@dataclass(frozen=True)
class Database:
    """Rows by two models.

    Attributes:
        old: [N, D].
        new: [N, E].
        classes: A number for every class, [N].
    """

    old: Vectors
    new: Vectors
    classes: np.ndarray

    def best(self, queries: Vectors, rows: Vectors) -> tuple[np.ndarray, np.ndarray]:
        """Each query's highest cosine with a row of its class, and with one of another."""
        genuine, impostors = [], []
        for start in range(0, len(queries), 512):
            own = np.arange(start, min(start + 512, len(queries)))
            cosines = queries[own] @ rows.T
            cosines[np.arange(len(own)), own] = -np.inf
            same = self.classes[None] == self.classes[own][:, None]
            genuine.append(np.where(same, cosines, -np.inf).max(axis=1))
            impostors.append(np.where(same, -np.inf, cosines).max(axis=1))
        return np.concatenate(genuine), np.concatenate(impostors)

    def recall(self, queries: Vectors, rows: Vectors) -> float:
        """Recall@1 of the queries."""
        genuine, impostors = self.best(queries, rows)
        return float((genuine > impostors).mean())


def ridge_mlp(old: Vectors, new: Vectors, seed: int = 0, steps: int = 300) -> Map:
    """The residual map of Drift-Adapter: ridge regression, and one hidden layer for what it leaves over."""
    base = ridge_matrix(old, new)
    inputs, target = torch.from_numpy(unit(old)), torch.from_numpy(unit(new))
    start = inputs @ torch.from_numpy(base)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(old.shape[1], 256), nn.GELU(), nn.Linear(256, new.shape[1]))
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(steps):
        loss = 1 - nn.functional.cosine_similarity(start + net(inputs), target).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def move(vectors: Vectors) -> Vectors:
        with torch.inference_mode():
            rows = torch.from_numpy(unit(vectors))
            return unit((rows @ torch.from_numpy(base) + net(rows)).numpy())

    return move


def ridge_matrix(source: Vectors, target: Vectors, penalty: float = 1.0) -> Vectors:
    """The matrix [D, E] of ridge regression."""
    inputs = unit(source).astype(np.float64)
    gram = inputs.T @ inputs + penalty * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(gram, inputs.T @ target), np.float32)


def main() -> None:
    """Measure all pairs of models, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--no-views", action="store_true", help="embed no further views of images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = []
    for old, new in PAIRS:
        vectors = Cache(arguments.folder, arguments.runs, arguments.cache)
        database = Database(vectors.of(old), vectors.of(new), vectors.classes)
        result = {"old": old, "new": new, **measure(database, None if arguments.no_views else (vectors, old, new))}
        measured.append(result)
        print(json.dumps(result, indent=1), flush=True)
    print(write_result("upgrade", {"goal": GOAL, "shares": SHARES, "seeds": SEEDS, "pairs": measured}))


class Cache:
    """Vectors of all images by a model, embedded once."""

    def __init__(self, folder: Path, runs: Path, cache: Path) -> None:
        self._runs, self._cache = runs, cache
        cache.mkdir(parents=True, exist_ok=True)
        config = RunFolder(runs / PAIRS[0][1] / "all" / "seed-0").read_config()
        asked = {item.path for item in measured_sides(config, load_split(config, training=False))["query"]}
        every = [item for dataset in read_sources([str(folder)]) for item in dataset.items]
        self.items = [item for item in every if item.path in asked]
        names = [(item.dataset, item.label) for item in self.items]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self.classes = np.array([numbers[name] for name in names])
        self._size = config.model.image_size

    def of(self, name: str, view: str | None = None, places: Sequence[int] | None = None) -> Vectors:
        """Unit vectors of the images at some places, or of all, in a view of them or as they are."""
        file = self._cache / f"{name}{'' if view is None else '-' + view}.npy"
        if not file.is_file():
            items = self.items if places is None else [self.items[place] for place in places]
            read = decode_image if view is None else lambda path: VIEWS[view](decode_image(path))
            embedded = embed_items(self._load(name), items, precision="fp32", description=f"{name} {view}", read=read)
            assert len(embedded.items) == len(items)
            np.save(file, embedded.vectors)
        return unit(np.load(file))

    def _load(self, name: str) -> Embedder:
        run = self._runs / name / "all" / "seed-0"
        if (run / "model").is_dir():
            return Embedder.from_pretrained(run).eval()
        return Embedder.from_pretrained(name, image_size=self._size).eval()


def measure(database: Database, views: tuple[Cache, str, str] | None) -> dict[str, Any]:
    """All figures of one pair of models; shares of the full upgrade's Recall@1."""
    full = database.recall(database.new, database.new)
    fits = {**KINDS, "ridge_mlp": ridge_mlp}

    def of_full(recall: float) -> float:
        return round(recall / full, 4)

    result: dict[str, Any] = {
        "rows": len(database.old),
        "sizes": [database.old.shape[1], database.new.shape[1]],
        "full_recall_at_1": round(full, 4),
        "old_model_over_old_rows": of_full(database.recall(database.old, database.old)),
        "doing_nothing": of_full(database.recall(database.new, database.old))
        if database.old.shape == database.new.shape
        else None,
        "mixture": {},
    }
    for share in SHARES:
        rows: dict[str, list[float]] = {}
        for seed in SEEDS:
            for name, value in at_share(database, share, seed, fits, full, views).items():
                rows.setdefault(name, []).append(value)
        result["mixture"][f"{share:g}"] = {
            name: {"mean": round(float(np.mean(values)), 4), "sd": round(float(np.std(values)), 4)}
            for name, values in rows.items()
        }
    trials = [unseen(database, seed) for seed in SEEDS]
    result["unseen"] = {
        count: {name: round(float(np.mean([trial[count][name] for trial in trials])), 4) for name in trials[0][count]}
        for count in trials[0]
    }
    return result


def at_share(
    database: Database, share: float, seed: int, fits: dict[str, Any], full: float, views: tuple[Cache, str, str] | None
) -> dict[str, float]:
    """The shares of the full upgrade at one moment."""
    count = round(share * len(database.old))
    done = np.random.default_rng(seed).permutation(len(database.old))[:count]
    found: dict[str, float] = {}
    old, new = database.old[done], database.new[done]

    def recall(rows: Vectors, queries: Vectors = database.new) -> float:
        return database.recall(queries, rows) / full

    for name, fit in fits.items():
        if name == "ridge_mlp" and seed != SEEDS[0]:
            continue
        moved = fit(old[:LARGEST], new[:LARGEST])(database.old)
        found[f"{name}, map alone"] = recall(moved)
        found[name] = recall(mixed(moved, database.new, done))
    # The query is moved and not the row, as Drift-Adapter does it.
    found["ridge of the query"] = query_map(database, done) / full
    fitted = fit_map(old, new)
    moved = mixed(fitted.move(database.old), database.new, done)
    order = np.concatenate([done, np.setdiff1d(np.arange(len(database.old)), done)])
    names = [("", str(database.classes[place])) for place in order]
    compared = compare(Gallery(database.old[order], names, new), KINDS[fitted.kind], both=True)
    found["chosen map"] = recall(moved)
    found["answered: by whichever is measured to be better"] = (
        recall(moved) if compared.new_is_better else recall(database.old, database.old)
    )
    found |= false_matches(database, moved, compared, share)
    assert compared.both is not None
    genuine, impostors = both_models(database, compared.both.weight, moved)
    found["both models"] = float((genuine > impostors).mean()) / full
    found["both models, weight"] = compared.both.weight
    found["both models, false matches"] = float((impostors >= both_threshold(database, compared, share)).mean())
    for name, order in orders(database, seed).items():
        chosen = order[:count]
        moved = KINDS["kernel"](database.old[chosen][:LARGEST], database.new[chosen][:LARGEST])(database.old)
        found[f"kernel, order: {name}"] = recall(mixed(moved, database.new, chosen))
    if views is not None and share == VIEWED and seed == SEEDS[0]:
        found["kernel, with further views of the same images"] = recall(with_views(database, done, *views))
    return found


def both_models(database: Database, weight: float, rows: Vectors) -> tuple[np.ndarray, np.ndarray]:
    """Each query's best scores, as `Database.best`, if both models embed it."""
    old, new = (1 - weight) ** 0.5, weight**0.5
    joined = [np.concatenate([old * database.old, new * vectors], axis=1) for vectors in (database.new, rows)]
    return database.best(*joined)


def unseen(database: Database, seed: int) -> dict[str, dict[str, float]]:
    """Answers among rows of which none is embedded, by the number of pairs from other rows; shares of the new model's.

    So a larger database answers at its start: that of 5 % of 26,000 rows is 1,300 pairs.
    """
    order = np.random.default_rng(seed).permutation(len(database.old))
    rows = order[len(order) // 2 :]
    half = Database(database.old[rows], database.new[rows], database.classes[rows])
    full = half.recall(half.new, half.new)
    found = {}
    for count in PAIRS_OF_OTHERS:
        pairs = order[: min(count, len(order) // 2)]
        fitted = fit_map(database.old[pairs], database.new[pairs])
        moved = fitted.move(half.old)
        together = np.concatenate([pairs, rows])
        names = [("", str(number)) for number in database.classes[together]]
        gallery = Gallery(database.old[together], names, database.new[pairs])
        both = compare(gallery, KINDS[fitted.kind], both=True).both
        assert both is not None
        genuine, impostors = both_models(half, both.weight, moved)
        found[str(len(pairs))] = {
            "old model": half.recall(half.old, half.old) / full,
            "moved": half.recall(half.new, moved) / full,
            "both": float((genuine > impostors).mean()) / full,
            "weight": both.weight,
        }
    return found


def mixed(moved: Vectors, new: Vectors, done: np.ndarray) -> Vectors:
    """Moved rows of which some are embedded."""
    rows = moved.copy()
    rows[done] = new[done]
    return rows


def query_map(database: Database, done: np.ndarray) -> float:
    """Recall@1 of moved queries among old rows, beside embedded ones."""
    moved = unit(database.new @ ridge_matrix(database.new[done], database.old[done]))
    genuine, impostors = database.best(moved, database.old)
    rows = np.zeros_like(database.new)
    rows[done] = database.new[done]
    ours = database.best(database.new, rows)
    return float((np.maximum(genuine, ours[0]) > np.maximum(impostors, ours[1])).mean())


def both_threshold(database: Database, compared: Comparison, share: float) -> float:
    """The threshold for `RATE` false matches where both models answer, as the upgrade shifts it."""
    _, impostors = database.best(database.new, database.new)
    part = {"operating_points": [{"wanted_false_match_rate": RATE, "threshold": np.quantile(impostors, 1 - RATE)}]}
    moved: dict[str, Any] = {"unified": {**part, "roc": None}, "separate": {}}
    before, both = compared.sample_new.impostors, compared.both
    assert both is not None
    for answers, part_of in ((both.sample_moved, 1 - share), (both.sample_new, share)):
        moved = shifted(moved, before, answers.impostors, part_of)
    return float(moved["unified"]["operating_points"][0]["threshold"])


def false_matches(database: Database, rows: Vectors, compared: Any, share: float) -> dict[str, float]:
    """The rate of false matches in the mixture, at the new model's threshold and at the shifted one."""
    _, impostors = database.best(database.new, database.new)
    threshold = float(np.quantile(impostors, 1 - RATE))
    part = {"operating_points": [{"wanted_false_match_rate": RATE, "threshold": threshold}], "roc": None}
    moved = shifted(
        {"unified": part, "separate": {}}, compared.sample_new.impostors, compared.sample_moved.impostors, 1 - share
    )
    _, mixture = database.best(database.new, rows)
    return {
        "false matches at the new model's threshold": float((mixture >= threshold).mean()),
        "false matches at the shifted threshold": float(
            (mixture >= moved["unified"]["operating_points"][0]["threshold"]).mean()
        ),
    }


def orders(database: Database, seed: int) -> dict[str, np.ndarray]:
    """Other orders of the rows than a random one."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(database.old))
    return {"one of each class first": shuffled[by_class(database.classes[shuffled])], "hubs first": hubs(database)}


def by_class(classes: np.ndarray) -> np.ndarray:
    """Places so that every class's first item comes before any second one."""
    seen: dict[int, int] = {}
    rank = []
    for number in classes.tolist():
        seen[number] = seen.get(number, -1) + 1
        rank.append(seen[number])
    return np.argsort(rank, kind="stable")


def hubs(database: Database) -> np.ndarray:
    """Rows by the number of others that have them among their ten nearest, the most popular first."""
    counts = np.zeros(len(database.old), np.int64)
    for start in range(0, len(database.old), 512):
        cosines = database.old[start : start + 512] @ database.old.T
        nearest = np.argpartition(-cosines, 11, axis=1)[:, :11]
        counts += np.bincount(nearest.ravel(), minlength=len(counts))
    return np.argsort(-counts, kind="stable")


def with_views(database: Database, done: np.ndarray, cache: Cache, old: str, new: str) -> Vectors:
    """The mixture with a map that was fitted on further views of the images that are done as well."""
    pairs = [(database.old[done], database.new[done])]
    for view in VIEWS:
        places = done.tolist()
        pairs.append((cache.of(old, view, places), cache.of(new, view, places)))
    moved = KINDS["kernel"](np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs]))
    return mixed(moved(database.old), database.new, done)


if __name__ == "__main__":
    main()
