"""The parser of the command line: what can be typed, and what is said about what cannot."""

from __future__ import annotations

import re
from typing import Any, Literal, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from unimetric import __version__
from unimetric.config import DeviceConfig, ExtendConfig, RunConfig, ServiceConfig
from unimetric.errors import UserError, nearest_names
from unimetric.packaged_configs import benchmark_names, config_names

_WEIGHTS_HELP = "The file of the backbone's weights, where the model was trained with --model.weights FILE."


class Parser(ArgumentParser):
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
        """Raise a `UserError` with the message in this project's words."""
        raise UserError(_explain(self, message))


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    # The commands' parsers take allow_abbrev over.
    parser = Parser(prog="unimetric", description="One embedding model for all image collections.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"unimetric {__version__}")
    commands = parser.add_subcommands(
        required=False, dest="subcommand", description="unimetric COMMAND --help tells more"
    )

    train = _command("Train on one or more image collections, and measure on classes that were held out.")
    train.add_argument(
        "sources",
        nargs="*",
        type=str,
        help="Folders of class folders, manifests, or benchmark datasets; instead of data.sources.",
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

    extend = _command(
        "Add datasets to a trained model, without its old images: a few small ones of each class are trained on again, "
        "and the embeddings are held to their old places."
    )
    extend.add_argument("run", metavar="RUN", type=str, help="The run folder of the model.")
    extend.add_argument(
        "--data",
        metavar="SOURCE",
        nargs="+",
        action="extend",
        type=str,
        default=None,
        help="The new datasets: folders of class folders, manifests, or benchmark datasets.",
    )
    extend.add_argument("--out", type=str, default=None, help="The run folder to write; default: RUN-extended.")
    extend.add_argument(
        "--replay_only", action="store_true", help="Only write RUN's replay set, from its images, for later."
    )
    extend.add_argument(
        "--compatible",
        action="store_true",
        help="Hold new embeddings to old ones closely enough that they can search in old indexes.",
    )
    extend.add_class_arguments(ExtendConfig, skip={"compatible"})
    extend.add_class_arguments(DeviceConfig, "device")
    commands.add_subcommand("extend", extend, help="add datasets to a trained model")

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
        help="Folders of class folders, manifests, or benchmark datasets; instead of data.sources.",
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
        "sources",
        nargs="+",
        type=str,
        help="Folders of class folders, manifests, or folders of images; into fragments also .tar shards (WebDataset), "
        "Parquet files with a column image, and URIs such as s3://bucket/photos.",
    )
    embed.add_argument(
        "--out",
        type=str,
        default=None,
        help="File to write: .parquet or .npz; with --engine ray or --shard the folder or URI of the fragments.",
    )
    embed.add_argument("--engine", type=str, default="plain", help="plain: this process. ray: many workers, fragments.")
    embed.add_argument(
        "--shard",
        metavar="I/N",
        type=str,
        default=None,
        help="Write fragments, and of every N only the I-th: N such commands, on any machines, make all. 1/1: all.",
    )
    embed.add_argument(
        "--workers", type=int, default=None, help="For ray: models at once; default: one per GPU, else per machine."
    )
    embed.add_argument("--fragment_rows", type=int, default=8192, help="Images per fragment, at most.")
    embed.add_argument("--thumbnails", action="store_true", help="Keep a small JPEG of every image in the fragments.")
    embed.add_argument(
        "--weights",
        type=str,
        default=None,
        help=_WEIGHTS_HELP,
    )
    embed.add_argument("--cache", type=str, default=None, help="A folder that unimetric prepare wrote, to read from.")
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
        help=f"The benchmark's YAML file, or a packaged one: {', '.join(benchmark_names())}.",
    )
    benchmark.add_argument(
        "sources",
        nargs="*",
        type=str,
        help="Folders of class folders, manifests, or benchmark datasets; instead of data.sources.",
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

    _add_prepare_command(commands)
    _add_export_command(commands)
    _add_search_commands(commands)
    _add_report_commands(commands)

    serve = _command(
        "Serve a search database: a web page, and a REST API that is described at /openapi.json. Ctrl-C ends it, after "
        "what was taken is finished."
    )
    serve.add_argument("db", metavar="DB", type=str, help="The database that unimetric index wrote, a folder or a URI.")
    serve.add_argument(
        "--writable",
        action="store_true",
        help="Let items be added and deleted by whoever shows the token in the environment variable UNIMETRIC_TOKEN.",
    )
    serve.add_class_arguments(ServiceConfig, skip={"writable"})
    _add_model_options(serve, "where it is not the one that the database was made with.")
    commands.add_subcommand("serve", serve, help="search over HTTP, with a web page")

    demo = _command("Train PUMA on images that pip installs, and compare it with the frozen backbone. Takes minutes.")
    demo.add_argument("--out", type=str, default="runs/demo", help="The run folder to write.")
    demo.add_argument("--config", type=str, default="puma-short", help="The configuration, a file or a packaged name.")
    commands.add_subcommand("demo", demo, help="see it work")
    return parser


def _add_prepare_command(commands: Any) -> None:
    prepare = _command(
        "Resize images once into a cache, for --data.cache of train and evaluate and --cache of embed: what it holds "
        "and is unchanged is skipped, what was cut off goes on."
    )
    prepare.add_argument(
        "sources", nargs="+", type=str, help="Folders of class folders, manifests, datasets, or folders of images."
    )
    prepare.add_argument("--out", type=str, default=None, help="The cache's folder.")
    prepare.add_argument(
        "--side", type=int, default=256, help="Shorter side in pixels of what is stored; 8/7 of the model's input."
    )
    prepare.add_argument(
        "--format", type=str, default="jpeg", help="jpeg: small; raw: exact and fast, about ten times the disk space."
    )
    prepare.add_argument(
        "--workers", type=int | Literal["auto"], default="auto", help="Threads; auto: one per core, at most 8."
    )
    prepare.add_argument("--strict", action="store_true", help="Stop at an unreadable image instead of skipping it.")
    commands.add_subcommand("prepare", prepare, help="resize images once, for faster training")


def _add_export_command(commands: Any) -> None:
    export = _command(
        "Write a trained model as one file that runs without this package: ONNX, or what torch.export.load reads. Its "
        "vectors are compared with the model's own first, on 64 images."
    )
    export.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        type=str,
        help="A run folder or a model folder; several are exported as one, by the mean of their vectors.",
    )
    export.add_argument("--format", type=str, default="onnx", help="onnx or torch.")
    export.add_argument(
        "--precision",
        type=str,
        default="fp32",
        help="fp32; or int8, ONNX alone: a quarter of the size, faster, a little less exact.",
    )
    export.add_argument(
        "--out",
        type=str,
        default=None,
        help="The file; default: MODEL/model.onnx, MODEL/model.int8.onnx or MODEL/model.pt2.",
    )
    export.add_argument("--overwrite", action="store_true", help="Replace the file if it exists.")
    export.add_argument("--weights", type=str, default=None, help=_WEIGHTS_HELP)
    commands.add_subcommand("export", export, help="write a model as one ONNX or torch file")


