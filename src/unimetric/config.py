"""Every option of a run and its default; the command line and the YAML files are made from these dataclasses.

The numbers are those of the paper (Kim, Kim, Kwak, *Learning Unified Distance Metric Across Diverse Data
Distributions with Parameter-Efficient Transfer Learning*, WACV 2025) and of its authors' public code.

The first sentence of a field's description is its line in ``--help``; the whole of it is in ``--help-all``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unimetric.config_values import MAX_PROCESSES, check_names, from_options, require, require_finite, require_workers
from unimetric.errors import UserError, cause
from unimetric.yaml_files import read_yaml

MAX_EMBEDDING_SIZE, MAX_IMAGE_SIZE = 2**16, 2**12
"""Limits of a model, which would take too much memory otherwise: position embeddings do for every patch."""


@dataclass(frozen=True)
class DataConfig:
    """Sources of images and labels, and the choice of classes.

    Args:
        sources: Sources to read together, each ``[NAME=][FORMAT:]PATH``. A path is a folder of class folders, a folder
            of such folders, a manifest (``.csv`` or ``.parquet`` with the columns ``path,label`` and optionally
            ``dataset`` and ``split``) or a benchmark dataset as its authors publish it (``cub200``, ``cars196``,
            ``sop``, ``inshop``, ``nabirds``, ``dogs``, ``flowers102``, ``aircraft``); ``demo`` is the demo data.
        split: auto, first-half, random-half, given, test-only, train-only. ``auto`` uses the split that the source
            gives, else ``first-half``: the first half of each dataset's sorted classes trains, the rest tests.
            ``random-half`` draws a seeded half. ``given`` accepts only the source's own split. ``test-only`` tests on
            everything, ``train-only`` trains on everything and measures nothing.
        split_seed: Seed of random-half, of held-out classes and of drawn images.
        validation_fraction: Share of the train classes held out for model selection. It is from 0 to 0.5.
        train_datasets: Datasets to train on; empty for all. The others are tested on only.
        test_datasets: Datasets to test on; empty for all.
        few_shot: Images of each train class, drawn with the split seed. Null takes all; none is drawn twice.
        train_images: Train images of a dataset, at most, by its name. They are drawn evenly over its classes; the name
            ``*`` is every dataset that is not named.
        replay_per_class: Train images of each class to keep for extend. They are kept in the run folder; ``unimetric
            extend`` uses them when the images themselves are gone; 0 keeps none.
        strict: Stop at an unreadable image or a query without a positive. ``--strict`` is short for it.
        workers: Processes that decode images; auto is one per core, at most 8.
        cache: Folder that unimetric prepare wrote, to read resized images from. Images that it does not hold, or whose
            files have changed since, are read from their files.
        reduced_decode: Decode large JPEG files at a fraction of their size. It is 1/2, 1/4 or 1/8; the shorter side
            keeps at least twice the pixels of the model's input; pixels change slightly.
    """

    sources: list[str] = field(default_factory=list)
    split: Literal["auto", "first-half", "random-half", "given", "test-only", "train-only"] = "auto"
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
        require_workers("data.workers", self.workers)
        require(self.few_shot is None or self.few_shot >= 1, "data.few_shot", self.few_shot, "use 1 or more, or null")
        require(
            all(count >= 1 for count in self.train_images.values()),
            "data.train_images",
            self.train_images,
            "use 1 or more for each dataset",
        )
        require(self.replay_per_class >= 0, "data.replay_per_class", self.replay_per_class, "use 0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone, the trained method and the embedding.

    Args:
        backbone: timm name of a ViT or EVA, or the packaged one.
        weights: pretrained, random or a .safetensors file. ``random`` is for tests.
        image_size: Side of the square input in pixels. It is a multiple of the backbone's patch size.
        pool: auto (the backbone's own), token, avg or token+avg. ``token`` is the class token of the backbone, ``avg``
            the mean of its patch tokens, ``token+avg`` both, one after the other.
        method: Trained method, such as puma, lora, linear, full or frozen. The others are adaptformer, vpt-deep and
            bitfit. ``linear`` trains the head only, ``full`` the whole backbone; ``frozen`` trains nothing and has no
            head.
        options: Options of the method by name; others keep their defaults.
        embedding_size: Length E of the embedding.
        nested_sizes: Shorter lengths to train as embeddings as well, such as [16, 32, 64]. The loss is the mean over
            all lengths, E included; ``--size`` of other commands then uses the first numbers.
        geometry: sphere, poincare, or auto, the geometry of the loss. On the ``sphere`` unit vectors are compared by
            cosine, in the ``poincare`` ball by hyperbolic distance.
    """

    backbone: str = "dinov2-small"
    weights: str = "pretrained"
    image_size: int = 224
    pool: Literal["auto", "token", "avg", "token+avg"] = "auto"
    method: str = "puma"
    options: dict[str, Any] = field(default_factory=dict)
    embedding_size: int = 128
    nested_sizes: list[int] = field(default_factory=list)
    geometry: Literal["auto", "sphere", "poincare"] = "auto"

    def __post_init__(self) -> None:
        require_finite("model.options", self.options)
        for name, largest in (("image_size", MAX_IMAGE_SIZE), ("embedding_size", MAX_EMBEDDING_SIZE)):
            require(1 <= getattr(self, name) <= largest, f"model.{name}", getattr(self, name), f"use 1 to {largest}")
        fitting = all(1 <= size <= self.embedding_size for size in self.nested_sizes)
        require(fitting, "model.nested_sizes", self.nested_sizes, f"use sizes from 1 to {self.embedding_size}")

    def frozen(self) -> "ModelConfig":
        """Return the options of the same backbone without training."""
        return ModelConfig(self.backbone, self.weights, self.image_size, self.pool, "frozen")


