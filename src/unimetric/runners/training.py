"""What train, extend, evaluate, prepare, benchmark, datasets and demo do with their options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from unimetric.arguments import build_parser
from unimetric.completion import checked_config, configured, typed_config
from unimetric.config import DeviceConfig, ExtendConfig
from unimetric.errors import UserError, escaped, nearest_names
from unimetric.packaged_configs import benchmark_path
from unimetric.runners import tell

if TYPE_CHECKING:
    from unimetric.formats.run_folder import RunFolder


def train(options: Namespace) -> int:
    """Train, or go on with a run, and print its table."""
    if options.out is None and options.resume is None:
        raise UserError("--out is missing: name the run folder to write, for example --out runs/first")
    if options.out is not None and options.resume is not None:
        raise UserError("--out and --resume are both given: --resume writes into the run that it continues")
    config = configured(options)
    # After the options have been found good, because torch takes seconds to load.
    from unimetric.formats.run_folder import RunFolder
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted
    from unimetric.training.loop import train

    folder = RunFolder(Path(options.resume or options.out).expanduser())
    try:
        metrics = train(config, folder, resume=options.resume is not None)
    except (Interrupted, KeyboardInterrupt) as news:
        return _stopped(news, folder)
    if metrics and not metrics["counts"]["queries"]:
        tell(f"The model is in {folder.model}; nothing was held out to measure it on.")
    elif metrics:
        print_results([(config.model.method, metrics)])
        tell(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
        tell(f"For a page with the mistakes: unimetric report {folder.path}")
    return 0


def extend(options: Namespace) -> int:
    """Add datasets to a trained model, or write its replay set."""
    if options.replay_only == (options.data is not None):
        raise UserError("name the new datasets with --data, or write a replay set only, with --replay_only")
    values = options.as_dict()
    config = ExtendConfig(**{name: values[name] for name in ExtendConfig.__dataclass_fields__})
    run = Path(options.run).expanduser()
    out = Path(options.out or f"{options.run.rstrip('/')}-extended").expanduser()
    from unimetric.commands.extend import extend_run, keep_replay_set
    from unimetric.formats.run_folder import RunFolder
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted

    if options.replay_only:
        keep_replay_set(run, config)
        return 0
    folder = RunFolder(out)
    try:
        extended, metrics = extend_run(run, options.data, out, config, DeviceConfig(**options.device.as_dict()))
    except (Interrupted, KeyboardInterrupt) as news:
        return _stopped(news, folder)
    if metrics["counts"]["queries"]:
        print_results([(extended.model.method, metrics)])
    tell(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
    return 0


def _stopped(news: BaseException, folder: RunFolder) -> int:
    """Say that a run was stopped and how to go on; of one that has written nothing yet there is nothing to say."""
    if isinstance(news, KeyboardInterrupt) and not folder.config.is_file():
        raise news
    said = f"stopped; {folder.how_to_resume}" if isinstance(news, KeyboardInterrupt) else str(news)
    print(f"unimetric: {said}", file=sys.stderr)  # noqa: T201
    return 130


def evaluate(options: Namespace) -> int:
    """Measure a model or an ensemble, and print the table."""
    config = configured(options)
    if options.ensemble and options.model_folder is not None:
        raise UserError(
            f"{options.model_folder} and --ensemble are both given: name the models after --ensemble only, "
            "and the data with --data.sources"
        )
    if options.ensemble and options.out is None:
        raise UserError("--out is missing: name the folder for the ensemble's metrics.json")
    from unimetric.commands.evaluate import evaluate_ensemble, evaluate_model
    from unimetric.report.tables import print_results

    model = None if options.model_folder is None else Path(options.model_folder).expanduser()
    if options.out is not None:
        out = Path(options.out).expanduser()
    elif model is not None:
        out = model / "evaluation"
    else:
        raise UserError("--out is missing: name the folder for metrics.json")
    if options.ensemble:
        metrics = evaluate_ensemble(config, [Path(path).expanduser() for path in options.ensemble], out)
    else:
        metrics = evaluate_model(config, model, out)
    print_results([(metrics["model"]["method"], metrics)])
    tell(f"The numbers are in {out / 'metrics.json'}.")
    tell(f"For a page with the mistakes: unimetric report {out}")
    return 0


def prepare(options: Namespace) -> int:
    """Write a cache of images resized once."""
    if options.out is None:
        raise UserError("--out is missing: name the cache's folder, for example --out cache")
    from unimetric.commands.prepare import prepare_sources

    out = Path(options.out).expanduser()
    try:
        prepared = prepare_sources(
            options.sources,
            out,
            side=options.side,
            format=options.format,
            workers=options.workers,
            strict=options.strict,
        )
    except KeyboardInterrupt:
        tell("unimetric: stopped, what was written is kept; run the same command again to go on")
        return 130
    for error in prepared.refused:
        tell(f"skipped {escaped(error)}")
    tell(
        f"{prepared.written} images written, {prepared.unchanged} unchanged; {len(prepared.refused)} files skipped."
        f" {prepared.images} images are in {out}: {prepared.bytes:,} bytes on the disk, for {prepared.source_bytes:,} "
        "bytes of image files."
    )
    tell(f"To use them: --data.cache {out} for train and evaluate, --cache {out} for embed.")
    return 0


def benchmark(options: Namespace) -> int:
    """Run a matrix of runs, and print its table."""
    if options.out is None:
        raise UserError("--out is missing: name the folder for runs and tables, for example --out runs/benchmark")
    from unimetric.commands.benchmark import list_benchmark, run_benchmark

    path, out = benchmark_path(options.matrix), Path(options.out).expanduser()
    if path.name != Path(options.matrix).name and Path(path.name).is_file():
        tell(f"note: {options.matrix} is the packaged benchmark; for the file in this folder, write ./{path.name}")
    if options.dry_run:
        for name, state in list_benchmark(path, options.sources, out, check=typed_config):
            print(f"{state:8} {name}")  # noqa: T201
        return 0
    outcome = run_benchmark(path, options.sources, out, check=typed_config)
    from unimetric.studies.tables import print_grid

    print_grid(outcome.title, outcome.grid, outcome.notes)
    tell(f"The tables are in {out}: table.md, table.csv, table.tex, results.csv, results.json.")
    if outcome.stopped:
        tell("unimetric: stopped, nothing is lost; run the same command again to go on")
        return 130
    for failure in outcome.failures:
        log = "" if failure.log is None else f"; see {failure.log}"
        tell(f"failed: {failure.run}: {failure.reason}{log}")
    return 1 if outcome.failures else 0


def datasets(options: Namespace) -> int:
    """List the benchmark datasets, or check those that are on the disk."""
    if options.action not in ("list", "check"):
        raise UserError(f"unknown action {options.action!r}; {nearest_names(options.action, ('list', 'check'))}")
    if options.action == "check" and options.root is None:
        raise UserError("ROOT is missing: name the folder that holds the datasets, as in unimetric datasets check ROOT")
    if options.action == "list" and (options.root is not None or options.decode):
        given = "--decode" if options.root is None else repr(options.root)
        raise UserError(f"list takes no {given}; leave it out, or write: unimetric datasets check ROOT")
    from unimetric.commands.datasets import check_datasets, exit_code, list_datasets, print_checks, print_datasets

    if options.action == "list":
        if options.json:
            print(json.dumps(list_datasets(), indent=2))  # noqa: T201
        else:
            print_datasets()
        return 0
    checks = check_datasets(Path(options.root).expanduser(), decode=options.decode)
    if options.json:
        print(json.dumps([check.as_json() for check in checks], indent=2))  # noqa: T201
    else:
        print_checks(checks)
    return exit_code(checks)


def demo(options: Namespace) -> int:
    """Make the demo's images, train, report and index."""
    from unimetric.commands.demo import DATABASE, run_demo
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted

    parser = build_parser()
    parsed = parser.parse_args(["train", "--config", checked_config(parser, "train", options.config)])
    try:
        out = Path(options.out).expanduser()
        rows = run_demo(configured(parsed.train), out)
    except (Interrupted, KeyboardInterrupt) as news:
        done = news.done if isinstance(news, Interrupted) else "stopped"
        print(f"unimetric: {done}; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    print_results(rows)
    tell(f"The run is in {options.out}: model/ to load, metrics.json, log.jsonl, config.yaml.")
    if (page := out / "report.html").is_file():
        tell(f"The page with the mistakes is {page}: open it in a browser.")
    if (database := out / DATABASE).is_dir():
        tell(f"For a search box on the same images: unimetric serve {database}")
    return 0
