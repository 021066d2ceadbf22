"""The command line. Each command parses, calls one function, and prints; only those that compute import torch."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from unimetric import __version__
from unimetric.config import DeviceConfig, RunConfig, read_options, run_config
from unimetric.errors import UserError, nearest_names

_CONFIGS = Path(__file__).parent / "configs"


class _Parser(ArgumentParser):
    """Raises instead of printing a page of usage: a mistake is said in one line."""

    def dump(self, cfg: Namespace, **options: Any) -> str:
        """The configuration as ``--print_config`` prints it: a file that ``--config`` reads."""
        cfg = cfg.clone()
        sources = cfg.pop("sources", None)
        if sources:
            cfg["data.sources"] = sources
        for name in ("out", "resume", "model_folder", "ensemble"):
            cfg.pop(name, None)
        return str(super().dump(cfg, **options))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_explain(self, message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it worked, 1 when a check or a run of a benchmark found something wrong, 2 for bad input, 130 when it was
        stopped.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        parser = build_parser()
        namespace = parser.parse_args(_with_defaults(parser, argv))
        if namespace.subcommand is None:
            parser.print_help()
            return 0
        return _COMMANDS[namespace.subcommand](namespace[namespace.subcommand])
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return 2
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


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    # The commands' parsers take allow_abbrev over.
    parser = _Parser(prog="unimetric", description="One embedding model for all image collections.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"unimetric {__version__}")
    commands = parser.add_subcommands(
        required=False, dest="subcommand", description="unimetric COMMAND --help tells more"
    )

    train = _command("Train on one or more image collections, and measure on classes that were held out.")
    train.add_argument(
        "sources",
        nargs="*",
        type=str,
        help="Folders of class folders, or manifests; instead of data.sources.",
    )
    train.add_argument("--out", type=str, default=None, help="The run folder to write.")
    train.add_argument(
        "--resume",
        type=str,
        default=None,
        help="Continue this run folder, as it was configured; where it computes may be changed.",
    )
    _add_run_options(train)
    commands.add_subcommand("train", train, help="train a model")

    evaluate = _command(
        "Measure a trained model, several as an --ensemble, or with --model.method frozen a backbone as it is."
    )
    # Not "model": that is the name of a group of options.
    evaluate.add_argument(
        "model_folder", metavar="MODEL", nargs="?", type=str, default=None, help="A run folder or a model folder."
    )
    evaluate.add_argument(
        "sources",
        nargs="*",
        type=str,
        help="Folders of class folders, or manifests; instead of data.sources.",
    )
    evaluate.add_argument(
        "--ensemble",
        metavar="MODEL",
        nargs="+",
        action="extend",
        type=str,
        default=None,
        help="Run folders or model folders to measure as one, by the mean of their vectors. The data is that of the "
        "first run, all of its datasets, or what --data.sources names.",
    )
    evaluate.add_argument("--out", type=str, default=None, help="Folder for metrics.json; default: MODEL/evaluation.")
    _add_run_options(evaluate)
    commands.add_subcommand("evaluate", evaluate, help="measure a model")

    embed = _command("Embed images with a trained model.")
    embed.add_argument("model", type=str, help="A run folder or a model folder.")
    embed.add_argument(
        "sources", nargs="+", type=str, help="Folders of class folders, manifests, or folders of images."
    )
    embed.add_argument("--out", type=str, default=None, help="File to write: .parquet or .npz.")
    embed.add_argument(
        "--weights",
        type=str,
        default=None,
        help="The file of the backbone's weights, where the model was trained with --model.weights FILE.",
    )
    embed.add_argument("--batch_size", type=int, default=32, help="Images per forward pass.")
    embed.add_argument("--strict", action="store_true", help="Stop at an unreadable image instead of skipping it.")
    embed.add_class_arguments(DeviceConfig, "device")
    commands.add_subcommand("embed", embed, help="turn images into vectors")

    benchmark = _command(
        "Run a matrix of methods, losses, datasets and seeds, and write its tables: what is done is skipped, what was "
        "cut off goes on."
    )
    benchmark.add_argument(
        "matrix",
        metavar="CONFIG",
        type=str,
        help=f"The benchmark's YAML file, or a packaged one: {', '.join(_benchmark_names())}.",
    )
    benchmark.add_argument(
        "sources",
        nargs="*",
        type=str,
        help="Folders of class folders, or manifests; instead of data.sources.",
    )
    benchmark.add_argument("--out", type=str, default=None, help="The folder for runs and tables.")
    benchmark.add_argument("--dry_run", action="store_true", help="List the runs and their state; run nothing.")
    commands.add_subcommand("benchmark", benchmark, help="run a matrix of runs, and make its tables")

    datasets = _command("The eight benchmark datasets: list them, or check which of them a folder holds.")
    datasets.add_argument(
        "action", type=str, help="list: what they are; check: what of them ROOT holds, and what to download."
    )
    datasets.add_argument(
        "root", metavar="ROOT", nargs="?", type=str, default=None, help="For check: the folder that holds them."
    )
    datasets.add_argument(
        "--decode", action="store_true", help="For check: decode every image to find unreadable ones; takes minutes."
    )
    datasets.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    commands.add_subcommand("datasets", datasets, help="list and check the benchmark datasets")

    _add_report_commands(commands)

    demo = _command("Train PUMA on images that pip installs, and compare it with the frozen backbone. Takes minutes.")
    demo.add_argument("--out", type=str, default="runs/demo", help="The run folder to write.")
    demo.add_argument("--config", type=str, default="puma-short", help="The configuration, a file or a packaged name.")
    commands.add_subcommand("demo", demo, help="see it work")
    return parser


def _add_report_commands(commands: Any) -> None:
    report = _command("Write one HTML file: numbers with intervals, figures, and the most confident mistakes.")
    report.add_argument("run", metavar="RUN", type=str, help="A run folder, or a folder that unimetric evaluate wrote.")
    report.add_argument("--out", type=str, default=None, help="The file to write; default: RUN/report.html.")
    report.add_argument("--mistakes", type=int, default=6, help="Mistakes to show of each dataset.")
    report.add_argument("--neighbours", type=int, default=5, help="Neighbours to show beside each mistake.")
    report.add_argument("--points", type=int, default=2000, help="Points on the map, at most.")
    _add_model_options(report)
    commands.add_subcommand("report", report, help="write a run's report as HTML")

    compare = _command("Put runs side by side, with the probability that the difference from the first one is real.")
    compare.add_argument(
        "runs", metavar="RUN", nargs="+", type=str, help="Run folders, or folders that unimetric evaluate wrote."
    )
    compare.add_argument("--out", type=str, default=None, help="An HTML file to write as well.")
    compare.add_argument("--weights", type=str, default=None, help=_WEIGHTS_HELP)
    compare.add_class_arguments(DeviceConfig, "device")
    commands.add_subcommand("compare", compare, help="put runs side by side")

    inspect = _command("Show one image's nearest neighbours and prompt weights.")
    inspect.add_argument(
        "run", metavar="RUN", type=str, help="A run folder, or a folder that unimetric evaluate wrote."
    )
    inspect.add_argument("image", metavar="IMAGE", type=str, help="Any image.")
    inspect.add_argument("-k", "--k", type=int, default=8, help="How many neighbours.")
    inspect.add_argument("--out", type=str, default=None, help="The PNG file; default: RUN/inspect/NAME.png.")
    _add_model_options(inspect)
    commands.add_subcommand("inspect", inspect, help="show one image's neighbours")


_WEIGHTS_HELP = "The file of the backbone's weights, where the model was trained with --model.weights FILE."


def _add_model_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=str, default=None, help="A run folder or a model folder, where RUN holds no model."
    )
    parser.add_argument("--weights", type=str, default=None, help=_WEIGHTS_HELP)
    parser.add_class_arguments(DeviceConfig, "device")


def _command(description: str) -> ArgumentParser:
    return _Parser(description=f"{description} With --debug, errors show their traceback.")


def _add_run_options(parser: ArgumentParser) -> None:
    names = ", ".join(sorted(path.stem for path in _CONFIGS.glob("*.yaml")))
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help=f"YAML file with any of the options below, or a packaged one: {names}.",
    )
    parser.add_class_arguments(RunConfig)


def _run_config(options: Namespace) -> RunConfig:
    """The configuration that options and files add up to."""
    values = options.as_dict()
    config = run_config({name: values[name] for name in RunConfig.__dataclass_fields__}, "the configuration")
    sources = values.get("sources")
    return replace(config, data=replace(config.data, sources=sources)) if sources else config


def _train(options: Namespace) -> int:
    if options.out is None and options.resume is None:
        raise UserError("--out is missing: name the run folder to write, for example --out runs/first")
    if options.out is not None and options.resume is not None:
        raise UserError("--out and --resume are both given: --resume writes into the run that it continues")
    config = _run_config(options)
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
        if not folder.checkpoint.is_file():
            raise
        print(f"unimetric: stopped; {folder.how_to_resume}", file=sys.stderr)  # noqa: T201
        return 130
    if metrics and not metrics["counts"]["queries"]:
        _say(f"The model is in {folder.model}; nothing was held out to measure it on.")
    elif metrics:
        print_results([(config.model.method, metrics)])
        _say(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
    return 0


def _evaluate(options: Namespace) -> int:
    config = _run_config(options)
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
    return 0


def _embed(options: Namespace) -> int:
    if options.out is None:
        raise UserError("--out is missing: name a .parquet or an .npz file")
    from unimetric.commands.embed import embed_sources

    embedded = embed_sources(
        Path(options.model).expanduser(),
        options.sources,
        Path(options.out).expanduser(),
        batch_size=options.batch_size,
        strict=options.strict,
        device=DeviceConfig(**options.device.as_dict()),
        weights=options.weights,
    )
    for entry in embedded.skipped:
        _say(f"skipped {entry.item.path}: {entry.reason}")
    _say(f"{len(embedded.items)} vectors are in {options.out}; {len(embedded.skipped)} files were skipped.")
    return 0


def _benchmark(options: Namespace) -> int:
    if options.out is None:
        raise UserError("--out is missing: name the folder for runs and tables, for example --out runs/benchmark")
    from unimetric.commands.benchmark import list_benchmark, run_benchmark

    path, out = _benchmark_path(options.matrix), Path(options.out).expanduser()
    if options.dry_run:
        for name, state in list_benchmark(path, options.sources, out, check=_typed_config):
            print(f"{state:8} {name}")  # noqa: T201
        return 0
    outcome = run_benchmark(path, options.sources, out, check=_typed_config)
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


def _typed_config(values: Mapping[str, Any], origin: str) -> RunConfig:
    """A configuration from nested options, their names and types checked."""
    try:
        # Names first, in this project's words; values of a wrong type are for the parser to tell.
        with suppress(TypeError):
            run_config(values, origin)
        return run_config(_run_parser().parse_object(dict(values)).as_dict(), origin)
    except UserError as error:
        if str(error).startswith(origin):
            raise
        raise UserError(f"{origin}: {error}") from error


@cache
def _run_parser() -> ArgumentParser:
    parser = _Parser()
    parser.add_class_arguments(RunConfig)
    return parser


def _benchmark_names() -> list[str]:
    return sorted(path.stem for path in (_CONFIGS / "benchmark").glob("*.yaml"))


def _benchmark_path(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_file():
        return path
    packaged = _CONFIGS / "benchmark" / f"{text}.yaml"
    if packaged.is_file():
        return packaged
    raise UserError(f"{text}: no such file, nor a packaged benchmark; {nearest_names(text, _benchmark_names())}")


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


def _model_options(options: Namespace) -> dict[str, Any]:
    return {
        "model": None if options.model is None else Path(options.model).expanduser(),
        "weights": options.weights,
        "device": DeviceConfig(**options.device.as_dict()),
    }


def _demo(options: Namespace) -> int:
    from unimetric.commands.demo import run_demo
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted

    parser = build_parser()
    parsed = parser.parse_args(["train", "--config", _checked_config(parser, "train", options.config)])
    try:
        rows = run_demo(_run_config(parsed.train), Path(options.out).expanduser())
    except (Interrupted, KeyboardInterrupt) as news:
        done = news.done if isinstance(news, Interrupted) else "stopped"
        print(f"unimetric: {done}; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    print_results(rows)
    _say(f"The run is in {options.out}: model/ to load, metrics.json, log.jsonl, config.yaml.")
    return 0


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "embed": _embed,
    "benchmark": _benchmark,
    "datasets": _datasets,
    "report": _report,
    "compare": _compare,
    "inspect": _inspect,
    "demo": _demo,
}


def _with_defaults(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """Complete what was typed: names of packaged configurations, and a run's own configuration."""
    if not argv or argv[0] not in _COMMANDS:
        if argv and not argv[0].startswith("-"):
            raise UserError(f"unknown command {argv[0]!r}; {nearest_names(argv[0], _COMMANDS)}")
        return argv
    command = argv[0]
    if command not in ("train", "evaluate"):
        return argv
    argv = ["--data.strict=true" if argument == "--strict" else argument for argument in argv]
    files, typed = _take_configs(argv[1:])
    # Files come first, so that what is typed wins over them wherever it stands.
    checked = [_checked_config(parser, command, file) for file in files]
    without_print = [text for text in typed if not text.startswith("--print_config")]
    known = parser.parse_args([command, *_config_options(checked), *without_print])[command]
    members = known.ensemble if command == "evaluate" else None
    run = known.resume if command == "train" else members[0] if members else known.model_folder
    if command == "evaluate" and run and (option := next((text for text in typed if _is_model_option(text)), None)):
        raise UserError(f"{option.split('=')[0]}: {run} says itself what model it is; leave this option out")
    own = Path(run or "").expanduser() / "config.yaml"
    base = []
    if run and own.is_file():
        base = _config_options([_checked_config(parser, command, str(own))])
    if members:
        # Each member may know one dataset only; together they are measured on all.
        base += ["--data.train_datasets=[]", "--data.test_datasets=[]"]
    return [command, *base, *_config_options(checked), *typed]


