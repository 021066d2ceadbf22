"""Split, model and image reader from a configuration, and the description of measured numbers."""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import unimetric
from unimetric.config import DataConfig, RunConfig
from unimetric.cpu import available_cores
from unimetric.data.cache import ImageReader, image_reader
from unimetric.data.catalog import Dataset, Item, Unusable
from unimetric.data.copies import copy_notes
from unimetric.data.labels import clean_label
from unimetric.data.replay import read_replay
from unimetric.data.sampling import sampler_options
from unimetric.data.selection import OTHERS, check_names, select_train
from unimetric.data.sources import read_sources
from unimetric.data.sources.tree import unusable_files
from unimetric.data.splits import Split, split_datasets
from unimetric.errors import UserError, escaped
from unimetric.evaluation.evaluate_split import Evaluator, Measurement
from unimetric.geometry import Geometry, Sphere
from unimetric.integrations.loggers import chosen_loggers
from unimetric.losses import LOSSES, loss_geometry, make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.devices import choose_precision
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.petl import METHODS, method_options
from unimetric.models.sizes import Sizes
from unimetric.progress import log_notes, log_status
from unimetric.training.extension import replay_folder
from unimetric.training.provenance import describe_processor


def check_options(config: RunConfig) -> None:
    """Check the names and options of method, loss and sampler, before images are read and a backbone is loaded.

    Raises:
        UserError: unknown method, loss, sampler or option, a logger that is not installed, a value of the wrong type
            or range, or a geometry that is not the loss's.
    """
    method_options(config.model.method, config.model.options)
    model = config.model
    chosen_loggers(config.training.loggers)
    make_loss(config.loss.name, 2, model.embedding_size, config.loss.options)
    if config.training.shard_proxies and config.loss.name != "curricularface":
        raise UserError(
            f"--training.shard_proxies is true, but --loss.name is {config.loss.name!r}: only the proxies of "
            "curricularface can be divided; use that, or false"
        )
    geometry = choose_geometry(config)
    for option, value, default in (
        ("model.nested_sizes", model.nested_sizes, []),
        ("training.start", config.training.start, "random"),
    ):
        if value != default and geometry.name != "sphere":
            raise UserError(
                f"--{option} is {value!r}, which is for embeddings on the sphere, but --loss.name {config.loss.name} "
                f"works on {geometry.name!r}: use another loss, or {default!r}"
            )
    if model.nested_sizes and config.training.shard_proxies:
        raise UserError(
            f"--model.nested_sizes is {model.nested_sizes} and --training.shard_proxies is true: proxies that are "
            "divided have no nested sizes; leave one of the two out"
        )
    sampler_options(config.sampling.name, config.sampling.options, LOSSES[config.loss.name].images_per_class)


def load_split(config: RunConfig, *, training: bool = True) -> Split:
    """Read the configured sources and divide their classes; a `UserError` if a side is empty.

    Args:
        config: The data's sources and selection.
        training: True if the train side is used. If not, ``data.train_datasets`` and ``data.train_images`` may name
            datasets that are in no source: those that a model, measured on other data now, was trained on.
    """
    data = _with_clean_names(config.data)
    datasets = read_sources(data.sources)
    _check_datasets(data, [dataset.name for dataset in datasets], training)
    split = split_datasets(
        datasets,
        strategy=data.split,
        seed=data.split_seed,
        validation_fraction=data.validation_fraction,
        train_datasets=data.train_datasets,
        test_datasets=data.test_datasets,
        needs_train=training,
    )
    split = select_train(split, few_shot=data.few_shot, train_images=data.train_images, seed=data.split_seed)
    if training and config.extension.base is not None:
        # The replayed images before the new ones.
        split = replace(split, train=(*read_replay(replay_folder(config.extension.base)).items, *split.train))
    unusable = tuple(unusable_files(datasets, data.strict))
    notes = [note for dataset in datasets for note in dataset.notes]
    return replace(split, notes=(*notes, *_left_out(datasets), *split.notes), unusable=unusable)


def _with_clean_names(data: DataConfig) -> DataConfig:
    """Return the options with the names of datasets in the form that sources give them."""
    return replace(
        data,
        train_datasets=[*map(clean_label, data.train_datasets)],
        test_datasets=[*map(clean_label, data.test_datasets)],
        train_images={clean_label(name): count for name, count in data.train_images.items()},
    )


def _check_datasets(data: DataConfig, datasets: Sequence[str], training: bool) -> None:
    check_names("data.test_datasets", data.test_datasets, datasets)
    if data.test_datasets and data.split == "train-only":
        raise UserError(
            f"--data.test_datasets is {data.test_datasets}, but --data.split is 'train-only', which tests on nothing: "
            "leave one of the two out"
        )
    if training:
        check_names("data.train_datasets", data.train_datasets, datasets)
        check_names("data.train_images", [name for name in data.train_images if name != OTHERS], datasets)


