"""The command line. Each command parses, calls one function, and prints; only those that compute import torch."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from unimetric.arguments import build_parser
from unimetric.completion import checked_config, configured, typed_config, with_defaults
from unimetric.config import DeviceConfig, ExtendConfig, ServiceConfig
from unimetric.errors import ProcessLost, UserError, escaped, nearest_names
from unimetric.packaged_configs import benchmark_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it worked, 1 when a check or a run of a benchmark found something wrong, one of several processes died or
        training came upon numbers that are not finite, 2 for bad input, 130 when it was stopped, 141 when nobody reads
        its output any more.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        parser = build_parser()
        namespace = parser.parse_args(with_defaults(parser, argv, _COMMANDS))
        if namespace.subcommand is None:
            parser.print_help()
            return 0
        return _COMMANDS[namespace.subcommand](namespace[namespace.subcommand])
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except ProcessLost as error:
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        # Whoever reads the output has had enough, as `| head` does. Nothing more can be said there, even at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug:
            traceback.print_exc()
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("unimetric: stopped", file=sys.stderr)  # noqa: T201
        return 130


def _train(options: Namespace) -> int:
    if options.out is None and options.resume is None:
        raise UserError("--out is missing: name the run folder to write, for example --out runs/first")
    if options.out is not None and options.resume is not None:
        raise UserError("--out and --resume are both given: --resume writes into the run that it continues")
    config = configured(options)
    # After the options have been found good, because torch takes seconds to load.
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted
    from unimetric.training.loop import train
    from unimetric.training.run import RunFolder

    folder = RunFolder(Path(options.resume or options.out).expanduser())
    try:
        metrics = train(config, folder, resume=options.resume is not None)
    except Interrupted as news:
        print(f"unimetric: {news}", file=sys.stderr)  # noqa: T201
        return 130
    except KeyboardInterrupt:
        if not folder.config.is_file():
            raise
        print(f"unimetric: stopped; {folder.how_to_resume}", file=sys.stderr)  # noqa: T201
        return 130
    if metrics and not metrics["counts"]["queries"]:
        _say(f"The model is in {folder.model}; nothing was held out to measure it on.")
    elif metrics:
        print_results([(config.model.method, metrics)])
        _say(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
        _say(f"For a page with the mistakes: unimetric report {folder.path}")
    return 0


def _extend(options: Namespace) -> int:
    if options.replay_only == (options.data is not None):
        raise UserError("name the new datasets with --data, or write a replay set only, with --replay_only")
    values = options.as_dict()
    config = ExtendConfig(**{name: values[name] for name in ExtendConfig.__dataclass_fields__})
    run = Path(options.run).expanduser()
    out = Path(options.out or f"{options.run.rstrip('/')}-extended").expanduser()
    from unimetric.commands.extend import extend_run, keep_replay_set
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted
    from unimetric.training.run import RunFolder

    if options.replay_only:
        keep_replay_set(run, config)
        return 0
    folder = RunFolder(out)
    try:
        extended, metrics = extend_run(run, options.data, out, config, DeviceConfig(**options.device.as_dict()))
    except Interrupted as news:
        print(f"unimetric: {news}", file=sys.stderr)  # noqa: T201
        return 130
    except KeyboardInterrupt:
        if not folder.config.is_file():
            raise
        print(f"unimetric: stopped; {folder.how_to_resume}", file=sys.stderr)  # noqa: T201
        return 130
    if metrics["counts"]["queries"]:
        print_results([(extended.model.method, metrics)])
    _say(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
    return 0


def _evaluate(options: Namespace) -> int:
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
    _say(f"The numbers are in {out / 'metrics.json'}.")
    _say(f"For a page with the mistakes: unimetric report {out}")
    return 0


def _embed(options: Namespace) -> int:
    if options.out is None:
        raise UserError("--out is missing: name a .parquet or an .npz file")
    if options.engine not in ("plain", "ray"):
        raise UserError(f"--engine is {options.engine!r}; {nearest_names(options.engine, ('plain', 'ray'))}")
    if options.engine == "ray" or options.shard is not None:
        return _embed_fragments(options)
    if options.thumbnails or options.workers is not None:
        raise UserError("--thumbnails and --workers are for fragments: add --engine ray, or leave them out")
    from unimetric.commands.embed import embed_sources

    embedded = embed_sources(
        Path(options.model).expanduser(),
        options.sources,
        Path(options.out).expanduser(),
        batch_size=options.batch_size,
        strict=options.strict,
        device=DeviceConfig(**options.device.as_dict()),
        weights=options.weights,
        cache=options.cache,
    )
    for entry in embedded.skipped:
        _say(f"skipped {escaped(entry.item.path)}: {entry.reason}")
    _say(f"{len(embedded.items)} vectors are in {options.out}; {len(embedded.skipped)} files were skipped.")
    return 0


def _prepare(options: Namespace) -> int:
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
        _say("unimetric: stopped, what was written is kept; run the same command again to go on")
        return 130
    for error in prepared.refused:
        _say(f"skipped {escaped(error)}")
    _say(
        f"{prepared.written} images written, {prepared.unchanged} unchanged; {len(prepared.refused)} files skipped."
        f" {prepared.images} images are in {out}: {prepared.bytes:,} bytes on the disk, for {prepared.source_bytes:,} "
        "bytes of image files."
    )
    _say(f"To use them: --data.cache {out} for train and evaluate, --cache {out} for embed.")
    return 0


def _export(options: Namespace) -> int:
    from unimetric.commands.export import export_models

    exported = export_models(
        [Path(model).expanduser() for model in options.models],
        None if options.out is None else Path(options.out).expanduser(),
        kind=options.format,
        overwrite=options.overwrite,
        weights=options.weights,
    )
    if exported.reason:
        _say(f"note: {exported.images - exported.real} of the images it was checked on are noise: {exported.reason}")
    _say(
        f"The model is in {exported.path}: on {exported.images} images, its vectors are within "
        f"{exported.difference:.1e} of the original's, as a share of their length."
    )
    return 0


def _embed_fragments(options: Namespace) -> int:
    if options.out.endswith((".parquet", ".npz")):
        raise UserError(f"--out is {options.out}: name a folder or a URI, fragments are several files")
    if options.workers is not None and options.engine != "ray":
        raise UserError(f"--workers is {options.workers}: add --engine ray, or start one command per --shard")
    from unimetric.scale.run import SKIPPED_FILE, embed_fragments

    try:
        embedded = embed_fragments(
            Path(options.model).expanduser(),
            options.sources,
            options.out,
            engine=options.engine,
            shard=options.shard or "1/1",
            workers=options.workers,
            fragment_rows=options.fragment_rows,
            batch_size=options.batch_size,
            thumbnails=options.thumbnails,
            strict=options.strict,
            device=DeviceConfig(**options.device.as_dict()),
            weights=options.weights,
        )
    except KeyboardInterrupt:
        _say("unimetric: stopped, finished fragments are kept; run the same command again to go on")
        return 130
    for entry in embedded.skipped[:20]:
        _say(f"skipped {escaped(entry.path)}: {entry.reason}")
    whole = embedded.finished == embedded.fragments
    _say(
        f"{embedded.rows} vectors are in {options.out}, {embedded.finished} of {embedded.fragments} fragments; "
        f"{len(embedded.skipped)} files were skipped" + (f", see {SKIPPED_FILE} there." if whole else ".")
    )
    return 0


def _index(options: Namespace) -> int:
    if options.db is None:
        raise UserError("--db is missing: name the database's folder, for example --db catalogue.db")
    changes = options.delete_dataset or options.delete_path or options.build_index or options.optimise
    if options.model is None and not changes:
        raise UserError("MODEL is missing: write unimetric index MODEL FOLDER --db PATH, or an option that deletes")
    if options.vectors:
        return _import_fragments(options)
    if options.model is not None and not options.sources:
        raise UserError(f"nothing to index: name folders or manifests after the model {options.model}")
    from unimetric.commands.index import change_database, index_sources

    if options.model is not None:
        if options.delete_dataset or options.delete_path:
            raise UserError("--delete_dataset and --delete_path take no MODEL: delete first, then index")
        try:
            indexed, count, refreshed = index_sources(
                Path(options.model).expanduser(),
                options.sources,
                options.db,
                dataset=options.dataset,
                batch_size=options.batch_size,
                commit_rows=options.commit_rows,
                strict=options.strict,
                delete_missing=options.delete_missing,
                metrics=options.metrics,
                false_match_rate=options.false_match_rate,
                weights=options.weights,
                device=DeviceConfig(**options.device.as_dict()),
            )
        except KeyboardInterrupt:
            _say("unimetric: stopped, what was written is kept; run the same command again to go on")
            return 130
        for entry in indexed.refused:
            _say(f"skipped {escaped(entry.path)}: {entry.reason}")
        deleted = f", {indexed.deleted} deleted" if options.delete_missing else ""
        _say(
            f"{indexed.written} rows written, {indexed.unchanged} unchanged{deleted}; "
            f"{len(indexed.refused)} files were skipped. {count} rows are in {options.db}."
        )
        if refreshed:
            _say("The approximate index is up to date.")
    if changes:
        removed, kind = change_database(
            options.db,
            datasets=options.delete_dataset or [],
            paths=options.delete_path or [],
            build=options.build_index,
            optimise=options.optimise,
        )
        if options.delete_dataset or options.delete_path:
            _say(f"{removed} rows were deleted.")
        if kind is not None:
            _say("Every search is exact now." if kind == "none" else f"An index of kind {kind} was made.")
    return 0


def _import_fragments(options: Namespace) -> int:
    if options.sources or options.delete_missing or options.delete_dataset or options.delete_path or options.dataset:
        raise UserError("--vectors takes MODEL and --db only: index folders and delete in commands of their own")
    if options.model is None:
        raise UserError("MODEL is missing: write unimetric index MODEL --vectors FOLDER --db PATH")
    from unimetric.commands.index import index_fragments

    imported, count, refreshed = index_fragments(
        Path(options.model).expanduser(),
        options.vectors,
        options.db,
        metrics=options.metrics,
        false_match_rate=options.false_match_rate,
        weights=options.weights,
    )
    _say(f"{imported.written} rows written, {imported.unchanged} unchanged. {count} rows are in {options.db}.")
    if refreshed:
        _say("The approximate index is up to date.")
    return 0


def _search(options: Namespace) -> int:
    with _without_collector():
        from unimetric.commands.search import print_answers, search_images

        answers = search_images(
            options.db,
            options.images,
            options.k,
            datasets=options.dataset,
            where=options.where,
            exact=options.exact,
            false_match_rate=options.false_match_rate,
            engine=options.engine,
            **_model_options(options),
        )
    if options.json:
        print(json.dumps([answer.as_json() for answer in answers], indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print_answers(answers)
    return 0


def _benchmark(options: Namespace) -> int:
    if options.out is None:
        raise UserError("--out is missing: name the folder for runs and tables, for example --out runs/benchmark")
    from unimetric.commands.benchmark import list_benchmark, run_benchmark

    path, out = benchmark_path(options.matrix), Path(options.out).expanduser()
    if path.name != Path(options.matrix).name and Path(path.name).is_file():
        _say(f"note: {options.matrix} is the packaged benchmark; for the file in this folder, write ./{path.name}")
    if options.dry_run:
        for name, state in list_benchmark(path, options.sources, out, check=typed_config):
            print(f"{state:8} {name}")  # noqa: T201
        return 0
    outcome = run_benchmark(path, options.sources, out, check=typed_config)
    from unimetric.benchmark.tables import print_grid

    print_grid(outcome.title, outcome.grid, outcome.notes)
    _say(f"The tables are in {out}: table.md, table.csv, table.tex, results.csv, results.json.")
    if outcome.stopped:
        _say("unimetric: stopped, nothing is lost; run the same command again to go on")
        return 130
    for failure in outcome.failures:
        log = "" if failure.log is None else f"; see {failure.log}"
        _say(f"failed: {failure.run}: {failure.reason}{log}")
    return 1 if outcome.failures else 0


def _datasets(options: Namespace) -> int:
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


def _report(options: Namespace) -> int:
    from unimetric.commands.report import report_run

    run = Path(options.run).expanduser()
    out = Path(options.out).expanduser() if options.out else run / "report.html"
    for note in report_run(
        run,
        out,
        mistakes=options.mistakes,
        neighbours=options.neighbours,
        points=options.points,
        **_model_options(options),
    ):
        _say(f"note: {note}")
    _say(f"The report is in {out}.")
    return 0


def _compare(options: Namespace) -> int:
    from unimetric.commands.report import compare_to_file

    compare_to_file(
        [Path(run).expanduser() for run in options.runs],
        Path(options.out).expanduser() if options.out else None,
        weights=options.weights,
        device=DeviceConfig(**options.device.as_dict()),
    )
    if options.out:
        _say(f"The comparison is in {options.out}.")
    return 0


def _inspect(options: Namespace) -> int:
    from unimetric.commands.report import inspect_to_file

    run, image = Path(options.run).expanduser(), Path(options.image).expanduser()
    out = Path(options.out).expanduser() if options.out else run / "inspect" / f"{image.stem}.png"
    inspect_to_file(run, image, out, k=options.k, **_model_options(options))
    _say(f"The picture is in {out}.")
    return 0


def _serve(options: Namespace) -> int:
    values = options.as_dict()
    config = ServiceConfig(**{name: values[name] for name in ServiceConfig.__dataclass_fields__})
    from unimetric.commands.serve import serve

    return serve(options.db, config, **_model_options(options))


def _model_options(options: Namespace) -> dict[str, Any]:
    return {
        "model": None if options.model is None else Path(options.model).expanduser(),
        "weights": options.weights,
        "device": DeviceConfig(**options.device.as_dict()),
    }


def _demo(options: Namespace) -> int:
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
    _say(f"The run is in {options.out}: model/ to load, metrics.json, log.jsonl, config.yaml.")
    if (page := out / "report.html").is_file():
        _say(f"The page with the mistakes is {page}: open it in a browser.")
    if (database := out / DATABASE).is_dir():
        _say(f"For a search box on the same images: unimetric serve {database}")
    return 0


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": _train,
    "extend": _extend,
    "evaluate": _evaluate,
    "embed": _embed,
    "prepare": _prepare,
    "export": _export,
    "index": _index,
    "search": _search,
    "benchmark": _benchmark,
    "datasets": _datasets,
    "report": _report,
    "compare": _compare,
    "inspect": _inspect,
    "serve": _serve,
    "demo": _demo,
}


@contextmanager
def _without_collector() -> Iterator[None]:
    """For what is mostly imports: all that they make stays, and to look through it for garbage takes a seventh more."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _one_line(text: str) -> str:
    return escaped(" ".join(text.split()))


def _say(text: str) -> None:
    from unimetric.progress import say

    say(text)


if __name__ == "__main__":
    sys.exit(main())
