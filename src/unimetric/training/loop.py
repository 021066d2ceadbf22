"""The training loop, from a configuration to a run folder."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unimetric.config import RunConfig
from unimetric.data.catalog import ClassIndex
from unimetric.data.loading import Batch, training_loader
from unimetric.data.sampling import BatchSampler, Share, make_sampler
from unimetric.data.splits import Split
from unimetric.data.transforms import TrainingTransform
from unimetric.errors import NonFiniteError, UserError
from unimetric.files import write_json
from unimetric.losses import LOSSES, make_loss
from unimetric.measure import Skipped, check_positives, measure
from unimetric.models.devices import choose_device, choose_precision, compute_dtype
from unimetric.models.embedder import Embedder
from unimetric.models.saving import assign_weights, learned_weights
from unimetric.progress import console, progress_bar, say
from unimetric.training.build import build_embedder, check_options, describe, load_split, say_split, unmeasured
from unimetric.training.checkpoint import Progress, load_checkpoint, save_checkpoint, saying_what_is_kept
from unimetric.training.discriminant import start_from_discriminant
from unimetric.training.finite import handle_bad_step, read_numbers
from unimetric.training.interrupt import Interrupted, StopRequest, sigterm_like_ctrl_c
from unimetric.training.log import TrainingLog
from unimetric.training.optimiser import make_optimiser, rate_schedule
from unimetric.training.provenance import Clock, measured_sides, provenance
from unimetric.training.run import RunFolder, run_identity
from unimetric.training.step import Buffers, StepInput, noise_seed
from unimetric.vectors import write_measured

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_LOG_EVERY = 10

# It says on every run which precision it was told to use.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@dataclass
class _Run:
    """The parts of a run, ready to train."""

    config: RunConfig
    folder: RunFolder
    fabric: Fabric
    split: Split
    numbers: list[int]
    embedder: Embedder
    loss: nn.Module
    optimiser: torch.optim.Optimizer
    sampler: BatchSampler
    loader: DataLoader[Batch]
    total_steps: int
    identity: str
    clock: Clock
    buffers: Buffers


@sigterm_like_ctrl_c()
def train(config: RunConfig, folder: RunFolder, *, resume: bool = False) -> dict[str, Any]:
    """Train as configured, measure on the test classes, and write the run folder.

    Args:
        config: Every option.
        folder: Where to write. With ``resume``, the run that is there goes on from its latest checkpoint, to the
            same weights as if it had never stopped (bit for bit on a CPU).
        resume: Whether to continue.

    Returns:
        What ``metrics.json`` holds. Where several processes train, it is for the first one; the others return nothing.

    Raises:
        UserError: bad input. Nothing is written before the data and the model have been found good.
        NonFiniteError: a loss or a gradient that is not a finite number.
        Interrupted: stopped by Ctrl-C or SIGTERM, after saving.
        KeyboardInterrupt: the same while nothing new was there to save: before the first step, or while measuring at
            the end. A run whose ``config.yaml`` is written can go on.
    """
    check_options(config)
    if resume:
        folder.refuse_changes(config)
    else:
        folder.refuse_new_run()
    run = _prepare(config, folder)
    progress = Progress()
    if resume and folder.checkpoint.is_file():
        progress = load_checkpoint(folder.checkpoint, run.embedder, run.loss, run.optimiser, run.identity)
        run.sampler.restore(progress.sampler)
        say_split(run.split)
        say(f"Continuing {folder.path} after step {progress.step} of {run.total_steps}.")
    else:
        say_split(run.split)
        if resume:
            say(f"{folder.path} has no checkpoint yet; starting from the beginning.")
    for note in run.sampler.notes:
        say(f"note: {note}", style="yellow")
    first = run.fabric.is_global_zero
    if first and resume:
        folder.remove_leftovers()
        # Where it computes and what it measures may have changed.
        folder.write_config(config)
    dtype = compute_dtype(config.device.precision, run.fabric.device)
    try:
        with (
            saying_what_is_kept(folder),
            folder.new_run(config) if first and not resume else nullcontext(),
            run.embedder.backbone.holding(dtype),
        ):
            if config.training.start == "discriminant" and progress.step == 0:
                _start_from_discriminant(run, progress)
            _train_loop(run, progress)
    except Interrupted:
        if first:
            raise
        # Said and answered for by the first process; a failure of another one would have it killed while it saves.
        return {}
    except NonFiniteError:
        if first:
            raise
        return {}
    if not first:
        return {}
    if config.training.selection == "best":
        assign_weights(run.embedder, progress.best_weights, folder.checkpoint)
    with saying_what_is_kept(folder):
        return _finish(run, progress)


def _prepare(config: RunConfig, folder: RunFolder) -> _Run:
    clock = Clock.start()
    device = choose_device(config.device.accelerator)
    precision = choose_precision(config.device.precision, device)
    fabric = Fabric(
        accelerator=device.type,
        devices=config.device.processes,
        strategy="ddp" if config.device.processes > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
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
    loss = make_loss(config.loss.name, len(classes), embedder.embedding_size, config.loss.options)
    sampler = make_sampler(
        config.sampling.name,
        config.sampling.options,
        numbers,
        [dataset for dataset, _ in classes.classes],
        config.training.batch_size,
        loss_images_per_class=LOSSES[config.loss.name].images_per_class,
        seed=config.training.seed,
        share=Share(fabric.global_rank, config.device.processes),
    )
    if config.device.processes > 1:
        # Starts the other processes with the same command: after everything that can be wrong with it has been checked.
        fabric.launch()
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
        numbers=numbers,
        embedder=embedder,
        loss=loss,
        optimiser=make_optimiser(embedder, loss, training),
        sampler=sampler,
        loader=loader,
        total_steps=training.steps or training.epochs * len(sampler),
        identity=run_identity(config, split, classes, backbone.fingerprint),
        clock=clock,
        buffers=Buffers(embedder, loss),
    )


def _refuse_untrainable(config: RunConfig, split: Split) -> None:
    training = config.training
    if not split.train:
        raise UserError(f"--data.split is {config.data.split!r}: no image is left to train on; use auto or first-half")
    if len(split.train) < config.device.processes:
        raise UserError(
            f"--device.processes is {config.device.processes}: there are {len(split.train)} train images only"
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
    if training.selection == "best" and not split.validation:
        raise UserError(
            "--training.selection is 'best': no validation classes; set --data.validation_fraction, e.g. 0.2"
        )
    if config.evaluation.classes == "validation" and not split.validation:
        raise UserError(
            "--evaluation.classes is 'validation': no validation classes; set --data.validation_fraction, e.g. 0.5"
        )
    if training.batch_size % config.device.processes:
        raise UserError(
            f"--training.batch_size is {training.batch_size}: it has to be a multiple of --device.processes, "
            f"{config.device.processes}"
        )


def _start_from_discriminant(run: _Run, progress: Progress) -> None:
    started = time.perf_counter()
    if run.fabric.is_global_zero:
        start_from_discriminant(
            run.embedder,
            run.loss,
            [item.path for item in run.split.train],
            run.numbers,
            run.config.device.precision,
            run.config.evaluation.batch_size,
        )
    if run.fabric.world_size > 1:
        # The head as well: what DDP would send later is one thing less to rely on.
        for parameter in (*cast(nn.Linear, run.embedder.head).parameters(), *run.loss.parameters()):
            # By way of the CPU: a tensor that is sent as an object arrives on the device that it left from.
            sent = run.fabric.broadcast(parameter.detach().cpu())
            with torch.no_grad():
                parameter.copy_(sent)
    progress.seconds += time.perf_counter() - started


def _train_loop(run: _Run, progress: Progress) -> None:
    training, fabric = run.config.training, run.fabric
    model, optimiser = fabric.setup(run.embedder, run.optimiser)
    rate = rate_schedule(training, len(run.sampler), run.total_steps)
    model.train()
    writer = TrainingLog(run.folder.path, progress.step) if fabric.is_global_zero else nullcontext()
    with StopRequest() as stop, writer as log, progress_bar(disable=log is None or not console.is_terminal) as bar:
        task = bar.add_task("Training", total=run.total_steps, completed=progress.step, note="")
        latest = "no image read"
        # What a run that was stopped at the end of an epoch left to do.
        _validate(run, progress, log)
        while progress.step < run.total_steps:
            epoch, batch_number = divmod(progress.step, len(run.sampler))
            run.sampler.start(epoch, batch_number)
            started = time.perf_counter()
            for batch in run.loader:
                factor = rate(progress.step)
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * factor
                value = _step(run, model, optimiser, batch, progress)
                if run.sampler.observes:
                    run.sampler.observe(progress.step, _agreed(fabric, value))
                    progress.sampler = run.sampler.state()
                progress.step += 1
                if log and progress.skipped_steps[-1:] == [progress.step]:
                    log.write(progress.step, skipped_steps=len(progress.skipped_steps))
                done = time.perf_counter()
                progress.seconds += done - started
                started = done
                if value is not None:
                    latest = f"loss {value:.3f}"
                    bar.update(task, completed=progress.step, note=latest)
                    if log and (progress.step % _LOG_EVERY == 0 or progress.step == run.total_steps):
                        row = {"epoch": epoch, "loss": value, "rate_factor": factor, "seconds": progress.seconds}
                        shares = {f"share/{name}": share for name, share in run.sampler.shares().items()}
                        log.write(progress.step, **row, **shares)
                stopping = _anyone(fabric, stop.requested) and progress.step < run.total_steps
                if stopping or progress.step == run.total_steps:
                    break
            if not stopping and progress.step < run.total_steps and progress.step % len(run.sampler):
                # The sampler ended a round within the epoch, to look at the losses.
                continue
            if log and not console.is_terminal:
                # A bar would show only at its end.
                say(f"epoch {epoch + 1}, step {progress.step} of {run.total_steps}: {latest}, {progress.seconds:.0f} s")
            if not stopping:
                _validate(run, progress, log)
            if log:
                log.flush()
                save_checkpoint(run.folder.checkpoint, run.embedder, run.loss, run.optimiser, progress, run.identity)
            if stopping:
                done_of_all = f"{progress.step} of {run.total_steps}"
                raise Interrupted(f"stopped after step {done_of_all}, nothing is lost", run.folder.how_to_resume)


def _anyone(fabric: Fabric, wish: bool) -> bool:
    """Whether one process at least has the wish: all of them have to stop after the same step."""
    if fabric.world_size == 1:
        return wish
    return bool(fabric.all_reduce(torch.tensor(float(wish), device=fabric.device), reduce_op="sum"))


def _agreed(fabric: Fabric, value: float | None) -> float | None:
    """The same loss in all processes, to the last bit: a sampler that went different ways would tear them apart."""
    if fabric.world_size == 1 or value is None:
        return value
    return cast(Tensor, fabric.all_reduce(torch.tensor(value, device=fabric.device), reduce_op="mean")).item()


def _step(run: _Run, model: Any, optimiser: Any, batch: Batch, progress: Progress) -> float | None:
    """One optimiser step; returns the loss, or None if no image of the batch could be read."""
    fabric, config = run.fabric, run.config
    for number, reason in batch.skipped:
        progress.skipped[number] = reason
        if config.data.strict or fabric.world_size > 1:
            # Processes that hold different numbers of images would wait for each other for ever.
            why = "--data.strict is set" if config.data.strict else "several processes need every image"
            raise UserError(f"{run.split.train[number].path}: {reason}; {why}: remove or mend the file")
    if len(progress.skipped) == len(run.split.train):
        path, reason = run.split.train[0].path, progress.skipped[0]
        raise UserError(f"none of {len(run.split.train)} train images can be read; the first is {path}: {reason}")
    if len(batch.images) == 0:
        return None
    run.buffers.remember()
    # Adapter dropping is a function of seed, step and process, which is what makes a resumed run the same run.
    seed, loss_seed = noise_seed(config.training.seed, progress.step, fabric.global_rank), None
    torch.manual_seed(seed)
    images = batch.images.to(fabric.device)
    embeddings = model(images)  # (B, E)
    labels = batch.class_numbers.to(fabric.device)  # (B,)
    if fabric.world_size > 1:
        # Every process computes the loss of the joint batch; DDP's mean over processes then undoes the gather's sum.
        embeddings = cast(Tensor, fabric.all_gather(embeddings, sync_grads=True)).flatten(0, 1)
        labels = cast(Tensor, fabric.all_gather(labels)).flatten(0, 1)
        # Pair losses draw their negatives at random: the same ones in every process.
        loss_seed = noise_seed(config.training.seed, progress.step, 0)
        torch.manual_seed(loss_seed)
    loss: Tensor = run.loss(embeddings, labels)
    penalty = run.embedder.method.penalty()
    total = loss if penalty is None else loss + penalty
    fabric.backward(total)
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    # Before clipping, which would make an infinite gradient a small one.
    value, finite = read_numbers(loss, total, learned)
    if _anyone(fabric, not finite):
        run.buffers.restore()
        given = StepInput(images, embeddings.detach(), labels, fabric.global_rank * len(images), seed, loss_seed)
        items = [run.split.train[number] for number in batch.numbers]
        classes = max(run.numbers) + 1
        handle_bad_step(fabric, run.folder, config, run.embedder, run.loss, given, items, value, classes, progress)
        optimiser.zero_grad(set_to_none=True)
        return None
    if config.training.clip_value > 0:
        nn.utils.clip_grad_value_(learned, config.training.clip_value)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value


def _validate(run: _Run, progress: Progress, log: TrainingLog | None) -> None:
    """Measure on the validation classes, if that is due, and keep the best weights if they are wanted."""
    training = run.config.training
    epoch = progress.step // len(run.sampler)
    last = progress.step == run.total_steps
    end = progress.step == epoch * len(run.sampler)
    # What is measured at the end anyway is not measured twice.
    last = last and (run.config.evaluation.classes == "test" or training.selection == "best")
    due = last or (end and epoch % training.validate_every == 0)
    if log is None or not run.split.validation or not due or progress.validated == progress.step:
        return
    measurement = measure(
        run.embedder,
        run.split.validation,
        run.split.validation,
        ks=(1,),
        batch_size=run.config.evaluation.batch_size,
        precision=run.config.device.precision,
        strict=run.config.data.strict,
        description="Validating",
    )
    number = {item: index for index, item in enumerate(run.split.validation)}
    progress.skipped_validation |= {number[entry.item]: entry.reason for entry in measurement.skipped}
    metrics = measurement.metrics
    progress.validated = progress.step
    score = metrics["harmonic"]["recall@1"]
    log.write(progress.step, validation_harmonic=score, validation_unified=metrics["unified"]["recall@1"])
    if training.selection == "best" and (progress.best_score is None or score > progress.best_score):
        progress.best_score = score
        progress.best_weights = {
            name: value.detach().cpu().clone() for name, value in learned_weights(run.embedder).items()
        }


def _finish(run: _Run, progress: Progress) -> dict[str, Any]:
    """Measure on the classes that the configuration says; save the model with its numbers, then vectors and numbers."""
    config, split = run.config, run.split
    measurement = unmeasured()
    sides = measured_sides(config, split)
    if sides["query"]:
        measurement = measure(
            run.embedder,
            sides["query"],
            sides["gallery"],
            ks=config.evaluation.ks,
            batch_size=config.evaluation.batch_size,
            precision=config.device.precision,
            strict=config.data.strict,
            description=f"Measuring on {config.evaluation.classes} classes",
            mean_average_precision=config.evaluation.mean_average_precision,
        )
    train_skipped = [Skipped(split.train[number], reason) for number, reason in sorted(progress.skipped.items())]
    validation_skipped = [
        Skipped(split.validation[number], reason) for number, reason in sorted(progress.skipped_validation.items())
    ]
    skipped = [*train_skipped, *validation_skipped, *measurement.skipped]
    metrics = describe(config, run.embedder, measurement.metrics, skipped)
    metrics["counts"]["train_images"] = len(split.train)
    metrics["counts"]["train_classes"] = len(ClassIndex.of(split.train))
    metrics["counts"]["skipped_train_files"] = len(train_skipped)
    metrics["counts"]["skipped_validation_files"] = len(validation_skipped)
    metrics["counts"]["skipped_steps"] = len(progress.skipped_steps)
    if progress.skipped_steps:
        say(f"{len(progress.skipped_steps)} of {progress.step} steps were skipped: not finite", style="yellow")
    metrics["training_seconds"] = round(progress.seconds, 1)
    metrics["training_steps"] = progress.step
    metrics |= provenance(config, split, run.embedder.backbone.fingerprint, run.clock, run.embedder.device)
    run.embedder.save_pretrained(run.folder.model, metrics=metrics if sides["query"] else None)
    if measurement.vectors is not None:
        write_measured(run.folder.vectors, measurement.vectors)
    write_json(run.folder.metrics, metrics)
    return metrics
