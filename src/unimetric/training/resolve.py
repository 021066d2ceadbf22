"""The objects of a run, made from its configuration, which the training loop does not read again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import nn

from unimetric.config import RunConfig
from unimetric.data.cache import ImageReader
from unimetric.data.catalog import ClassIndex, Item
from unimetric.data.loading import Batch, training_loader, worker_count
from unimetric.data.sampling import BatchSampler, Share, make_sampler
from unimetric.data.splits import Split
from unimetric.data.transforms import TrainingTransform
from unimetric.data.workers import WorkerLoader, check_handover
from unimetric.errors import UserError
from unimetric.evaluation.evaluate_split import Evaluator, check_positives
from unimetric.formats.run_folder import RunFolder, run_identity
from unimetric.losses import LOSSES, CurricularFace, proxy_slice
from unimetric.models.devices import compute_dtype
from unimetric.models.embedder import Embedder
from unimetric.progress import console
from unimetric.training.extension import Extension, configured_loss, old_classes, old_new_groups
from unimetric.training.optimiser import make_optimiser, rate_schedule
from unimetric.training.processes import Processes, make_fabric
from unimetric.training.provenance import Clock, measured_sides
from unimetric.training.setup import build_embedder, configured_evaluator, configured_reader, load_split


@dataclass(frozen=True)
class Run:
    """The objects of a run, ready to train.

    Attributes:
        config: To be written down with the results; decides nothing any more.
        measured: The images to measure on at the end, ``query`` and ``gallery``; empty if there are none.
        numbers: The class number of every train image.
        extension: The old model, where one is extended.
        begin_extension: Puts the old model's weights and proxies in place.
        whole_loss: Makes the loss with the proxies of all classes, also where processes divide them.
        rate: Factor on every learning rate, by step.
        average_horizon: Steps over which the weights are averaged; 0 for no average.
        discriminant_start: Initialise head and proxies by linear discriminant analysis.
        validate_every: Epochs between two validations; 0 for none.
        validate_at_end: Validate after the last step.
        keep_best: Keep the weights with the best validation.
        skip_nonfinite: Skip a step whose numbers are not finite instead of ending the run.
        identity: Has to be that of the checkpoint that the run continues.
    """

    config: RunConfig
    folder: RunFolder
    clock: Clock
    fabric: Fabric
    processes: Processes
    split: Split
    measured: dict[str, tuple[Item, ...]]
    numbers: list[int]
    embedder: Embedder
    loss: nn.Module
    whole_loss: Callable[[], nn.Module]
    extension: Extension | None
    begin_extension: Callable[[], None] | None
    optimiser: torch.optim.AdamW
    rate: Callable[[int], float]
    sampler: BatchSampler
    loader: WorkerLoader[Batch]
    evaluate: Evaluator
    dtype: torch.dtype
    seed: int
    total_steps: int
    clip_value: float
    average_horizon: float
    discriminant_start: bool
    validate_every: int
    validate_at_end: bool
    keep_best: bool
    skip_nonfinite: bool
    identity: str

    @property
    def first(self) -> bool:
        """True for rank 0, which writes and reports for all processes."""
        return bool(self.fabric.is_global_zero)

    @property
    def common_parameters(self) -> list[nn.Parameter]:
        """Parameters of the loss that every process holds: all, unless they are divided."""
        return [] if proxy_slice(self.loss) else list(self.loss.parameters())


def resolve(config: RunConfig, folder: RunFolder) -> Run:
    """Read the data, make all objects, and start the other processes. Nothing is written.

    Raises:
        UserError: the data or the model do not fit the configuration.
        WorkerError: worker processes could not hand over a batch.
    """
    clock = Clock.start()
    training = config.training
    fabric = make_fabric(config.device)
    console.quiet |= not fabric.is_global_zero
    split = load_split(config)
    _refuse_untrainable(config, split, measured := measured_sides(config, split))
    numbers = (classes := ClassIndex.of(split.train)).numbers(split.train)
    embedder = build_embedder(config)
    embedder.recompute_blocks = training.recompute_blocks
    images = [*split.train, *split.validation, *split.query, *split.gallery]
    read = configured_reader(config, embedder.backbone.image_size, images)
    evaluate = configured_evaluator(config, read)
    loss = (whole_loss := partial(configured_loss, config, len(classes)))()
    sampler = _sampler(config, classes, numbers, Share(fabric.global_rank, fabric.world_size))
    steps = training.steps or training.epochs * len(sampler)
    _check_workers(config, sampler, embedder.backbone.image_size)
    processes = Processes(fabric, folder.how_to_resume)
    embedder.to(fabric.device)
    _divide_proxies(config, loss, processes)
    loss.to(fabric.device)
    extension = Extension.of(config, old_classes(config, classes), fabric.device)
    begin = None if extension is None else partial(extension.begin, config, embedder, loss, split.train, evaluate)
    return Run(
        config=config,
        folder=folder,
        clock=clock,
        fabric=fabric,
        processes=processes,
        split=split,
        measured=measured,
        numbers=numbers,
        embedder=embedder,
        loss=loss,
        whole_loss=whole_loss,
        extension=extension,
        begin_extension=begin,
        optimiser=make_optimiser(embedder, loss, training),
        rate=rate_schedule(training, len(sampler), steps),
        sampler=sampler,
        loader=_loader(config, split.train, numbers, embedder, sampler, read),
        evaluate=evaluate,
        dtype=compute_dtype(config.device.precision, fabric.device),
        seed=training.seed,
        total_steps=steps,
        clip_value=training.clip_value,
        average_horizon=training.average_over * steps,
        discriminant_start=training.start == "discriminant",
        validate_every=training.validate_every if split.validation else 0,
        validate_at_end=_validate_at_end(config, split),
        keep_best=training.selection == "best",
        skip_nonfinite=training.non_finite == "skip",
        identity=run_identity(config, split, classes, embedder.backbone.fingerprint),
    )


def _validate_at_end(config: RunConfig, split: Split) -> bool:
    # Validation classes that are measured at the end are not measured twice.
    needed = config.evaluation.classes == "test" or config.training.selection == "best"
    return bool(split.validation) and needed


def _divide_proxies(config: RunConfig, loss: nn.Module, processes: Processes) -> None:
    if config.training.shard_proxies and processes.count > 1:
        assert isinstance(loss, CurricularFace)  # noqa: S101  # the options were checked
        loss.keep_slice(processes.rank, processes.count)


def _sampler(config: RunConfig, classes: ClassIndex, numbers: Sequence[int], share: Share) -> BatchSampler:
    return make_sampler(
        config.sampling.name,
        config.sampling.options,
        numbers,
        old_new_groups(config, classes),
        config.training.batch_size,
        loss_images_per_class=LOSSES[config.loss.name].images_per_class,
        seed=config.training.seed,
        share=share,
    )


def _loader(
    config: RunConfig,
    train: Sequence[Item],
    numbers: Sequence[int],
    embedder: Embedder,
    sampler: BatchSampler,
    read: ImageReader,
) -> WorkerLoader[Batch]:
    training, workers = config.training, config.data.workers
    transform = TrainingTransform(embedder.backbone.image_size, training.crop_scale_min, training.horizontal_flip)
    return training_loader(train, numbers, transform, sampler, seed=training.seed, workers=workers, read=read)


def _check_workers(config: RunConfig, sampler: BatchSampler, image_size: int) -> None:
    images = -(-sampler.batch_size // config.device.total_processes)
    workers = worker_count(config.data.workers)
    check_handover(images * 3 * image_size**2, workers, config.device.processes)


def _refuse_untrainable(config: RunConfig, split: Split, measured: dict[str, tuple[Item, ...]]) -> None:
    training = config.training
    if not split.train:
        raise UserError(f"--data.split is {config.data.split!r}: no image is left to train on; use auto or first-half")
    if several := next((item for item in split.train if item.labels), None):
        raise UserError(
            f"{several.path} has {len(several.labels)} labels, and the losses need one class for each image: train on "
            "other datasets with --data.train_datasets, or measure only, with unimetric evaluate --data.split test-only"
        )
    if len(ClassIndex.of(split.train)) < 2:
        raise UserError(
            f"only one class is left to train on ({split.train[0].label!r} of dataset {split.train[0].dataset!r}): "
            "add classes, or hold out fewer"
        )
    if config.model.method == "frozen":
        raise UserError(
            "--model.method is 'frozen': it has nothing to train; use `unimetric evaluate`, or puma or linear"
        )
    for name, value in (("training.selection", training.selection), ("evaluation.classes", config.evaluation.classes)):
        if value in ("best", "validation") and not split.validation:
            remedy = "set --data.validation_fraction, e.g. 0.2"
            raise UserError(f"--{name} is {value!r}: no validation classes; {remedy}")
    if min(training.batch_size, len(split.train)) < config.device.total_processes:
        raise UserError(
            f"--training.batch_size is {training.batch_size}: {config.device.total_processes} processes share "
            f"{len(split.train)} train images in batches of at most that many; use fewer --device.processes"
        )
    # Refused now instead of after hours of training.
    check_positives(measured["query"], measured["gallery"], strict=config.data.strict)
    check_positives(split.validation, split.validation, strict=config.data.strict)
