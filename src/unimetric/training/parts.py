"""The parts of a run, made from its configuration, ready to train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import nn

from unimetric.config import RunConfig
from unimetric.data.catalog import ClassIndex
from unimetric.data.loading import Batch, training_loader, worker_count
from unimetric.data.reading import ImageReader
from unimetric.data.sampling import BatchSampler, Share, make_sampler
from unimetric.data.splits import Split
from unimetric.data.transforms import TrainingTransform
from unimetric.data.workers import WorkerLoader, check_handover
from unimetric.errors import UserError
from unimetric.formats.run_folder import RunFolder, run_identity
from unimetric.losses import LOSSES, CurricularFace, make_loss, proxy_slice
from unimetric.measure import check_positives
from unimetric.models.embedder import Embedder
from unimetric.progress import console
from unimetric.training.build import build_embedder, configured_reader, load_split
from unimetric.training.extension import Extension, old_classes, old_new_groups
from unimetric.training.optimiser import make_optimiser
from unimetric.training.processes import Processes, make_fabric
from unimetric.training.provenance import Clock, measured_sides
from unimetric.training.step import Buffers, Objective


@dataclass
class Run:
    """The parts of a run, ready to train."""

    config: RunConfig
    folder: RunFolder
    fabric: Fabric
    processes: Processes
    split: Split
    numbers: list[int]
    embedder: Embedder
    loss: nn.Module
    extension: Extension | None
    optimiser: torch.optim.AdamW
    sampler: BatchSampler
    loader: WorkerLoader[Batch]
    read: ImageReader
    total_steps: int
    identity: str
    clock: Clock
    buffers: Buffers

    @property
    def objective(self) -> Objective:
        """What is differentiated."""
        return Objective(self.embedder, self.loss, self.extension)

    @property
    def common_parameters(self) -> list[nn.Parameter]:
        """Parameters of the loss that every process holds: all, unless they are divided."""
        return [] if proxy_slice(self.loss) else list(self.loss.parameters())


def prepare_run(config: RunConfig, folder: RunFolder) -> Run:
    """Read the data, make model, loss and optimiser, and start the other processes. Nothing is written.

    Raises:
        UserError: the data or the model do not fit the configuration.
    """
    clock = Clock.start()
    fabric = make_fabric(config.device)
    if not fabric.is_global_zero:
        console.quiet = True
    split = load_split(config)
    _refuse_untrainable(config, split)
    if config.data.strict:
        # Hours of training would end in this refusal otherwise.
        sides = measured_sides(config, split)
        check_positives(sides["query"], sides["gallery"])
        check_positives(split.validation, split.validation)
    classes = ClassIndex.of(split.train)
    numbers = classes.numbers(split.train)
    embedder = build_embedder(config)
    embedder.recompute_blocks = config.training.recompute_blocks
    items = [*split.train, *split.validation, *split.query, *split.gallery]
    read = configured_reader(config, embedder.backbone.image_size, items)
    loss = make_loss(config.loss.name, len(classes), embedder.embedding_size, config.loss.options)
    sampler = make_sampler(
        config.sampling.name,
        config.sampling.options,
        numbers,
        old_new_groups(config, classes),
        config.training.batch_size,
        loss_images_per_class=LOSSES[config.loss.name].images_per_class,
        seed=config.training.seed,
        share=Share(fabric.global_rank, fabric.world_size),
    )
    check_handover(
        -(-sampler.batch_size // fabric.world_size) * 3 * embedder.backbone.image_size**2,
        worker_count(config.data.workers),
        config.device.processes,
    )
    processes = Processes(fabric, folder.how_to_resume)
    backbone, training = embedder.backbone, config.training
    loader = training_loader(
        split.train,
        numbers,
        TrainingTransform(
            backbone.image_size,
            backbone.mean,
            backbone.std,
            training.crop_scale_min,
            training.horizontal_flip,
        ),
        sampler,
        seed=training.seed,
        workers=config.data.workers,
        read=read,
    )
    embedder.to(fabric.device)
    if training.shard_proxies and processes.count > 1:
        assert isinstance(loss, CurricularFace)  # noqa: S101  # as the options were checked
        loss.keep_slice(processes.rank, processes.count)
    loss.to(fabric.device)
    return Run(
        config=config,
        folder=folder,
        fabric=fabric,
        processes=processes,
        split=split,
        numbers=numbers,
        embedder=embedder,
        loss=loss,
        extension=Extension.of(config, old_classes(config, classes), fabric.device),
        optimiser=make_optimiser(embedder, loss, training),
        sampler=sampler,
        loader=loader,
        read=read,
        total_steps=training.steps or training.epochs * len(sampler),
        identity=run_identity(config, split, classes, backbone.fingerprint),
        clock=clock,
        buffers=Buffers(embedder, loss),
    )


def _refuse_untrainable(config: RunConfig, split: Split) -> None:
    training = config.training
    if not split.train:
        raise UserError(f"--data.split is {config.data.split!r}: no image is left to train on; use auto or first-half")
    if len(ClassIndex.of(split.train)) < 2:
        raise UserError(
            f"only one class is left to train on ({split.train[0].label!r} of dataset {split.train[0].dataset!r}): "
            "add classes, or hold out fewer"
        )
    if config.model.method == "frozen":
        raise UserError(
            "--model.method is 'frozen': it has nothing to train; use `unimetric evaluate`, or puma or linear"
        )
    if training.selection == "best" and not split.validation:
        raise UserError(
            "--training.selection is 'best': no validation classes; set --data.validation_fraction, e.g. 0.2"
        )
    if config.evaluation.classes == "validation" and not split.validation:
        raise UserError(
            "--evaluation.classes is 'validation': no validation classes; set --data.validation_fraction, e.g. 0.5"
        )
    if min(training.batch_size, len(split.train)) < config.device.total_processes:
        raise UserError(
            f"--training.batch_size is {training.batch_size}: {config.device.total_processes} processes share "
            f"{len(split.train)} train images in batches of at most that many; use fewer --device.processes"
        )
