"""Every option of a run and its default, in one place; the command line and the YAML files are made of it.

The numbers are the paper's (Kim, Kim, Kwak, *Learning Unified Distance Metric Across Diverse Data
Distributions with Parameter-Efficient Transfer Learning*, WACV 2025) and its authors' public code's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from unimetric.errors import UserError, nearest_names, shown
from unimetric.yaml_files import read_yaml

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Where images and labels come from, and which classes are trained on.

    Args:
        sources: Catalogues to train on together, each ``[NAME=][FORMAT:]PATH``: a folder of class folders, a
            folder of such folders, a manifest (``.csv`` or ``.parquet`` with the columns ``path,label`` and,
            if wanted, ``dataset`` and ``split``), the word ``demo``, or a benchmark dataset as its authors publish it
            (``cub200``, ``cars196``, ``sop``, ``inshop``, ``nabirds``, ``dogs``, ``flowers102``, ``aircraft``).
        split: How classes are divided. ``auto``: the split that the source gives, else ``first-half``.
            ``first-half``: the first half of each dataset's sorted classes trains, the rest tests.
            ``random-half``: a seeded random half. ``given``: only what the source gives. ``test-only``:
            everything is tested on.
        split_seed: Seed of ``random-half``, of the held-out validation classes and of the draws of train images.
        validation_fraction: Share of every dataset's train classes, 0 to 0.5, held out for model selection.
        train_datasets: Names of the datasets to train on; empty is all of them. The others are tested on only.
        test_datasets: Names of the datasets to test on; empty is all of them.
        few_shot: Images per train class, drawn with ``split_seed`` and never the same twice; null takes all.
        train_images: Most train images of a dataset, by its name, drawn evenly over its classes; the name ``*``
            stands for every dataset that is not named.
        replay_per_class: Train images of each class that are kept, made small, in the run folder (``replay/``), with
            which ``unimetric extend`` goes on when the images themselves are gone; 0 keeps none.
        strict: Stop at the first image that cannot be read, and at a query without another image of its class in the
            gallery, instead of counting and leaving them out (``--strict`` for short).
        workers: Processes that decode images during training; ``auto`` is one per core, at most 8.
        cache: A folder that ``unimetric prepare`` wrote: images are read from it, resized as they are there, but for
            those that it does not have or whose files were changed since.
        reduced_decode: Decode JPEG files at 1/2, 1/4 or 1/8 of their size where their shorter side keeps at least twice
            the pixels that the input is cut from; pixels change by a little.
    """

    sources: list[str] = field(default_factory=list)
    split: str = "auto"
    split_seed: int = 0
    validation_fraction: float = 0.0
    train_datasets: list[str] = field(default_factory=list)
    test_datasets: list[str] = field(default_factory=list)
    few_shot: int | None = None
    train_images: dict[str, int] = field(default_factory=dict)
    replay_per_class: int = 0
    strict: bool = False
    workers: int | Literal["auto"] = "auto"
    cache: str | None = None
    reduced_decode: bool = False

    def __post_init__(self) -> None:
        _require(self.workers == "auto" or self.workers >= 0, "data.workers", self.workers, "use auto, 0 or more")
        _require(self.few_shot is None or self.few_shot >= 1, "data.few_shot", self.few_shot, "use 1 or more, or null")
        _require(
            all(count >= 1 for count in self.train_images.values()),
            "data.train_images",
            self.train_images,
            "use 1 or more for each dataset",
        )
        _require(self.replay_per_class >= 0, "data.replay_per_class", self.replay_per_class, "use 0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """What turns an image into an embedding.

    Args:
        backbone: ``dinov2-small`` (packaged, needs no hub), or the timm name of a ViT or EVA model.
        weights: ``pretrained``, ``random`` (for tests), or the path of a ``.safetensors`` file.
        image_size: Side of the square input in pixels; the backbone's patch size has to divide it.
        pool: What the backbone's output is: ``auto`` is its own way, ``token`` its class token, ``avg`` the
            mean of its patch tokens, ``token+avg`` both, one after the other.
        method: What is trained: ``puma``, ``linear`` (the head only), ``lora``, ``adaptformer``, ``vpt-deep``,
            ``bitfit``, ``full`` (the whole backbone), or ``frozen`` (nothing, no head: the backbone's own output).
        options: Options of the method by name; what is not named keeps its default.
        embedding_size: Length E of the embedding.
        geometry: Where the embeddings lie: ``sphere`` (unit vectors, compared by cosine), ``poincare`` (the
            Poincaré ball, compared by hyperbolic distance), or ``auto``, which is what the loss wants.
    """

    backbone: str = "dinov2-small"
    weights: str = "pretrained"
    image_size: int = 224
    pool: Literal["auto", "token", "avg", "token+avg"] = "auto"
    method: str = "puma"
    options: dict[str, Any] = field(default_factory=dict)
    embedding_size: int = 128
    geometry: Literal["auto", "sphere", "poincare"] = "auto"

    def __post_init__(self) -> None:
        _require_finite("model.options", self.options)
        _require(self.image_size >= 1, "model.image_size", self.image_size, "use a positive number of pixels")
        _require(self.embedding_size >= 1, "model.embedding_size", self.embedding_size, "use a positive number")


@dataclass(frozen=True)
class LossConfig:
    """The training loss.

    Args:
        name: Name of the loss.
        options: Its constants by name; what is not named keeps the paper's value.
    """

    name: str = "curricularface"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_finite("loss.options", self.options)


@dataclass(frozen=True)
class SamplingConfig:
    """Which images share a batch.

    Args:
        name: Name of the sampler: ``natural``, ``class-balanced``, ``dataset-balanced``, ``temperature``,
            ``adaptive``, or ``auto``, which is the one that the loss wants.
        options: Its options by name; what is not named keeps its default.
    """

    name: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_finite("sampling.options", self.options)


@dataclass(frozen=True)
class TrainingConfig:
    """The schedule and the optimiser (AdamW).

    Args:
        start: Where the head and the proxies start: ``random``, or ``discriminant``: at the linear discriminant
            analysis of the features that the train images have before training, which takes one pass over them.
        epochs: Passes over the train images.
        steps: Optimiser steps, instead of epochs.
        batch_size: Images per step, over all processes together.
        learning_rate: Base rate; every group of parameters multiplies it.
        method_multiplier: For what the method adds: adapters, prompts, low-rank matrices.
        backbone_multiplier: For the backbone's own parameters, where the method trains them.
        head_multiplier: For the embedding head.
        proxy_multiplier: For the proxies of the loss.
        weight_decay: Of AdamW, for all groups.
        clip_value: Gradients are clipped to this absolute value; 0 does not clip.
        schedule: ``step`` multiplies the rate by ``decay_factor`` every ``decay_epochs``; ``cosine`` goes to
            ``cosine_floor``; ``constant`` keeps the rate.
        cosine_floor: Share of the rate, 0 to 1, at which the ``cosine`` schedule ends.
        decay_epochs: Of the ``step`` schedule.
        decay_factor: Of the ``step`` schedule.
        warmup_steps: Steps over which the rate rises linearly from 0.
        crop_scale_min: Smallest share of the image's area that a training crop takes.
        horizontal_flip: Mirror half of the training images.
        seed: Of initialisation, data order, augmentation and adapter dropping.
        validate_every: Epochs between evaluations on the validation classes, where there are any.
        selection: Which weights are kept: ``last``, or ``best`` on the validation classes.
        shard_proxies: Divide the class proxies of CurricularFace, and what the optimiser knows of them, among the
            processes: for very many classes.
        recompute_blocks: So many of the backbone's first blocks keep their input alone for the backward pass, which
            computes the rest again: the same gradients from less memory, in more time.
        non_finite: What a loss or gradient that is not a finite number does: ``stop`` the run, or ``skip`` the step,
            which then changes nothing. Weights that are not finite, and ten such steps in a row, stop it anyway.
    """

    start: Literal["random", "discriminant"] = "random"
    epochs: int = 100
    steps: int | None = None
    batch_size: int = 180
    learning_rate: float = 1e-4
    method_multiplier: float = 10.0
    backbone_multiplier: float = 1.0
    head_multiplier: float = 10.0
    proxy_multiplier: float = 1e4
    weight_decay: float = 1e-4
    clip_value: float = 1.0
    schedule: Literal["step", "cosine", "constant"] = "step"
    cosine_floor: float = 0.0
    decay_epochs: int = 20
    decay_factor: float = 0.5
    warmup_steps: int = 0
    crop_scale_min: float = 0.2
    horizontal_flip: bool = True
    seed: int = 0
    validate_every: int = 1
    selection: Literal["last", "best"] = "last"
    shard_proxies: bool = False
    recompute_blocks: int = 0
    non_finite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decay_epochs", "validate_every"):
            _require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "use 1 or more")
        _require(self.steps is None or self.steps >= 1, "training.steps", self.steps, "use 1 or more, or null")
        _require(
            0 < self.learning_rate < math.inf,
            "training.learning_rate",
            self.learning_rate,
            "use a positive number",
        )
        for name in ("method_multiplier", "backbone_multiplier", "head_multiplier", "proxy_multiplier"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"training.{name}", value, "use 0 or more")
        for name in ("weight_decay", "clip_value", "warmup_steps", "recompute_blocks"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"training.{name}", value, "use 0 or more")
        _require(
            0 < self.decay_factor <= 1,
            "training.decay_factor",
            self.decay_factor,
            "use a number above 0, at most 1",
        )
        _require(0 <= self.cosine_floor <= 1, "training.cosine_floor", self.cosine_floor, "use a share from 0 to 1")
        _require(
            0 < self.crop_scale_min <= 1,
            "training.crop_scale_min",
            self.crop_scale_min,
            "use a share above 0, at most 1",
        )
        _require(0 <= self.seed < 2**63, "training.seed", self.seed, "use 0 or more, below 2**63")


@dataclass(frozen=True)
class ExtensionConfig:
    """What a run adds to a trained model; ``unimetric extend`` sets it.

    Args:
        base: Folder with the model that is extended, its proxies and its replay set; null trains from the start.
        distillation: Weight of the penalty on replayed images whose embeddings leave their old place; 0 is none.
        compatible: Hold new embeddings to old ones closely enough that they can search in old indexes.
    """

    base: str | None = None
    distillation: float = 30.0
    compatible: bool = False

    def __post_init__(self) -> None:
        value = self.distillation
        _require(0 <= value < math.inf, "extension.distillation", value, "use 0 or more")


@dataclass(frozen=True)
class ExtendConfig:
    """How ``unimetric extend`` trains; what is not here, the new run takes over from the old one.

    Args:
        steps: Optimiser steps.
        batch_size: Images per step, half of them replayed; null is the old run's.
        rate_factor: Times the old run's learning rate.
        distillation: Weight of the penalty on replayed images whose embeddings leave their old place; 0 is none.
        compatible: Hold new embeddings to old ones closely enough that they can search in old indexes.
        replay_per_class: Images of each old class to keep, where the run has no replay set yet.
        seed: Of data order, augmentation and adapter dropping.
        workers: Processes that decode images; ``auto`` is one per core, at most 8.
    """

    steps: int = 200
    batch_size: int | None = None
    rate_factor: float = 1.0
    distillation: float = 30.0
    compatible: bool = False
    replay_per_class: int = 5
    seed: int = 0
    workers: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "replay_per_class"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "use 1 or more")
        _require(self.batch_size is None or self.batch_size >= 2, "batch_size", self.batch_size, "use 2 or more")
        _require(0 < self.rate_factor < math.inf, "rate_factor", self.rate_factor, "use a positive number")
        _require(0 <= self.distillation < math.inf, "distillation", self.distillation, "use 0 or more")
        _require(self.workers == "auto" or self.workers >= 0, "workers", self.workers, "use auto, 0 or more")


@dataclass(frozen=True)
class EvaluationConfig:
    """How the embeddings are measured.

    Args:
        ks: The k of every Recall@k.
        batch_size: Images per forward pass.
        classes: ``test``, or ``validation``: measure a finished run on the validation classes instead, and leave the
            test classes unseen. For choosing options.
        mean_average_precision: Whether to measure mAP, too, over every query's ranking of the whole gallery: some ten
            times the work of all other numbers.
    """

    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    batch_size: int = 32
    classes: Literal["test", "validation"] = "test"
    mean_average_precision: bool = False

    def __post_init__(self) -> None:
        _require(
            bool(self.ks) and all(k >= 1 for k in self.ks),
            "evaluation.ks",
            self.ks,
            "use a list of numbers from 1",
        )
        _require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "use 1 or more")


@dataclass(frozen=True)
class DeviceConfig:
    """Where the computation runs.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        processes: Number of devices of this machine, each with a process of its own; on a CPU, the number of
            processes. The batch is divided among all processes, and the result does not depend on their number.
        machines: Number of machines that train together, each with as many processes; the command is started on each.
        precision: ``auto`` is ``bf16`` where the processor has instructions for it, else ``fp32``. ``int8`` is for
            embedding on a CPU, and never automatic.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    processes: int = 1
    machines: int = 1
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"

    def __post_init__(self) -> None:
        _require(self.processes >= 1, "device.processes", self.processes, "use 1 or more")
        _require(self.machines >= 1, "device.machines", self.machines, "use 1 or more")

    @property
    def total_processes(self) -> int:
        """Number of processes on all machines together."""
        return self.processes * self.machines


@dataclass(frozen=True)
class ServiceConfig:
    """Where the search service listens, and what it takes on.

    Args:
        host: The address to listen on. With the default only this machine reaches the service.
        port: The port; 0 takes a free one.
        allowed_hosts: Further names that the service answers to, for instance that of a reverse proxy. On a loopback
            address it answers to ``localhost`` and loopback addresses, and refuses other names, so that no foreign
            web page reaches it by a name of its own; on other addresses to every name, unless some are given here.
        writable: Let items be added and deleted by whoever shows the token in the environment variable
            UNIMETRIC_TOKEN.
        max_upload_bytes: Size of an image's file, at most.
        max_pixels: Pixels of an image, at most; larger ones are refused before they are decoded.
        request_seconds: Time for an upload to arrive, again for its answer, and again for the client to read it.
        queue_size: Requests that are worked on at a time; further ones are asked to come again.
        max_connections: Connections that are open at a time; beyond it, those that wait for their clients are closed.
        batch_size: Images per forward pass, at most.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: list[str] = field(default_factory=list)
    writable: bool = False
    max_upload_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    request_seconds: float = 30.0
    queue_size: int = 64
    max_connections: int = 512
    batch_size: int = 16

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port", self.port, "use 0 to 65535")
        _require(self.host != "", "host", self.host, "use 127.0.0.1, or 0.0.0.0 for every address of this machine")
        for option in ("max_upload_bytes", "max_pixels", "queue_size", "max_connections", "batch_size"):
            _require(getattr(self, option) >= 1, option, getattr(self, option), "use 1 or more")
        _require_finite("request_seconds", self.request_seconds)
        _require(self.request_seconds > 0, "request_seconds", self.request_seconds, "use more than 0")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes.

    Args:
        data: Where images and labels come from.
        model: What turns an image into an embedding.
        loss: The training loss.
        sampling: Which images share a batch.
        training: The schedule and the optimiser.
        extension: What is added to a trained model.
        evaluation: How the embeddings are measured.
        device: Where the computation runs.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    extension: ExtensionConfig = field(default_factory=ExtensionConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)


def run_config(values: Mapping[str, Any], origin: str) -> RunConfig:
    """A `RunConfig` from nested mappings, as YAML or the command line give them; what is left out keeps its default.

    Raises:
        UserError: an unknown option, or a value out of range; ``origin`` is named.
    """
    _check_names(RunConfig, values, origin)
    return _build(RunConfig, values)


def read_options(path: Path, extra: Sequence[str] = ()) -> dict[str, Any]:
    """The nested options in a YAML file, by name as in `RunConfig`; their types are not looked at.

    Args:
        path: The file.
        extra: More names that it may have, beside the sections.

    Raises:
        UserError: the file cannot be read, is no YAML, or has an unknown option.
    """
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise UserError(f"{path} holds no options: write a section, for example data:, and its options below it")
    _check_names(RunConfig, {name: value for name, value in values.items() if name not in extra}, str(path), extra)
    return dict(values)


def _check_names(kind: type[Any], values: Any, origin: str, extra: Sequence[str] = ()) -> None:
    known = {entry.name: entry.default_factory for entry in dataclasses.fields(kind)}
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} has {shown(values)} where options should stand: {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise UserError(
                f"{origin} has an unknown option {shown(name)}; {nearest_names(str(name), [*known, *extra])}"
            )
        if dataclasses.is_dataclass(known[name]):
            _check_names(cast(type[Any], known[name]), value, f"{origin}, {name}:")


def _build(kind: type[T], values: Mapping[str, Any]) -> T:
    known = {entry.name: entry for entry in dataclasses.fields(cast(Any, kind))}
    parts = {
        name: _build(cast(type[Any], entry.default_factory), values[name])
        if dataclasses.is_dataclass(entry.default_factory)
        else values[name]
        for name, entry in known.items()
        if name in values
    }
    return kind(**parts)


def _require_finite(option: str, value: object) -> None:
    """Refuse infinity and NaN wherever they stand: no JSON file could say what a number was made with."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _require_finite(f"{option}.{name}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _require_finite(option, inner)
    else:
        _require(not isinstance(value, float) or math.isfinite(value), option, value, "use a finite number")


def _require(condition: bool, option: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"--{option} is {shown(value)}: {remedy}")