@dataclass(frozen=True)
class LossConfig:
    """The training loss.

    Args:
        name: Name of the loss.
        options: Constants of the loss by name; others keep the values of the paper.
    """

    name: str = "curricularface"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_finite("loss.options", self.options)


@dataclass(frozen=True)
class SamplingConfig:
    """The choice of images that share a batch.

    Args:
        name: Sampler, such as natural, class-balanced or temperature. ``auto`` is the sampler that the loss needs; the
            others are dataset-balanced and adaptive.
        options: Options of the sampler by name; others keep their defaults.
    """

    name: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_finite("sampling.options", self.options)


@dataclass(frozen=True)
class TrainingConfig:
    """The schedule and the optimiser (AdamW).

    Args:
        start: Initial head and proxies. ``discriminant`` makes them from a linear discriminant analysis of the features
            that the train images have before training, which takes one pass over them.
        epochs: Passes over the train images.
        steps: Optimiser steps, instead of epochs.
        batch_size: Images per step, over all processes together.
        learning_rate: Base rate; every group of parameters multiplies it.
        method_multiplier: Rate of the parameters that the method adds: adapters, prompts, low-rank matrices.
        backbone_multiplier: Rate of the backbone's own parameters, if the method trains them.
        head_multiplier: Rate of the embedding head.
        proxy_multiplier: Rate of the proxies of the loss.
        weight_decay: Weight decay of AdamW, for all groups.
        clip_value: Largest absolute value of a gradient; 0 does not clip.
        schedule: Course of the learning rate. ``step`` multiplies it by ``decay_factor`` every ``decay_epochs``;
            ``cosine`` goes to ``cosine_floor``; ``constant`` keeps it.
        cosine_floor: Share of the rate, 0 to 1, at which the cosine schedule ends.
        decay_epochs: Epochs between decays of the step schedule.
        decay_factor: Factor of each decay of the step schedule.
        warmup_steps: Steps over which the rate rises linearly from 0.
        average_over: Share of the run, 0 to 1, over which the saved weights are averaged; 0 saves the last step's.
        crop_scale_min: Smallest share of the image's area that a training crop takes.
        horizontal_flip: Mirror half of the training images.
        seed: Seed of weights, data order, augmentation and adapter dropping.
        validate_every: Epochs between evaluations on the validation classes, if there are any.
        selection: Weights to keep: last, or best on the validation classes.
        shard_proxies: Divide the proxies of CurricularFace and their moments among processes, for very many classes.
        recompute_blocks: Number of first blocks that are computed again in the backward pass. The gradients are the
            same, with less memory and more time.
        loggers: Programs that show the training curves: tensorboard, csv, wandb, mlflow, or auto, which is TensorBoard
            if it is installed. ``log.jsonl`` is written in any case.
        non_finite: Reaction to a loss or gradient that is not finite. ``stop`` ends the run, ``skip`` leaves the
            weights as they are for that step. Non-finite weights, and ten such steps in a row, stop it anyway.
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
    average_over: float = 0.0
    crop_scale_min: float = 0.2
    horizontal_flip: bool = True
    seed: int = 0
    validate_every: int = 1
    selection: Literal["last", "best"] = "last"
    shard_proxies: bool = False
    recompute_blocks: int = 0
    loggers: Literal["auto"] | list[Literal["tensorboard", "csv", "wandb", "mlflow"]] = "auto"
    non_finite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "decay_epochs", "validate_every"):
            require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "use 1 or more")
        require(self.steps is None or self.steps >= 1, "training.steps", self.steps, "use 1 or more, or null")
        rate = self.learning_rate
        require(0 < rate < math.inf, "training.learning_rate", rate, "use a positive number")
        for name in ("method_multiplier", "backbone_multiplier", "head_multiplier", "proxy_multiplier"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"training.{name}", value, "use 0 or more")
        for name in ("weight_decay", "clip_value", "warmup_steps", "recompute_blocks"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"training.{name}", value, "use 0 or more")
        for name in ("cosine_floor", "average_over"):
            require(0 <= getattr(self, name) <= 1, f"training.{name}", getattr(self, name), "use a share from 0 to 1")
        for name in ("decay_factor", "crop_scale_min"):
            value = getattr(self, name)
            require(0 < value <= 1, f"training.{name}", value, "use a number above 0, at most 1")
        require(0 <= self.seed < 2**63, "training.seed", self.seed, "use 0 or more, below 2**63")


@dataclass(frozen=True)
class ExtensionConfig:
    """The trained model that a run extends; ``unimetric extend`` sets it.

    Args:
        base: Folder with the extended model, its proxies and its replay set; null trains from the start.
        distillation: Weight of the penalty on moved embeddings of old classes. It is computed on the replayed images; 0
            is none.
        compatible: Keep embeddings close enough to old ones to search in old indexes.
    """

    base: str | None = None
    distillation: float = 30.0
    compatible: bool = False

    def __post_init__(self) -> None:
        value = self.distillation
        require(0 <= value < math.inf, "extension.distillation", value, "use 0 or more")


@dataclass(frozen=True)
class ExtendConfig:
    """Training options of ``unimetric extend``; all others are those of the old run.

    Args:
        steps: Optimiser steps.
        batch_size: Images per step, half of them replayed; by default the old run's.
        learning_rate_scale: Factor on the learning rate of the old run.
        distillation: Weight of the penalty on moved embeddings of old classes. It is computed on the replayed images; 0
            is none.
        compatible: Keep embeddings close enough to old ones to search in old indexes.
        replay_per_class: Images of each old class to keep, if the run has no replay set.
        seed: Seed of data order, augmentation and adapter dropping.
        workers: Processes that decode images; auto is one per core, at most 8.
    """

    steps: int = 200
    batch_size: int | None = None
    learning_rate_scale: float = 1.0
    distillation: float = 30.0
    compatible: bool = False
    replay_per_class: int = 5
    seed: int = 0
    workers: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "replay_per_class"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "use 1 or more")
        require(self.batch_size is None or self.batch_size >= 2, "batch_size", self.batch_size, "use 2 or more")
        scale = self.learning_rate_scale
        require(0 < scale < math.inf, "learning_rate_scale", scale, "use a positive number")
        require(0 <= self.distillation < math.inf, "distillation", self.distillation, "use 0 or more")
        require_workers("workers", self.workers)


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation of the embeddings.

    Args:
        ks: The k of every Recall@k.
        batch_size: Images per forward pass.
        classes: Classes to measure on: test, or validation to choose options. ``validation`` measures a finished run on
            its validation classes and leaves the test classes unseen.
        mean_average_precision: Measure mAP as well. It takes about ten times the work of all other numbers.
        budgets: Measure Recall@1 of shorter vectors and coarser types as well. The table of bytes per image against
            Recall@1 is in metrics.json and in the report.
        baseline: After training, measure the frozen backbone as well and compare. It takes as long as measuring the
            trained model.
    """

    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    batch_size: int = 32
    classes: Literal["test", "validation"] = "test"
    mean_average_precision: bool = False
    budgets: bool = True
    baseline: bool = True

    def __post_init__(self) -> None:
        fitting = bool(self.ks) and all(k >= 1 for k in self.ks)
        require(fitting, "evaluation.ks", self.ks, "use a list of numbers from 1")
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "use 1 or more")