def log_split(split: Split) -> None:
    """Print the size of each dataset's sides, and the notes of the split."""
    parts = {"train on": split.train, "validate on": split.validation, "test on": (*split.query, *split.gallery)}
    for dataset in dict.fromkeys(item.dataset for items in parts.values() for item in items):
        said: list[str] = []
        for use, items in parts.items():
            members = {item.path: item.label for item in items if item.dataset == dataset}
            if members:
                classes, images = len(set(members.values())), len(members)
                size = f"{classes} / {images}" if said else f"{classes} classes / {images} images"
                said.append(f"{size} to {use}")
        log_status(f"{dataset}: {', '.join(said)}")
    log_notes((*split.notes, *copy_notes(split)))


def _left_out(datasets: Sequence[Dataset]) -> Iterator[str]:
    for dataset in datasets:
        if images := dataset.ignored:
            yield (
                f"dataset {dataset.name!r}: {len(images)} images are left out, because they lie outside of any class "
                f"folder or repeat another; the first is {escaped(images[0])}"
            )
        if dataset.unusable:
            first = dataset.unusable[0]
            yield (
                f"dataset {dataset.name!r}: {len(dataset.unusable)} entries of its folders are skipped, because they "
                f"cannot be opened or named; the first is {escaped(first.path)}: {first.reason}"
            )


def build_embedder(config: RunConfig) -> Embedder:
    """A fresh embedder as configured, its random weights from the configured seed; a `UserError` for a bad option."""
    model = config.model
    geometry = choose_geometry(config)
    backbone = make_backbone(model.backbone, weights=model.weights, image_size=model.image_size, pool=model.pool)
    torch.manual_seed(config.training.seed)
    embedder = Embedder(backbone, model.method, model.options, model.embedding_size, geometry)
    if embedder.head is not None:
        nested = sorted({size for size in model.nested_sizes if size < model.embedding_size})
        embedder.sizes = Sizes(nested=tuple(nested))
    return embedder


def configured_reader(config: RunConfig, image_size: int, items: Sequence[Item]) -> ImageReader:
    """Return the reader of a run's images, as `image_reader`; a note counts the ``items`` that its cache lacks."""
    read = image_reader(config.data.cache, config.data.reduced_decode, image_size, "data.cache")
    log_notes(read.notes(item.path for item in items))
    return read


def configured_evaluator(config: RunConfig, read: ImageReader) -> Evaluator:
    """Return the evaluator of a run's models, which reads images with a `configured_reader`."""
    options, strict = config.evaluation, config.data.strict
    precision, average = config.device.precision, options.mean_average_precision
    return Evaluator(options.ks, options.batch_size, precision, strict, average, read)


def choose_geometry(config: RunConfig) -> Geometry:
    """Return the geometry of the loss, or the sphere for a method that trains no head."""
    wanted = config.model.geometry
    method, loss = config.model.method, config.loss.name
    if method in METHODS and not METHODS[method].has_head:
        if wanted == "poincare":
            raise UserError(
                f"--model.geometry is 'poincare': method {method} trains no head that could map into the ball; "
                "use auto or sphere"
            )
        return Sphere()
    geometry = loss_geometry(loss, config.loss.options)
    if wanted not in ("auto", geometry.name):
        names = ", ".join(name for name, spec in sorted(LOSSES.items()) if spec.geometry.name == wanted)
        raise UserError(
            f"--model.geometry is {wanted!r}, but --loss.name {loss} works on {geometry.name!r}: use auto, "
            f"or a loss for {wanted}: {names}"
        )
    return geometry


def unmeasured() -> Measurement:
    """Return a measurement of nothing, with null for numbers, for a run without held-out classes."""
    counts = {"queries": 0, "gallery": 0, "queries_without_positive": 0, "datasets": {}, "datasets_left_out": []}
    return Measurement(
        {"separate": {}, "harmonic": None, "unified": None, "counts": counts, "distance": None, "seconds": 0.0}, ()
    )


def describe(
    config: RunConfig, embedder: Embedder | Ensemble, metrics: dict[str, Any], skipped: Sequence[Unusable]
) -> dict[str, Any]:
    """Add the model, the machine and the skipped files to measured numbers."""
    precision = choose_precision(config.device.precision, embedder.device)
    metrics["counts"]["skipped_files"] = len(skipped)
    return metrics | {
        "skipped": [{"path": str(entry.path), "reason": entry.reason} for entry in skipped],
        "model": embedder.description() if isinstance(embedder, Ensemble) else _describe_model(embedder),
        "machine": {
            "device": str(embedder.device),
            "gpu": torch.cuda.get_device_name(embedder.device) if embedder.device.type == "cuda" else None,
            "precision": precision,
            "processor": describe_processor(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "unimetric": unimetric.__version__,
        },
    }


def _describe_model(embedder: Embedder) -> dict[str, Any]:
    return {
        "backbone": embedder.backbone.name,
        "fingerprint": embedder.backbone.fingerprint,
        "image_size": embedder.backbone.image_size,
        "method": embedder.method_name,
        "embedding_size": embedder.embedding_size,
        **({"nested_sizes": list(embedder.sizes.nested)} if embedder.sizes.nested else {}),
        **({} if embedder.whole is None else {"shortened_from": embedder.whole[0].embedding_size}),
        "geometry": embedder.geometry.to_dict(),
        "trainable_parameters": embedder.trainable_parameter_count(),
    }