def _add_search_commands(commands: Any) -> None:
    index = _command(
        "Embed images into a search database: what is unchanged is skipped, what was cut off goes on. Without MODEL, "
        "delete rows or make the index anew."
    )
    index.add_argument("model", metavar="MODEL", nargs="?", type=str, default=None, help="A run or a model folder.")
    index.add_argument(
        "sources", nargs="*", type=str, help="Folders of class folders, manifests, or folders of images."
    )
    index.add_argument(
        "--vectors",
        metavar="FOLDER",
        nargs="+",
        action="extend",
        type=str,
        default=None,
        help="Fragments that unimetric embed --engine ray or --shard wrote with MODEL: their rows are taken over.",
    )
    index.add_argument("--db", type=str, default=None, help="The database: a folder, or a URI such as s3://bucket/db.")
    index.add_argument("--dataset", type=str, default=None, help="What to call the source's dataset; as NAME=PATH.")
    index.add_argument(
        "--delete_missing", action="store_true", help="Delete rows of the same datasets that the sources do not name."
    )
    index.add_argument(
        "--delete_dataset", metavar="NAME", nargs="+", action="extend", type=str, default=None, help="Delete datasets."
    )
    index.add_argument(
        "--delete_path",
        metavar="PATH",
        nargs="+",
        action="extend",
        type=str,
        default=None,
        help="Delete the rows of files, or of all files below folders.",
    )
    index.add_argument("--build_index", type=str, default=None, help="Make it anew: auto, ivf-pq, hnsw, or none.")
    index.add_argument("--optimise", action="store_true", help="Merge small files, bring the index up to date.")
    index.add_argument("--metrics", type=str, default=None, help="Where the thresholds are; default: MODEL's own.")
    index.add_argument(
        "--false_match_rate", type=float, default=None, help="What the threshold keeps: 0.1, 0.01, 0.001 or 0.0001."
    )
    index.add_argument("--batch_size", type=int, default=32, help="Images per forward pass.")
    index.add_argument("--commit_rows", type=int, default=1024, help="Rows to write at once; at most 10 s apart.")
    index.add_argument("--strict", action="store_true", help="Stop at an unreadable image instead of skipping it.")
    index.add_argument("--weights", type=str, default=None, help=_WEIGHTS_HELP)
    index.add_class_arguments(DeviceConfig, "device")
    commands.add_subcommand("index", index, help="make or update a search database")

    search = _command("Find the images of a database that are most similar to an image.")
    search.add_argument("db", metavar="DB", type=str, help="A database that unimetric index made.")
    search.add_argument("images", metavar="IMAGE", nargs="+", type=str, help="Any images.")
    search.add_argument("-k", "--k", type=int, default=10, help="How many answers.")
    search.add_argument(
        "--dataset",
        metavar="NAME",
        nargs="+",
        action="extend",
        type=str,
        default=None,
        help="Search in these datasets only.",
    )
    search.add_argument("--where", type=str, default=None, help="A condition on the columns, such as 'price < 20'.")
    search.add_argument("--exact", action="store_true", help="Compare with every row, past any approximate index.")
    search.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    search.add_argument(
        "--false_match_rate", type=float, default=None, help="What the threshold keeps; default: as recorded."
    )
    search.add_argument(
        "--engine",
        type=str,
        default="auto",
        help="What embeds the images: torch; onnx, the file that unimetric export wrote, which starts several times as "
        "fast; or auto, that file where it lies with the model, else torch.",
    )
    search.add_argument(
        "--model", type=str, default=None, help="The model's folder, where it was moved; or an exported .onnx file."
    )
    search.add_argument("--weights", type=str, default=None, help=_WEIGHTS_HELP)
    search.add_class_arguments(DeviceConfig, "device")
    commands.add_subcommand("search", search, help="search a database by images")


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


def _add_model_options(parser: ArgumentParser, when: str = "where RUN holds no model.") -> None:
    parser.add_argument("--model", type=str, default=None, help=f"A run folder or a model folder, {when}")
    parser.add_argument("--weights", type=str, default=None, help=_WEIGHTS_HELP)
    parser.add_class_arguments(DeviceConfig, "device")


def _command(description: str) -> ArgumentParser:
    return Parser(description=f"{description} With --debug, errors show their traceback.")


def _add_run_options(parser: ArgumentParser) -> None:
    names = ", ".join(config_names())
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help=f"YAML file with any of the options below, or a packaged one: {names}.",
    )
    parser.add_class_arguments(RunConfig)


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
