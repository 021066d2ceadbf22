"""The training loop, from a configuration to a run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unimetric.config import RunConfig
from unimetric.data.catalog import ClassIndex
from unimetric.data.loading import Batch, training_loader
from unimetric.data.sampling import BatchSampler
from unimetric.data.splits import Split
from unimetric.data.transforms import TrainingTransform
from unimetric.errors import UserError
from unimetric.files import write_json
from unimetric.losses import LOSSES, make_loss
from unimetric.measure import Skipped, measure
from unimetric.models.devices import choose_device, choose_precision, compute_dtype
from unimetric.models.embedder import Embedder
from unimetric.models.saving import assign_weights, learned_weights
from unimetric.progress import console, progress_bar
from unimetric.training.build import build_embedder, describe, load_split
from unimetric.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from unimetric.training.interrupt import Interrupted, StopRequest
from unimetric.training.log import TrainingLog
from unimetric.training.optimiser import make_optimiser, rate_schedule
from unimetric.training.run import RunFolder, run_identity

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_LOG_EVERY = 10


@dataclass
class _Run:
    """The parts of a run, ready to train."""

    config: RunConfig
    folder: RunFolder
    fabric: Fabric
    split: Split
    embedder: Embedder
    loss: nn.Module
    optimiser: torch.optim.Optimizer
    sampler: BatchSampler
    loader: DataLoader[Batch]
    total_steps: int
    identity: str


def train(config: RunConfig, folder: RunFolder, *, resume: bool = False) -> dict[str, Any]:
    """Train as configured, measure on the test classes, and write the run folder.

    Args:
        config: Every option.
        folder: Where to write. With ``resume``, the run that is there goes on from its latest checkpoint, to the
            same weights as if it had never stopped (bit for bit on a CPU).
        resume: Whether to continue.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        UserError: bad input. Nothing is written before the data and the model have been found good.
        Interrupted: stopped by Ctrl-C or SIGTERM, after saving.
    """
    run = _prepare(config, folder)
    if run.fabric.is_global_zero and not resume:
        folder.create(config)
    progress = Progress()
    if resume and folder.checkpoint.is_file():
        progress = load_checkpoint(folder.checkpoint, run.embedder, run.loss, run.optimiser, run.identity)
        console.print(f"Continuing {folder.path} after step {progress.step} of {run.total_steps}.")
    elif resume:
        console.print(f"{folder.path} has no checkpoint yet; starting from the beginning.")
    dtype = compute_dtype(config.device.precision, run.fabric.device)
    with run.embedder.backbone.holding(dtype):
        _train_loop(run, progress)
    if config.training.selection == "best":
        assign_weights(run.embedder, progress.best_weights, folder.checkpoint)
    return _finish(run, progress) if run.fabric.is_global_zero else {}


def _prepare(config: RunConfig, folder: RunFolder) -> _Run:
    device = choose_device(config.device.accelerator)
    precision = choose_precision(config.device.precision, device)
    fabric = Fabric(
        accelerator=device.type,
        devices=config.device.processes,
        strategy="ddp" if config.device.processes > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    if config.device.processes > 1:
        fabric.launch()
    split = load_split(config)
    _refuse_untrainable(config, split)
    classes = ClassIndex.of(split.train)
    numbers = classes.numbers(split.train)
    embedder = build_embedder(config)
    loss = make_loss(config.loss.name, len(classes), embedder.embedding_size, config.loss.options)
    sampler = BatchSampler(
        numbers,
        config.training.batch_size,
        images_per_class=LOSSES[config.loss.name].images_per_class,
        seed=config.training.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
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
    )
    embedder.to(fabric.device)
    loss.to(fabric.device)
    return _Run(
        config=config,
        folder=folder,
        fabric=fabric,
        split=split,
        embedder=embedder,
        loss=loss,
        optimiser=make_optimiser(embedder, loss, training),
        sampler=sampler,
        loader=loader,
        total_steps=training.steps or training.epochs * len(sampler),
        identity=run_identity(config, split, classes, backbone.fingerprint),
    )


def _refuse_untrainable(config: RunConfig, split: Split) -> None:
    training = config.training
    if not split.train:
        raise UserError(f"--data.split is {config.data.split!r}: no image is left to train on; use auto or first-half")
    if config.model.method == "frozen":
        raise UserError(
            "--model.method is 'frozen': it has nothing to train; use `unimetric evaluate`, or puma or linear"
        )
    if training.selection == "best" and not split.validation:
        raise UserError(
            "--training.selection is 'best': no validation classes; set --data.validation_fraction, e.g. 0.2"
        )
    if training.batch_size % config.device.processes:
        raise UserError(
            f"--training.batch_size is {training.batch_size}: it has to be a multiple of --device.processes, "
            f"{config.device.processes}"
        )


def _train_loop(run: _Run, progress: Progress) -> None:
    training, fabric = run.config.training, run.fabric
    model, optimiser = fabric.setup(run.embedder, run.optimiser)
    rate = rate_schedule(training, len(run.sampler), run.total_steps)
    log = TrainingLog(run.folder.path, progress.step) if fabric.is_global_zero else None
    model.train()
    with StopRequest() as stop, progress_bar(disable=not fabric.is_global_zero) as bar:
        task = bar.add_task("Training", total=run.total_steps, completed=progress.step, note="")
        while progress.step < run.total_steps:
            epoch, batch_number = divmod(progress.step, len(run.sampler))
            run.sampler.start(epoch, batch_number)
            for batch in run.loader:
                started = time.perf_counter()
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * rate(progress.step)
                value = _step(run, model, optimiser, batch, progress)
                progress.step += 1
                progress.seconds += time.perf_counter() - started
                if log and (progress.step % _LOG_EVERY == 0 or progress.step == run.total_steps):
                    log.write(
                        progress.step,
                        epoch=epoch,
                        loss=value,
                        rate=rate(progress.step - 1),
                        seconds=progress.seconds,
                    )
                bar.update(task, completed=progress.step, note=f"loss {value:.3f}")
                if stop.requested or progress.step == run.total_steps:
                    break
            if not stop.requested:
                _validate(run, progress, log)
            if fabric.is_global_zero:
                save_checkpoint(run.folder.checkpoint, run.embedder, run.loss, run.optimiser, progress, run.identity)
            if stop.requested and progress.step < run.total_steps:
                raise Interrupted(
                    f"stopped after step {progress.step} of {run.total_steps}, nothing is lost; "
                    f"continue with: unimetric train --resume {run.folder.path}"
                )
    if log:
        log.close()


def _step(run: _Run, model: Any, optimiser: Any, batch: Batch, progress: Progress) -> float:
    """One optimiser step; returns the loss."""
    fabric, config = run.fabric, run.config
    for number, reason in batch.skipped:
        progress.skipped[number] = reason
        if config.data.strict or fabric.world_size > 1:
            # Processes that hold different numbers of images would wait for each other for ever.
            why = "--data.strict is set" if config.data.strict else "several processes need every image"
            raise UserError(f"{run.split.train[number].path}: {reason}; {why}: remove or mend the file")
    if len(batch.images) == 0:
        return float("nan")
    # Adapter dropping is a function of seed, step and process, which is what makes a resumed run the same run.
    torch.manual_seed(_noise_seed(config.training.seed, progress.step, fabric.global_rank))
    embeddings = model(batch.images.to(fabric.device))  # (B, E)
    labels = batch.class_numbers.to(fabric.device)  # (B,)
    if fabric.world_size > 1:
        # Every process computes the loss of the joint batch; DDP's mean over processes then undoes the gather's sum.
        embeddings = cast(Tensor, fabric.all_gather(embeddings, sync_grads=True)).flatten(0, 1)
        labels = cast(Tensor, fabric.all_gather(labels)).flatten(0, 1)
    loss: Tensor = run.loss(embeddings, labels)
    penalty = run.embedder.method.penalty()
    total = loss if penalty is None else loss + penalty
    if not torch.isfinite(total):
        raise UserError(
            f"the loss is {total.item()} at step {progress.step + 1}: the learning rate is too high for this model; "
            f"lower --training.learning_rate ({config.training.learning_rate:g})"
        )
    fabric.backward(total)
    if config.training.clip_value > 0:
        learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_value_(learned, config.training.clip_value)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item()


def _noise_seed(seed: int, step: int, rank: int) -> int:
    return int(torch.tensor([seed, step, rank], dtype=torch.int64).mul(torch.tensor([2**40, 2**12, 1])).sum())


def _validate(run: _Run, progress: Progress, log: TrainingLog | None) -> None:
    """Measure on the validation classes, at the end of an epoch, and keep the best weights if they are wanted."""
    training = run.config.training
    epoch = progress.step // len(run.sampler)
    last = progress.step == run.total_steps
    if not run.split.validation or log is None or (epoch % training.validate_every and not last):
        return
    metrics = measure(
        run.embedder,
        run.split.validation,
        run.split.validation,
        ks=(1,),
        batch_size=run.config.evaluation.batch_size,
        precision=run.config.device.precision,
        description="Validating",
    ).metrics
    score = metrics["harmonic"]["recall@1"]
    log.write(progress.step, validation_harmonic=score, validation_unified=metrics["unified"]["recall@1"])
    if training.selection == "best" and (progress.best_score is None or score > progress.best_score):
        progress.best_score = score
        progress.best_weights = {
            name: value.detach().cpu().clone() for name, value in learned_weights(run.embedder).items()
        }


def _finish(run: _Run, progress: Progress) -> dict[str, Any]:
    """Measure on the test classes; save the model with its numbers, then the numbers."""
    config = run.config
    measurement = measure(
        run.embedder,
        run.split.query,
        run.split.gallery,
        ks=config.evaluation.ks,
        batch_size=config.evaluation.batch_size,
        precision=config.device.precision,
        strict=config.data.strict,
        description="Measuring on test classes",
    )
    train_skipped = [Skipped(run.split.train[number], reason) for number, reason in sorted(progress.skipped.items())]
    metrics = describe(config, run.embedder, measurement.metrics, [*train_skipped, *measurement.skipped])
    metrics["counts"]["train_images"] = len(run.split.train)
    metrics["counts"]["train_classes"] = len(ClassIndex.of(run.split.train))
    metrics["counts"]["skipped_train_files"] = len(train_skipped)
    metrics["training_seconds"] = round(progress.seconds, 1)
    metrics["training_steps"] = progress.step
    run.embedder.save_pretrained(run.folder.model, metrics=metrics)
    write_json(run.folder.metrics, metrics)
    return metrics
