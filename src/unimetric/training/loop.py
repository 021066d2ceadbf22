"""The training loop, from a configuration to a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unimetric.config import RunConfig
from unimetric.data.catalog import ClassIndex
from unimetric.data.loading import Batch
from unimetric.errors import NonFiniteError, UserError
from unimetric.files import write_json
from unimetric.formats.run_folder import RunFolder
from unimetric.formats.vectors import write_measured
from unimetric.losses import CurricularFace, make_loss, proxy_slice
from unimetric.measure import Skipped, measure
from unimetric.models.devices import compute_dtype
from unimetric.models.petl.noise import drawing_for
from unimetric.models.saving import assign_weights, learned_weights
from unimetric.progress import console, progress_bar, say
from unimetric.training.build import check_options, describe, left_out_of, say_split, unmeasured
from unimetric.training.checkpoint import (
    Progress,
    check_skipped,
    load_checkpoint,
    save_checkpoint,
    saying_what_is_kept,
)
from unimetric.training.discriminant import start_from_discriminant
from unimetric.training.drift import measure_extension
from unimetric.training.extension import keep_replay
from unimetric.training.finite import handle_bad_step, read_numbers
from unimetric.training.interrupt import Interrupted, StopRequest, sigterm_like_ctrl_c
from unimetric.training.joint import gather
from unimetric.training.log import TrainingLog
from unimetric.training.optimiser import rate_schedule, step_rows
from unimetric.training.parts import Run, prepare_run
from unimetric.training.provenance import measured_sides, provenance
from unimetric.training.step import StepInput, noise_seed

_LOG_EVERY = 10

# It says on every run which precision it was told to use.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


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
        ProcessLost: one of several processes died. The run can go on, with any number of processes.
    """
    check_options(config)
    if resume:
        folder.refuse_changes(config)
    else:
        folder.refuse_new_run()
    run = prepare_run(config, folder)
    with run.processes.ending_together():
        return _train(run, resume)


def _train(run: Run, resume: bool) -> dict[str, Any]:
    config, folder = run.config, run.folder
    progress = Progress()
    if resume and folder.checkpoint.is_file():
        progress = load_checkpoint(folder.checkpoint, run.embedder, run.loss, run.optimiser, run.identity)
        check_skipped(folder.checkpoint, progress, len(run.split.train), len(run.split.validation))
        run.sampler.restore(progress.sampler)
        say_split(run.split)
        say(f"Continuing {folder.path} after step {progress.step} of {run.total_steps}.")
    else:
        say_split(run.split)
        if resume:
            say(f"{folder.path} has no checkpoint yet; starting from the beginning.")
    run.processes.check_same((run.identity, progress.step), "train images or a checkpoint")
    run.processes.copy_from_first([*run.common_parameters, *run.loss.buffers()])
    for note in run.sampler.notes:
        say(f"note: {note}", style="yellow")
    first = run.fabric.is_global_zero
    if first:
        folder.remove_leftovers()
    if first and resume:
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
            if run.extension is not None and progress.step == 0:
                run.extension.begin(config, run.embedder, run.loss, run.split.train)
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


def _start_from_discriminant(run: Run, progress: Progress) -> None:
    started = time.perf_counter()
    own = proxy_slice(run.loss)
    options = run.config.loss
    # The first process finds the proxies of all classes.
    whole = make_loss(options.name, own.num_classes, run.embedder.embedding_size, options.options) if own else run.loss
    whole.to(run.fabric.device)
    if run.fabric.is_global_zero:
        start_from_discriminant(
            run.embedder,
            whole,
            [item.path for item in run.split.train],
            run.numbers,
            run.config.device.precision,
            run.config.evaluation.batch_size,
            run.read,
        )
    assert run.embedder.head is not None  # noqa: S101  # asked of the configuration
    # The head as well: what DDP would send later is one thing less to rely on.
    run.processes.copy_from_first([*run.embedder.head.parameters(), *whole.parameters()])
    if own:
        run.loss.load_state_dict(whole.state_dict() | {"proxies": whole.state_dict()["proxies"][own.classes]})
    progress.seconds += time.perf_counter() - started


def _train_loop(run: Run, progress: Progress) -> None:
    training, fabric = run.config.training, run.fabric
    model, optimiser = fabric.setup(run.embedder, run.optimiser)
    rate = rate_schedule(training, len(run.sampler), run.total_steps)
    model.train()
    writer = TrainingLog(run.folder.path, progress.step) if fabric.is_global_zero else nullcontext()
    bars = progress_bar(disable=not (fabric.is_global_zero and console.is_terminal))
    with StopRequest(run.processes.count == 1) as stop, writer as log, bars as bar, run.loader:
        task = bar.add_task("Training", total=run.total_steps, completed=progress.step, note="")
        latest = "no image read"
        # What a run that was stopped at the end of an epoch left to do.
        _validate(run, progress, log)
        while progress.step < run.total_steps:
            epoch, batch_number = divmod(progress.step, len(run.sampler))
            run.sampler.start(epoch, batch_number)
            started = time.perf_counter()
            stopping = False
            for batch in stop.batches(run.loader):
                factor = rate(progress.step)
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * factor
                value = _step(run, model, optimiser, batch, progress)
                if run.sampler.observes:
                    run.sampler.observe(progress.step, run.processes.number_of_first(value))
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
                stopping = run.processes.any_of(stop.requested) and progress.step < run.total_steps
                if stopping or progress.step == run.total_steps:
                    break
            # The wait for a batch may have been ended.
            stopping |= stop.requested and run.processes.count == 1 and progress.step < run.total_steps
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
            if fabric.is_global_zero or proxy_slice(run.loss):
                save_checkpoint(run.folder.checkpoint, run.embedder, run.loss, run.optimiser, progress, run.identity)
            if stopping:
                done_of_all = f"{progress.step} of {run.total_steps}"
                raise Interrupted(f"stopped after step {done_of_all}, nothing is lost", run.folder.how_to_resume)


