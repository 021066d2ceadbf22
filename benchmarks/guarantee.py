"""Answers with a guarantee: coverage against the promise, sizes of sets, and thresholds that mean the same.

    python benchmarks/guarantee.py runs/claim/*/all/seed-0

Of the vectors that ``unimetric evaluate`` or ``train`` wrote, no model runs. Every test image is a query among all the
others. In each of 200 random splits, some of the queries calibrate and the others test. Writes ``guarantee.json`` and
``guarantee.md`` into ``results``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from machine import write_result
from unimetric.conformal import calibrate_sets, set_limit, shortfall
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.labels import factorize
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.opis import ClassPairs, class_offsets, class_pairs, inconsistency
from unimetric.formats.vectors import read_measured

SPLITS, FOLDS = 200, 5
PROMISES: tuple[tuple[float, float | None], ...] = ((0.9, None), (0.95, None), (0.99, None), (0.95, 0.05))
SMALL = 300
"""Calibration queries of the second kind of split, in the union."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class World:
    """Similarities of queries to classes.

    Attributes:
        best: Of the most similar other item of each class, [Q, C]; -inf for none.
        similarities: To every item, [Q, G]; -inf for the query itself.
        classes: The class of each query, [Q].
        datasets: The dataset of each query, [Q].
        retrieval: The queries among each other.
        groups: The dataset's number of each class, [C].
    """

    best: Floats
    similarities: Floats
    classes: NDArray[np.int64]
    datasets: NDArray[np.str_]
    retrieval: Retrieval
    groups: NDArray[np.int64]

    def part(self, name: str) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Best similarities to the classes of a dataset, the queries' classes, and all similarities in it."""
        rows = self.datasets == name
        numbers, classes = np.unique(self.classes[rows], return_inverse=True)
        return self.best[np.ix_(rows, numbers)], classes, self.similarities[np.ix_(rows, rows)]


def read(folder: Path) -> World:
    """Read a run's vectors and compare all of them."""
    measured = read_measured(folder / "vectors.parquet")
    (numbers,), names = factorize([(item.dataset, item.label) for item in measured.query])
    distance = make_distance()
    rows = distance.prepare(measured.query_vectors, "vectors")
    similarities = distance.similarities(rows.double(), rows.double()).numpy()
    np.fill_diagonal(similarities, -np.inf)
    classes = numbers.numpy()
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(len(names)))
    best = np.maximum.reduceat(similarities[:, order], starts, axis=1)
    (groups,), _ = factorize([dataset for dataset, _ in names])
    own = torch.arange(len(rows))
    retrieval = Retrieval(rows, rows, numbers, numbers, own, distance)
    datasets = np.array([item.dataset for item in measured.query])
    return World(best, similarities, classes, datasets, retrieval, groups.numpy())


