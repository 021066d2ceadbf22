"""Rows of a benchmark's table, from its finished runs."""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unimetric.studies.names import HARMONIC, MEMORY, PARAMETERS, RATIO, SECONDS, UNIFIED
from unimetric.studies.plan import Entry, Plan, Run
from unimetric.studies.state import Folder


@dataclass(frozen=True)
class Summary:
    """Mean and deviation of a value over seeds.

    Args:
        mean: The mean.
        deviation: The sample standard deviation (n - 1); None for one value.
        count: The number of values.
    """

    mean: float
    deviation: float | None
    count: int


def summarise(values: Sequence[float]) -> Summary | None:
    """Return mean and sample standard deviation, or None if there are no values.

    >>> summarise([1.0, 2.0, 3.0])
    Summary(mean=2.0, deviation=1.0, count=3)
    """
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: The entry's name, with a remark if the entry has two rows.
        entry: The entry's name.
        seeds: The complete seeds.
        planned: All planned seeds.
        values: By column, one value per complete seed. Recall@1 is in [0, 1]; a dataset's name is its column.
        runs: The runs that the values come from.
    """

    name: str
    entry: str
    seeds: tuple[int, ...]
    planned: tuple[int, ...]
    values: dict[str, list[float]] = field(hash=False)
    runs: tuple[Run, ...] = ()

    def summary(self, column: str) -> Summary | None:
        """Return the column's mean and deviation over seeds; None without values."""
        return summarise(self.values.get(column, []))


def columns(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Return the columns in order: datasets, harmonic mean, unified, and costs; `RATIO` if a row has it."""
    ratio = [RATIO] if any(row.values.get(RATIO) for row in rows) else []
    return [*plan.datasets, HARMONIC, UNIFIED, PARAMETERS, *ratio, SECONDS, MEMORY]


def collect(plan: Plan, folder: Folder) -> list[Row]:
    """Return the rows of all entries in the plan's order, with the runs that are done."""
    rows = [row for entry in plan.entries for row in _rows(plan, folder, entry)]
    specialists = {
        entry.name
        for entry in plan.entries
        if entry.mode == "each" and entry.values.get("model", {}).get("method") == "full"
    }
    return add_ratios(rows, specialists)


def add_ratios(rows: Sequence[Row], specialists: Collection[str]) -> list[Row]:
    """Add `RATIO`: the trained parameters of all dataset-specific models together, divided by a row's own.

    Of the ``specialists``, the entries with a fully fine-tuned model per dataset, the first complete one counts;
    without one, the rows are unchanged. A row that trains no parameters has no value.
    """
    total = next((row.values[PARAMETERS][0] for row in rows if row.entry in specialists and row.seeds), None)
    if total is None:
        return list(rows)
    return [
        replace(row, values=row.values | {RATIO: [total / own for own in row.values.get(PARAMETERS, []) if own]})
        for row in rows
    ]


def _rows(plan: Plan, folder: Folder, entry: Entry) -> list[Row]:
    chosen = {model.name: folder.chosen(plan, entry, model) for model in entry.models}
    main: list[_OfSeed] = []
    ensembles: list[_OfSeed] = []
    for seed in entry.seeds:
        runs = plan.runs(entry, seed, chosen)
        measured = [(run, metrics) for run in runs if (metrics := folder.metrics(run)) is not None]
        if len(measured) < len(entry.models):
            continue
        if entry.mode == "all":
            main.append((seed, [measured[0][0]], _values(measured[0][1])))
            continue
        by_dataset = [model.dataset for model in entry.models]
        main.append((seed, runs, _joined(by_dataset, [metrics for _, metrics in measured], entry.mode)))
        if entry.mode == "each" and len(runs) > 1:
            together = plan.ensemble(entry, seed, runs)
            metrics = folder.metrics(together)
            if metrics is not None:
                own = _values(metrics)
                costs = _joined(by_dataset, [member for _, member in measured], entry.mode)
                # Training costs are those of the members; memory is that of the ensemble's own evaluation.
                own |= {name: costs[name] for name in (PARAMETERS, SECONDS) if name in costs}
                ensembles.append((seed, [together], own))
    name = {
        "all": entry.name,
        "each": f"{entry.name}, each by its own model",
        "leave-one-out": f"{entry.name}, each by the model without it",
    }[entry.mode]
    rows = [_row(name, entry, main)]
    if entry.mode == "each" and len(entry.models) > 1:
        rows.append(_row(f"{entry.name}, ensemble", entry, ensembles))
    return rows


_OfSeed = tuple[int, Sequence[Run], dict[str, float]]
"""A seed, its runs and its values by column."""


def _row(name: str, entry: Entry, seeds: Sequence[_OfSeed]) -> Row:
    values: dict[str, list[float]] = {}
    for _, _, of_seed in seeds:
        for column, value in of_seed.items():
            values.setdefault(column, []).append(value)
    runs = tuple(run for _, runs, _ in seeds for run in runs)
    return Row(name, entry.name, tuple(seed for seed, _, _ in seeds), entry.seeds, values, runs)


def _values(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the columns that a run has."""
    values = {name: scores["recall@1"] for name, scores in metrics["separate"].items()}
    values |= {part: metrics[part]["recall@1"] for part in (HARMONIC, UNIFIED) if metrics.get(part)}
    return values | _costs(metrics)


def _costs(metrics: dict[str, Any]) -> dict[str, float]:
    found = {
        PARAMETERS: metrics["model"].get("trainable_parameters"),
        SECONDS: metrics.get("training_seconds", 0.0),
        MEMORY: metrics.get("cost", {}).get("peak_memory_bytes"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _joined(datasets: Sequence[str | None], measured: Sequence[dict[str, Any]], mode: str) -> dict[str, float]:
    """Join each dataset's separate number from its own model, and add their harmonic mean.

    Parameters and time are summed over dataset-specific models, since all of them are needed, and averaged over
    models that leave a dataset out. Memory is the largest of one model.
    """
    values: dict[str, float] = {}
    for dataset, metrics in zip(datasets, measured, strict=True):
        if dataset in metrics["separate"]:
            values[str(dataset)] = metrics["separate"][dataset]["recall@1"]
    if len(values) == len(datasets):
        values[HARMONIC] = statistics.harmonic_mean(values.values())
    costs = [_costs(metrics) for metrics in measured]
    for name, join in ((PARAMETERS, sum), (SECONDS, sum), (MEMORY, max)):
        if all(name in cost for cost in costs):
            joined = join(cost[name] for cost in costs)
            values[name] = joined / len(costs) if mode == "leave-one-out" and join is sum else joined
    return values