def _step(run: Run, model: Any, optimiser: Any, batch: Batch, progress: Progress) -> float | None:
    """One optimiser step.

    Returns:
        The loss; None if no image of the batch could be read, or if the step was passed over.
    """
    fabric, config, seed = run.fabric, run.config, run.config.training.seed
    joint = run.processes.join(batch, run.sampler.batch_size)
    _note_skipped(run, joint.skipped, progress)
    if len(joint.labels) == 0:
        return None
    images, own = batch.images.to(fabric.device), joint.own
    if len(images) == 0:
        # The joint batch has images, only this process has none: it takes part with one that is left out again.
        side = run.embedder.backbone.image_size
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=fabric.device)
        own = torch.zeros(1, dtype=torch.int64)
    images = run.embedder.transform.normalise(images)
    run.buffers.remember()
    # Adapter dropping is a function of seed, step and place in the joint batch: a resumed run is the same run, whatever
    # the number of processes.
    torch.manual_seed(noise_seed(seed, progress.step, 0))
    with drawing_for(own, len(joint.labels)):
        embeddings = model(images)  # (b, E)
    # Of this process's own images: DDP's mean over processes is that of the joint batch.
    penalties = run.objective.penalties(images, embeddings, batch.class_numbers.to(fabric.device))
    if fabric.world_size > 1:
        embeddings = gather(embeddings, joint)  # (B, E)
    # Some losses draw pairs at random: the same ones in every process.
    torch.manual_seed(noise_seed(seed, progress.step, 1))
    labels = joint.labels.to(fabric.device)
    loss: Tensor = run.loss(embeddings, labels)
    total = sum(penalties, start=loss)
    fabric.backward(total)
    # Each process has the whole gradient of the proxies, but a GPU may round sums another way each time.
    of_loss = [parameter.grad for parameter in run.common_parameters if parameter.grad is not None]
    run.processes.copy_from_first(of_loss)
    run.processes.copy_from_first(list(run.loss.buffers()))
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    # Before clipping, which would make an infinite gradient a small one.
    value, finite = read_numbers(loss, total, learned)
    if run.processes.any_of(not finite):
        run.buffers.restore()
        readable = len(batch.images)
        given = StepInput(images[:readable], embeddings.detach(), labels, own[:readable], seed, progress.step)
        handle_bad_step(run, given, batch.numbers, value, progress)
        optimiser.zero_grad(set_to_none=True)
        return None
    if config.training.clip_value > 0:
        nn.utils.clip_grad_value_(learned, config.training.clip_value)
    if isinstance(run.loss, CurricularFace) and run.loss.drawn is not None:
        step_rows(run.optimiser, run.loss.proxies, run.loss.drawn)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value


def _note_skipped(run: Run, skipped: Sequence[tuple[int, str]], progress: Progress) -> None:
    """Remember the train images of a step that could not be read.

    Raises:
        UserError: with ``--data.strict``, or if no train image at all can be read.
    """
    for number, reason in skipped:
        progress.skipped[number] = reason
        if run.config.data.strict:
            path = run.split.train[number].path
            raise UserError(f"{path}: {reason}; --data.strict is set: remove or mend the file")
    if len(progress.skipped) == len(run.split.train):
        path, reason = run.split.train[0].path, progress.skipped[0]
        raise UserError(f"none of {len(run.split.train)} train images can be read; the first is {path}: {reason}")


def _validate(run: Run, progress: Progress, log: TrainingLog | None) -> None:
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
        read=run.read,
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


def _finish(run: Run, progress: Progress) -> dict[str, Any]:
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
            read=run.read,
        )
    train_skipped = [Skipped(split.train[number], reason) for number, reason in sorted(progress.skipped.items())]
    validation_skipped = [
        Skipped(split.validation[number], reason) for number, reason in sorted(progress.skipped_validation.items())
    ]
    skipped = [*left_out_of(split), *train_skipped, *validation_skipped, *measurement.skipped]
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
    metrics |= measure_extension(config, split, run.embedder, run.extension)
    keep_replay(config, split, run.folder, run.embedder.backbone.image_size)
    run.embedder.save_pretrained(run.folder.model, metrics=metrics)
    if measurement.vectors is not None:
        write_measured(run.folder.vectors, measurement.vectors)
    write_json(run.folder.metrics, metrics)
    return metrics
