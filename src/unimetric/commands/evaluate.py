"""Measure a trained model, several as an ensemble, or an untrained backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from unimetric.arguments import Common, PositiveInt, Without
from unimetric.config import RunConfig
from unimetric.config_resolution import with_shorthands
from unimetric.errors import MissingOptionError, OptionError, UserError
from unimetric.files import check_writable, make_folder, repeated, write_json
from unimetric.models.source import ModelSource
from unimetric.yaml_files import as_yaml

if TYPE_CHECKING:
    from unimetric.data.splits import Split
    from unimetric.models.embedder import Embedder
    from unimetric.models.ensemble import Ensemble
    from unimetric.training.provenance import Clock

_UNUSED = Without(
    {
        *("loss", "sampling", "training", "extension", "device.processes", "device.machines"),
        *("data.few_shot", "data.train_images", "data.replay_per_class", "data.workers", "data.train_datasets"),
        "evaluation.baseline",
    }
)
_COMMON = Common(
    {
        *("data.sources", "data.split", "data.split_seed", "data.validation_fraction", "data.test_datasets"),
        *("data.cache", "data.reduced_decode", "model.method", "model.backbone", "model.weights"),
        *("model.image_size", "model.pool", "evaluation.ks", "evaluation.batch_size", "evaluation.classes"),
        *("evaluation.mean_average_precision", "evaluation.budgets", "device.accelerator", "device.precision"),
    }
)


def evaluate(
    model_folder: Path | None = None,
    sources: list[str] | None = None,
    *,
    out: Path | None = None,
    ensemble: list[Path] | None = None,
    size: PositiveInt | None = None,
    strict: bool = False,
    print_config: bool = False,
    options: Annotated[RunConfig, _UNUSED, _COMMON],
) -> int:
    """Measure a trained model, several as an ensemble, or an untrained backbone.

    A backbone without a trained model is measured with --model.method frozen.

    Args:
        model_folder: Run folder or model folder.
        sources: Class folders, manifests or benchmark datasets. They replace --data.sources.
        out: Folder for metrics.json; by default MODEL_FOLDER/evaluation.
        ensemble: Models to measure as one, by the mean of their vectors. The data is that of the first.
        size: Numbers of a vector to measure; by default all.
        strict: Stop at an unreadable image or a query without a positive. Otherwise it is skipped.
        print_config: Print the configuration as YAML for --config, and stop.
        options: Data, backbone and protocol.
    """
    config = with_shorthands(options, sources, strict)
    if print_config:
        print(as_yaml(config), end="")  # noqa: T201
        return 0
    if ensemble and model_folder is not None:
        raise OptionError(
            f"{model_folder} and --ensemble are both given: name the models after --ensemble only, "
            "and the data with --data.sources"
        )
    if size is not None and model_folder is None:
        raise OptionError(f"--size is {size}, for a single trained model: name its folder, or leave --size out")
    if out is None and model_folder is not None:
        out = model_folder / "evaluation"
    if out is None:
        of = "the ensemble's metrics.json" if ensemble else "metrics.json"
        raise MissingOptionError(f"--out is missing: name the folder for {of}")
    from unimetric.progress import log_status
    from unimetric.report.tables import print_results

    metrics = evaluate_ensemble(config, ensemble, out) if ensemble else evaluate_model(config, model_folder, out, size)
    print_results([(metrics["model"]["method"], metrics)])
    log_status(f"The numbers are in {out / 'metrics.json'}.")
    log_status(f"For a page with the mistakes: unimetric report {out}")
    return 0


def evaluate_model(config: RunConfig, model: Path | None, out: Path, size: int | None = None) -> dict[str, Any]:
    """Measure a model folder, or the configured backbone without training, on the configured classes.

    Writes ``metrics.json``, which is returned, and ``vectors.parquet``. ``size`` is the numbers of a vector, None for
    all. If ``model.weights`` is a file, the backbone is read from it.

    Raises:
        UserError: the model or the data cannot be read, or nothing can be measured.
    """
    from unimetric.models.devices import choose_device
    from unimetric.models.petl import METHODS, method_options
    from unimetric.training.provenance import Clock
    from unimetric.training.setup import build_embedder

    clock = Clock.start()
    device = choose_device(config.device.accelerator)
    if model is None and METHODS.get(config.model.method) is not METHODS["frozen"]:
        raise UserError(
            f"--model.method is {config.model.method!r}: without a trained model only frozen can be measured; "
            "name a run folder, or add --model.method frozen"
        )
    if model is None:
        method_options(config.model.method, config.model.options)
    check_writable(out)
    split = _split(config)
    source = ModelSource(model, config.model.weights, config.device, size)
    embedder = build_embedder(config).to(device) if model is None else source.load()
    return _measure(config, split, embedder, out, clock)


def evaluate_ensemble(config: RunConfig, models: Sequence[Path], out: Path) -> dict[str, Any]:
    """Measure the mean embedding of several models as `evaluate_model` does one's.

    If ``model.weights`` differs from the first model's own configuration, all backbones are read from it.
    """
    from unimetric.formats.run_folder import RunFolder
    from unimetric.models.devices import choose_device
    from unimetric.models.ensemble import Ensemble
    from unimetric.training.provenance import Clock

    clock = Clock.start()
    device = choose_device(config.device.accelerator)
    if twice := repeated(models):
        raise UserError(f"--ensemble names {twice} twice: name each model once")
    check_writable(out)
    split = _split(config)
    own = RunFolder(models[0])
    recorded = own.read_config().model.weights if own.config.is_file() else "pretrained"
    weights = None if config.model.weights == recorded else config.model.weights
    ensemble = Ensemble.from_pretrained(models, weights=[ModelSource(model, weights).weights_file for model in models])
    return _measure(config, split, ensemble.to(device), out, clock)


def _split(config: RunConfig) -> Split:
    from unimetric.training.provenance import measured_sides
    from unimetric.training.setup import load_split

    split = load_split(config, training=False)
    if measured_sides(config, split)["query"]:
        return split
    if config.evaluation.classes == "validation":
        raise UserError(
            "--evaluation.classes is 'validation': no validation classes; set --data.validation_fraction, e.g. 0.5"
        )
    raise UserError(f"--data.split is {config.data.split!r}: no image is left to measure; use auto or test-only")


def _measure(config: RunConfig, split: Split, embedder: Embedder | Ensemble, out: Path, clock: Clock) -> dict[str, Any]:
    from unimetric.evaluation.budgets import measure_budgets
    from unimetric.formats.vectors import VECTORS_FILE, write_measured
    from unimetric.models.ensemble import Ensemble
    from unimetric.models.sizes import Sizes
    from unimetric.training.provenance import measured_sides, provenance
    from unimetric.training.setup import configured_evaluator, configured_reader, describe, log_split

    log_split(split)
    sides = measured_sides(config, split)
    read = configured_reader(config, embedder.transform.image_size, [*sides["query"], *sides["gallery"]])
    evaluate = configured_evaluator(config, read)
    measurement = evaluate(embedder, sides["query"], sides["gallery"], f"Measuring {embedder.method_name}")
    metrics = describe(config, embedder, measurement.metrics, [*split.unusable, *measurement.skipped])
    if config.evaluation.budgets and measurement.vectors is not None:
        sizes = Sizes() if isinstance(embedder, Ensemble) or embedder.whole is not None else embedder.sizes
        metrics["budgets"] = measure_budgets(measurement.vectors, sizes, embedder.geometry)
    # Train images are not used here.
    used = replace(split, train=())
    fingerprint = embedder.fingerprint if isinstance(embedder, Ensemble) else embedder.backbone.fingerprint
    metrics |= provenance(config, used, fingerprint, clock.cost(embedder.device))
    make_folder(out)
    if measurement.vectors is not None:
        write_measured(out / VECTORS_FILE, measurement.vectors)
    write_json(out / "metrics.json", metrics)
    return metrics