def splits(count: int, calibration: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows for calibration and rows for testing."""
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(count)
        yield order[:calibration], order[calibration:]


def expected_violations(calibration: int, tested: int, level: float, rank: int) -> float:
    """Probability that more than 1 - level of the tested are missed, if all are exchangeable and none are tied.

    The number of misses is beta-binomial: the missed share is that of the rank-th largest of ``calibration``.
    """
    a, b = rank, calibration - rank + 1
    kept = 0.0
    for misses in range(math.floor((1 - level) * tested + 1e-9) + 1):
        kept += math.exp(
            math.lgamma(tested + 1)
            - math.lgamma(misses + 1)
            - math.lgamma(tested - misses + 1)
            + math.lgamma(misses + a)
            + math.lgamma(tested - misses + b)
            - math.lgamma(tested + calibration + 1)
            + math.lgamma(calibration + 1)
            - math.lgamma(a)
            - math.lgamma(b)
        )
    return 1 - kept


def coverage(
    best: Floats, classes: NDArray[np.int64], similarities: Floats, calibration: int, level: float, delta: float | None
) -> dict[str, Any]:
    """Calibrate and test one promise in every split."""
    rows = np.arange(len(classes))
    genuine, top = best[rows, classes], best.max(axis=1)
    others = best.copy()
    others[rows, classes] = -np.inf
    absent = others.max(axis=1)
    own, everything = shortfall(genuine, top, 1.0), shortfall(best, top[:, None], 1.0)
    unlike = shortfall(absent, absent, 1.0)
    sizes, covered, empty, nothing, limits, single = [], [], [], [], [], []
    for known, tested in splits(len(rows), calibration):
        sets = calibrate_sets(genuine[known], absent[known], len(rows), 1.0)
        limit = set_limit(sets.queries, sets.ranks, sets.shortfalls, level, delta)
        if limit is None:
            return {"calibration": calibration, "refused": True}
        found = (everything[tested] <= limit).sum(axis=1)
        covered.append(float((own[tested] <= limit).mean()))
        sizes.append(found)
        single.append((own[tested] <= limit)[found == 1])
        limits.append(limit)
        empty.append(float((found == 0).mean()))
        nothing.append(float((unlike[tested] > limit).mean()))
    # The rank that was used, from a calibration whose shortfalls are their own ranks.
    ranks = calibrate_sets(-np.arange(1.0, calibration + 1), np.full(calibration, np.nan), 0, 0.0)
    used = set_limit(ranks.queries, ranks.ranks, [float(rank) for rank in ranks.ranks], level, delta)
    all_sizes = np.concatenate(sizes)
    return {
        "calibration": calibration,
        "tested": len(rows) - calibration,
        "coverage": float(np.mean(covered)),
        "lowest_coverage": min(covered),
        "splits_below": float(np.mean(np.array(covered) < level)),
        "splits_below_expected": expected_violations(calibration, len(rows) - calibration, level, int(used or 0)),
        "size": {
            "mean": float(all_sizes.mean()),
            "median": float(np.median(all_sizes)),
            "90 %": float(np.quantile(all_sizes, 0.9)),
            "one": float((all_sizes == 1).mean()),
            "right if one": float(np.concatenate(single).mean()) if (all_sizes == 1).any() else None,
        },
        "limits": [float(limit) for limit in limits],
        "empty": float(np.mean(empty)),
        "empty_if_absent": float(np.mean(nothing)),
    }


def strangers(world: World, name: str, limits: list[float]) -> float | None:
    """Share of empty sets for the images of all other collections, searched in one collection."""
    if not limits:
        return None
    rows = world.datasets == name
    best = world.similarities[np.ix_(~rows, rows)].max(axis=1)
    own = np.sort(shortfall(best, best, 1.0))
    return float(np.mean([1 - np.searchsorted(own, limit, side="right") / len(own) for limit in limits]))


def top_10(best: Floats, classes: NDArray[np.int64], similarities: Floats, level: float) -> dict[str, float]:
    """Coverage of the ten nearest items, the classes in them, and the items or classes that the level takes."""
    genuine = best[np.arange(len(classes)), classes][:, None]
    items, ahead = (similarities > genuine).sum(axis=1), (best > genuine).sum(axis=1)
    tenth = np.sort(similarities, axis=1)[:, -10:-9]
    place = math.ceil(level * len(classes)) - 1
    return {
        "coverage": float((items < 10).mean()),
        "classes": float((best >= tenth).sum(axis=1).mean()),
        "items_for_level": int(np.sort(items)[place] + 1),
        "classes_for_level": int(np.sort(ahead)[place] + 1),
    }


def consistency(world: World) -> dict[str, Any]:
    """OPIS of held-out queries with one threshold and with one for each class, by folds of the images."""
    folds = np.random.default_rng(0).permutation(len(world.classes)) % FOLDS
    collected: dict[str, dict[int, list[list[Floats]]]] = {"one": {}, "each": {}}
    totals: dict[int, int] = {}
    judged = world.similarities.copy()
    for fold in range(FOLDS):
        rows, queries = (torch.from_numpy(np.flatnonzero(side)) for side in (folds != fold, folds == fold))
        known = class_pairs(world.retrieval.restrict(rows, rows))
        members = np.bincount(world.classes[folds != fold], minlength=len(world.groups))[known.classes]
        by_class = np.zeros(len(world.groups))
        by_class[known.classes] = class_offsets(known, world.groups[known.classes].tolist(), members.tolist())
        judged[folds == fold] -= by_class[world.classes]
        raw = class_pairs(world.retrieval.restrict(queries, rows))
        for name, pairs in (("one", raw), ("each", raw.shifted(by_class[raw.classes]))):
            for number, *sides in zip(pairs.classes.tolist(), pairs.positives, pairs.negatives, strict=True):
                collected[name].setdefault(number, []).append(sides)
        for number, total in zip(raw.classes.tolist(), raw.negative_pairs.tolist(), strict=True):
            totals[number] = totals.get(number, 0) + total
    result: dict[str, Any] = {}
    for name, parts in collected.items():
        numbers = np.array(sorted(parts))
        sides = [tuple(np.concatenate([part[side] for part in parts[n]]) for n in numbers) for side in (0, 1)]
        found = inconsistency(ClassPairs(numbers, *sides, np.array([totals[n] for n in numbers])))
        result[name] = {"opis": found.opis, "utility": found.utility, "classes": found.classes}
    result["ratio"] = result["each"]["opis"] / result["one"]["opis"]
    result["recall@1"] = float((world.classes[world.similarities.argmax(axis=1)] == world.classes).mean())
    result["recall@1 if ordered by it"] = float((world.classes[judged.argmax(axis=1)] == world.classes).mean())
    return result


def unlike_classes(world: World, level: float) -> dict[str, float]:
    """Coverage of queries of other classes than those of the calibration, which nothing promises."""
    rows = np.arange(len(world.classes))
    genuine = world.best[rows, world.classes]
    others = world.best.copy()
    others[rows, world.classes] = -np.inf
    own = shortfall(genuine, world.best.max(axis=1), 1.0)
    covered = []
    for chosen, _ in splits(len(world.groups), len(world.groups) // 2):
        known = np.isin(world.classes, chosen)
        sets = calibrate_sets(genuine[known], others.max(axis=1)[known], len(rows), 1.0)
        limit = set_limit(sets.queries, sets.ranks, sets.shortfalls, level)
        covered.append(float((own[~known] <= limit).mean()))
    return {"coverage": float(np.mean(covered)), "lowest": min(covered), "deviation": float(np.std(covered))}


def measure(folder: Path) -> dict[str, Any]:
    """Everything about one run."""
    world = read(folder)
    union = world.best, world.classes, world.similarities
    half = len(world.classes) // 2
    promises = []
    for level, delta in PROMISES:
        row: dict[str, Any] = {"level": level, "delta": delta, "unified": coverage(*union, half, level, delta)}
        row["unified_small"] = coverage(*union, SMALL, level, delta)
        row["separate"] = {}
        for name in dict.fromkeys(world.datasets.tolist()):
            part = world.part(name)
            found = coverage(*part, len(part[1]) // 2, level, delta)
            found["empty_for_others"] = strangers(world, name, found.pop("limits", []))
            row["separate"][name] = found
        for kind in ("unified", "unified_small"):
            row[kind].pop("limits", None)
        promises.append(row)
    return {
        "queries": len(world.classes),
        "classes": len(world.groups),
        "promises": promises,
        "top_10": top_10(*union, 0.95),
        "separate_top_10": {name: top_10(*world.part(name), 0.95) for name in dict.fromkeys(world.datasets.tolist())},
        "consistency": consistency(world),
        "unlike_classes": unlike_classes(world, 0.95),
    }


def main() -> None:
    """Measure every folder and write both files."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        raise SystemExit("name folders with vectors.parquet")
    runs = {}
    for folder in folders:
        runs[folder.parents[1].name] = measure(folder)
        print(folder, flush=True)
    path = write_result("guarantee", {"splits": SPLITS, "folds": FOLDS, "runs": runs})
    path.with_suffix(".md").write_text(page(runs), encoding="utf-8")
    print(path)


def page(runs: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    lines = ["# Answers with a guarantee, measured", "", INTRODUCTION, "", "## Coverage", "", COVERAGE, ""]
    lines += [*table(["model", "promise", "calibration", "coverage", "splits below", "expected"], promised(runs)), ""]
    names = list(next(iter(runs.values()))["separate_top_10"])
    for title, key in (
        ("In each dataset's own gallery, half of its queries calibrate; a promise of 0.95:", "coverage"),
        ("Empty sets for the images of all other collections, for which nothing fits:", "empty_for_others"),
    ):
        separate = {name: run["promises"][1]["separate"] for name, run in runs.items()}
        rows = [[name, *(f"{found[dataset][key]:.3f}" for dataset in names)] for name, found in separate.items()]
        lines += [title, "", *table(["model", *names], rows), ""]
    lines += ["## Sizes", "", SIZES, "", *table(SIZE_COLUMNS, map(size_row, runs, runs.values()))]
    lines += ["", "## Classes that the calibration did not have", "", UNLIKE, ""]
    unlike = [
        [name, *(f"{run['unlike_classes'][key]:.3f}" for key in ("coverage", "deviation", "lowest"))]
        for name, run in runs.items()
    ]
    lines += table(["model", "mean coverage", "standard deviation", "lowest"], unlike)
    lines += ["", "## One threshold for all classes, or one for each", "", CONSISTENCY, ""]
    lines += table(CONSISTENCY_COLUMNS, map(consistency_row, runs, runs.values()))
    return "\n".join([*lines, ""])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines, as Markdown."""
    return [f"| {' | '.join(row)} |" if row else "|---" * len(columns) + "|" for row in (columns, (), *rows)]


def promised(runs: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of promises and what the splits gave."""
    for name, run in runs.items():
        for row in run["promises"]:
            promise = f"{row['level']:g}" + ("" if row["delta"] is None else f", delta {row['delta']:g}")
            for kind in ("unified", "unified_small"):
                found = row[kind]
                figures = (f"{found[key]:.3f}" for key in ("splits_below", "splits_below_expected"))
                yield [name, promise, str(found["calibration"]), f"{found['coverage']:.4f}", *figures]


def size_row(name: str, run: dict[str, Any]) -> list[str]:
    """The row of `SIZE_COLUMNS` of one model."""
    found, ten = run["promises"][1]["unified"], run["top_10"]
    size = found["size"]
    sizes = [f"{size['mean']:.1f}", f"{size['median']:.0f}", f"{size['90 %']:.0f}", f"{size['one']:.3f}"]
    sets = [f"{size['right if one']:.3f}", f"{found['empty']:.4f}", f"{found['empty_if_absent']:.3f}"]
    nearest = [
        f"{ten['coverage']:.3f}",
        f"{ten['classes']:.1f}",
        str(ten["classes_for_level"]),
        str(ten["items_for_level"]),
    ]
    return [name, f"{run['consistency']['recall@1']:.3f}", *sizes, *sets, *nearest]


def consistency_row(name: str, run: dict[str, Any]) -> list[str]:
    """The row of `CONSISTENCY_COLUMNS` of one model."""
    found = run["consistency"]
    one, each = found["one"], found["each"]
    figures = [f"{one['opis']:.4f}", f"{each['opis']:.4f}", f"{found['ratio']:.2f}"]
    figures += [f"{one['utility']:.3f}", f"{each['utility']:.3f}"]
    return [name, *figures, f"{found['recall@1']:.4f}", f"{found['recall@1 if ordered by it']:.4f}"]


SIZE_COLUMNS = (
    *("model", "Recall@1", "mean size", "median", "90 %", "one item", "right if one", "empty", "empty if absent"),
    *("coverage of 10 items", "classes in them", "classes for 0.95", "items for 0.95"),
)
CONSISTENCY_COLUMNS = (
    *("model", "OPIS, one", "OPIS, each", "ratio", "utility, one", "utility, each"),
    *("Recall@1", "Recall@1 if ordered by it"),
)

INTRODUCTION = f"""`python benchmarks/guarantee.py`, on the test images of eight small collections ("uml8-mini", 2,583
images of 237 classes that no model was trained on), embedded by the models of [one model against
eight](benchmark_claim.md). Every image is a query among all others. {SPLITS} random splits into queries that
calibrate and queries that test; numbers in [guarantee.json](guarantee.json), on a machine shared with other work (no
times are given)."""

COVERAGE = """The coverage is the share of tested queries whose set holds their class, over all splits. "Splits below"
is the share of splits with a coverage below the promised probability. For a promise without delta it is about half by
design: the promise is the average. With a delta of 0.05, at most 5 % of calibrations may have a coverage below 0.95
on *all further* queries; a finite number of tested queries adds its own scatter, so "expected" is the share that
exchangeable queries give with as many tested ones (beta-binomial)."""

SIZES = """A promise of 0.95 in the union of all collections, half of the queries for calibration. A set has one item
a class. Beside it: ten nearest items, the share of queries with their class among them, the number of classes among
them, and the length that a list of fixed length needs for 0.95, in classes and in items. "Empty if absent": the share
of empty sets for queries whose class was taken out of the catalogue. Another class of the same collection
always has something as similar as what 95 % of the queries need; things of another collection are recognised as absent
by the better models (above)."""

UNLIKE = """Not promised: half of the *classes* calibrate, the queries of the others test, 200 splits. The average
holds; a single split scatters more than by chance, since queries of a class are alike. Calibrate on the classes of
the database."""

CONSISTENCY = """OPIS and mean utility of held-out images in the union: in each of five folds, offsets come from the
other images, and the fold's images are the queries. The order of answers is that of the similarities in both cases,
so Recall@1 is the same; the last column is what it would be if answers were ordered by similarity less offset."""


if __name__ == "__main__":
    main()
