"""The files that a benchmark writes beside its runs, and the notes below its table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from unimetric.files import write_json, write_text
from unimetric.studies.collect import Row, collect, columns
from unimetric.studies.execute import Failure, arguments
from unimetric.studies.names import RATIO
from unimetric.studies.plan import Plan, Run
from unimetric.studies.process import command_line
from unimetric.studies.state import Folder, describe_choice, runs_of
from unimetric.studies.tables import Grid, latex, make_grid, markdown, results_csv, rows_csv

Measured = list[tuple[Run, dict[str, Any]]]


def write_report(plan: Plan, folder: Folder, failures: Sequence[Failure] = ()) -> tuple[Grid, list[str]]:
    """Write the finished runs' tables and ``results.json``; return the table and its notes.

    The tables are ``table.md``, ``table.csv``, ``table.tex`` and ``results.csv``.

    Raises:
        UserError: a run's numbers are damaged.
        WriteError: the disk is full, or no permission.
    """
    rows = collect(plan, folder)
    measured = [
        (run, metrics)
        for entry in plan.entries
        for run in runs_of(plan, folder, entry)
        if (metrics := folder.metrics(run)) is not None
    ]
    names = columns(plan, rows)
    grid, notes = make_grid(rows, names), make_notes(plan, folder, rows, measured, failures)
    write_text(folder.out / "table.md", markdown(plan.file.title, grid, notes))
    write_text(folder.out / "table.tex", latex(plan.file.title, grid, notes))
    write_text(folder.out / "table.csv", rows_csv(rows, names))
    write_text(folder.out / "results.csv", results_csv([_run_line(run, metrics) for run, metrics in measured]))
    write_json(folder.out / "results.json", _everything(plan, folder, rows, measured, notes))
    return grid, notes


def make_notes(
    plan: Plan, folder: Folder, rows: Sequence[Row], measured: Measured, failures: Sequence[Failure] = ()
) -> list[str]:
    """Return the notes below the table: seeds, choices, sizes, origins and failures."""
    notes = ["Recall@1 on classes that were not trained on, in percent; time is that of the training steps."]
    if any(len(row.seeds) > 1 for row in rows):
        notes.append("± is the sample standard deviation over seeds.")
    if len(rows) > 1:
        notes.append("The best mean of a column is in bold, with all that round to the same.")
    if any(row.values.get(RATIO) for row in rows):
        notes.append(
            f"{RATIO}: the trained parameters of one fully fine-tuned model per dataset, all together, divided by the "
            "row's own."
        )
    notes += _seed_notes(rows)
    choices = (describe_choice(plan, folder, entry, model) for entry in plan.entries for model in entry.models)
    # A choice taken from another entry is the same for all models.
    notes += dict.fromkeys(choice for choice in choices if choice is not None)
    final = [(run, metrics) for run, metrics in measured if run.candidate is None]
    notes += _size_notes(final)
    notes += _origin_notes(final)
    notes += [f"Failed: {failure.run}: {failure.reason}" for failure in failures]
    return notes


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for row in rows:
        if row.seeds:
            by_seeds.setdefault(row.seeds, []).append(row.name)
    notes = []
    for seeds, names in by_seeds.items():
        whose = "all" if len(by_seeds) == 1 else "; ".join(names)
        notes.append(f"{'Seeds' if len(seeds) > 1 else 'Seed'} {', '.join(map(str, seeds))}: {whose}.")
    return notes + [
        f"Not complete: {row.name}, {len(row.seeds)} of {len(row.planned)} seeds."
        for row in rows
        if len(row.seeds) < len(row.planned)
    ]


def _size_notes(final: Measured) -> list[str]:
    """Return steps, batches and images, in one line for all runs that share them."""
    sizes: dict[str, list[str]] = {}
    for run, metrics in final:
        if run.kind == "train":
            counts, steps = metrics["counts"], metrics["training_steps"]
            size = (
                f"{steps:,} step{'' if steps == 1 else 's'} of {run.config.training.batch_size} images at "
                f"{run.config.model.image_size} px, from {counts['train_images']:,} images of "
                f"{counts['train_classes']:,} classes"
            )
            name = run.entry if run.model == "all" else f"{run.entry}, {run.model}"
            sizes.setdefault(size, []).append(name)
    notes = []
    for size, names in sizes.items():
        whose = "Training" if len(sizes) == 1 else "; ".join(dict.fromkeys(names))
        notes.append(f"{whose}: {size}.")
    tested = {(metrics["counts"]["queries"], metrics["counts"]["gallery"]) for _, metrics in final}
    notes += [f"Measured: {queries:,} queries against {gallery:,} images." for queries, gallery in sorted(tested)]
    skipped = sum(metrics["counts"].get("skipped_files", 0) for _, metrics in final)
    if skipped:
        notes.append(f"{skipped} times an unreadable file was skipped; each metrics.json names them.")
    return notes


def _origin_notes(final: Measured) -> list[str]:
    codes = _distinct(
        [
            f"{metrics['provenance']['code']['version']}, sources {metrics['provenance']['code']['sha256'][:12]}"
            for _, metrics in final
            if "provenance" in metrics
        ]
    )
    images = _distinct([m["provenance"]["measured_fingerprint"][:12] for _, m in final if "provenance" in m])
    weights = _distinct(
        [f"{m['model']['backbone']} {m['model']['fingerprint'][:12]}" for _, m in final if "fingerprint" in m["model"]]
    )
    machines = _distinct([_machine(metrics["machine"]) for _, metrics in final if "machine" in metrics])
    memories = _distinct([m["cost"]["peak_memory_of"] for _, m in final if "cost" in m])
    notes = []
    for label, values in (
        ("Code: unimetric", codes),
        ("Backbone:", weights),
        ("Images measured on, by their fingerprint:", images),
        ("Machine:", machines),
        ("Peak memory is that of the", memories),
    ):
        if values:
            warning = " (NOT the same for all runs)" if len(values) > 1 else ""
            notes.append(f"{label} {'; '.join(values)}{warning}.")
    return notes


def _machine(machine: dict[str, Any]) -> str:
    where = machine.get("gpu") or machine.get("processor") or "unknown processor"
    return f"{where}, {machine['threads']} threads, {machine['precision']}, torch {machine['torch']}"


def _distinct(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _run_line(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "entry": run.entry,
        "model": run.model,
        "seed": run.seed,
        "folder": run.folder,
        "measured on": run.config.evaluation.classes,
        **{f"trying {name}": value for name, value in (run.candidate or {}).items()},
        **{f"recall@1 {name}": scores["recall@1"] for name, scores in metrics["separate"].items()},
    }
    for part in ("harmonic", "unified"):
        line |= {f"{name} {part}": value for name, value in (metrics.get(part) or {}).items()}
    return line | {
        "trainable parameters": metrics["model"].get("trainable_parameters"),
        "training steps": metrics.get("training_steps"),
        "training seconds": metrics.get("training_seconds"),
        **{name.replace("_", " "): value for name, value in metrics.get("cost", {}).items()},
        "code sha256": metrics.get("provenance", {}).get("code", {}).get("sha256"),
        "data fingerprint": metrics.get("provenance", {}).get("data_fingerprint"),
    }


def _everything(
    plan: Plan, folder: Folder, rows: Sequence[Row], measured: Measured, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "title": plan.file.title,
        "file": plan.file.path.name,
        "datasets": list(plan.datasets),
        "rows": [
            {
                "name": row.name,
                "entry": row.entry,
                "seeds": list(row.seeds),
                "seeds_planned": list(row.planned),
                "values": row.values,
                "summary": {
                    column: asdict(summary) for column in row.values if (summary := row.summary(column)) is not None
                },
                "runs": [run.folder for run in row.runs],
            }
            for row in rows
        ],
        "runs": [
            {
                "entry": run.entry,
                "model": run.model,
                "seed": run.seed,
                "trying": run.candidate,
                "folder": run.folder,
                "command": command_line(arguments(run, folder)),
                "metrics": metrics,
            }
            for run, metrics in measured
        ],
        "notes": list(notes),
    }