@dataclass(frozen=True)
class DeviceConfig:
    """The devices that compute.

    Args:
        accelerator: auto (a GPU if there is one), cpu, cuda or mps.
        processes: Processes on this machine, one per device. On a CPU any number works. The batch is divided among all
            processes, and the result does not depend on their number.
        machines: Machines that train together; the command is started on each. Each has as many processes.
        precision: auto (bf16 if the processor has it), bf16, fp32 or int8. ``auto`` is fp32 otherwise. ``int8`` is for
            embedding on a CPU, and never automatic.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    processes: int = 1
    machines: int = 1
    precision: Literal["auto", "bf16", "fp32", "int8"] = "auto"

    def __post_init__(self) -> None:
        require(1 <= self.processes <= MAX_PROCESSES, "device.processes", self.processes, f"use 1 to {MAX_PROCESSES}")
        require(self.machines >= 1, "device.machines", self.machines, "use 1 or more")

    @property
    def total_processes(self) -> int:
        """Number of processes on all machines together."""
        return self.processes * self.machines


@dataclass(frozen=True)
class RunConfig:
    """All options that determine a run's results.

    Args:
        data: Sources of images and labels.
        model: The backbone, the trained method and the embedding.
        loss: The training loss.
        sampling: The choice of images that share a batch.
        training: The schedule and the optimiser.
        extension: The trained model that the run extends.
        evaluation: The evaluation of the embeddings.
        device: The devices that compute.
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
    """Return a `RunConfig` from nested mappings of YAML or the command line; missing options keep their defaults.

    Raises:
        UserError: an unknown option, or a value out of range or of another type; ``origin`` is named.
    """
    check_names(RunConfig, values, origin)
    try:
        return from_options(RunConfig, values)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{origin} has a value of another type than its option takes: {cause(error)}") from error


def read_options(path: Path) -> dict[str, Any]:
    """The nested options in a YAML file, by name as in `RunConfig`; their types are not looked at.

    Raises:
        UserError: the file cannot be read, is no YAML, or has an unknown option.
    """
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise UserError(f"{path} holds no options: write a section, for example data:, and its options below it")
    check_names(RunConfig, values, str(path))
    return dict(values)