def _take_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of ``--config``, and the other arguments."""
    files, others = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config" and (file := next(rest, None)) is not None:
            files.append(file)
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    return files, others


def _config_options(paths: Iterable[str]) -> list[str]:
    return [text for path in paths for text in ("--config", path)]


def _is_model_option(text: str) -> bool:
    """Whether it says what a trained model says itself: where its backbone's weights lie may be another place here."""
    return text.startswith(("--model.", "--model=")) and text.split("=")[0] != "--model.weights"


def _checked_config(parser: ArgumentParser, command: str, text: str) -> str:
    """The path of a configuration, by path or packaged name, after making sure that it is good."""
    path = _config_path(text)
    read_options(path)
    try:
        parser.parse_args([command, "--config", str(path)])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return str(path)


def _config_path(text: str) -> Path:
    path = Path(text).expanduser()
    if path.is_file():
        return path
    packaged = _CONFIGS / f"{text}.yaml"
    if packaged.is_file():
        return packaged
    names = [entry.stem for entry in _CONFIGS.glob("*.yaml")]
    raise UserError(f"--config {text}: no such file, nor a packaged configuration; {nearest_names(text, names)}")


def _explain(parser: ArgumentParser, message: str) -> str:
    """jsonargparse's message in the words of this project, with the nearest option where one is unknown."""
    if match := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        option = match[1].split("=")[0]
        if not option.startswith("-"):
            return f"unexpected argument {option!r}; name folders side by side, all before or all after the options"
        valid = [name for action in parser._actions for name in action.option_strings]
        return f"unknown option {option}; {nearest_names(option, valid)}"
    if match := re.match(r'Parser key "(.+?)":\s+Expected an? (.+?)\.\s+Got value:\s+(.*)', message, re.DOTALL):
        key, kind, value = match.groups()
        return f"--{key} is {value!r}: expected {_kind(kind)}"
    if match := re.match(
        r'Parser key "(.+?)":\s+Does not validate against any of the Union subtypes\s+Subtypes: \[(.*?)\]\n'
        r".*Given value: (.*)",
        message,
        re.DOTALL,
    ):
        key, kinds, value = match.groups()
        return f"--{key} is {value!r}: expected {_kind(kinds.replace(', ', ' or '))}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        return f"missing: {', '.join(name.split('.')[-1] for name in match[1].split(', '))}; see --help"
    return message


def _kind(text: str) -> str:
    return re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.Literal", "one of ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(text: str) -> None:
    from unimetric.progress import say

    say(text)


if __name__ == "__main__":
    sys.exit(main())
