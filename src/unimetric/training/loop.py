"""The training loop, from a configuration to a run folder."""

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from unimetric.config import RunConfig
from unimetric.data.loading import Batch
from unimetric.errors import NonFiniteError, UserError
from unimetric.formats.run_folder import RunFolder
from unimetric.losses import CurricularFace, proxy_slice, whole_loss
from unimetric.models.network import assign_weights, learned_weights
from unimetric.models.petl.noise import drawing_for
from unimetric.progress import console, duration, log_notes, log_status, progress_bar
from unimetric.training.checkpoint import Progress, load_checkpoint, naming_the_kept_checkpoint, save_checkpoint
from unimetric.training.discriminant import start_from_discriminant
from unimetric.training.finish import write_results
from unimetric.training.global_batch import gather
from unimetric.training.interrupt import Interrupted, StopRequest, sigterm_as_keyboard_interrupt
from unimetric.training.log import TrainingLog
from unimetric.training.nonfinite import handle_nonfinite_step, read_numbers
from unimetric.training.optimiser import averaged_weights, step_rows, update_average
from unimetric.training.provenance import update_peaks
from unimetric.training.resolve import Run, resolve
from unimetric.training.setup import check_options, log_split

_LOG_EVERY = 10

# It reports its precision in every run.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@sigterm_as_keyboard_interrupt()
def train(config: RunConfig, folder: RunFolder, *, resume: bool = False) -> dict[str, Any]:
    """Train as configured, measure on the test classes, and write the run folder.

    Args:
        config: Every option.
        folder: Folder to write to.
        resume: Continue the run in ``folder`` from its latest checkpoint, to the same weights as if it had never
            stopped (bit for bit on a CPU).

    Returns:
        The content of ``metrics.json``. Of several processes, only the first one returns it, the others nothing.

    Raises:
        UserError: bad input. Nothing is written before data and model have been found good.
        WorkerError: worker processes cannot hand over images.
        NonFiniteError: a loss or a gradient that is not a finite number.
        Interrupted: stopped by Ctrl-C or SIGTERM, after saving.
        KeyboardInterrupt: stopped before the first step or during the final measurement, when there is nothing new to
            save. A run whose ``config.yaml`` is written can go on.
        ProcessLost: another process of the training, or a worker, died. The run can go on.
    """
    check_options(config)
    if resume:
        folder.refuse_changes(config)
    else:
        folder.refuse_new_run()
    run = resolve(config, folder)
    place: AbstractContextManager[None] = nullcontext()
    if run.first:
        place = folder.locked() if resume else folder.new_run(config)
    with run.processes.ending_together():
        try:
            with place, naming_the_kept_checkpoint(folder):
                progress = _restore(run, resume)
                with run.embedder.backbone.holding(run.dtype):
                    if progress.step == 0:
                        _prepare_weights(run, progress)
                    train_steps(run, progress)
                if not run.first:
                    return {}
                if kept := progress.best_weights or progress.average:
                    assign_weights(run.embedder, kept, folder.checkpoint)
                return write_results(run, progress)
        except (Interrupted, NonFiniteError):
            # All processes raise it; rank 0 reports it and may still be saving.
            if run.first:
                raise
            return {}


def _restore(run: Run, resume: bool) -> Progress:
    """Load the checkpoint, if there is one, and give all processes the same weights."""
    folder, progress = run.folder, Progress()
    # Wait for rank 0, which has the lock now: a run that was ending may have saved another checkpoint meanwhile.
    run.processes.any_of(False)
    continues = resume and folder.checkpoint.is_file()
    if resume and not continues and folder.metrics.is_file():
        raise UserError(
            f"{folder.checkpoint} is missing, but the run in {folder.path} has ended: copy it back, or start a new run "
            "with --out"
        )
    if continues:
        progress = load_checkpoint(folder.checkpoint, run.embedder, run.loss, run.optimiser, run.identity)
        run.sampler.restore(progress.sampler)
    log_split(run.split)
    if continues:
        log_status(f"Continuing {folder.path} after step {progress.step} of {run.total_steps}.")
    elif resume:
        log_status(f"{folder.path} has no checkpoint yet; starting from the beginning.")
    run.processes.check_same((run.identity, progress.step), "train images or another checkpoint")
    run.processes.copy_from_first([*run.common_parameters, *run.loss.buffers()])
    log_notes(run.sampler.notes)
    if run.first:
        folder.remove_leftovers()
    if run.first and resume:
        # The device and the evaluation options may have changed.
        folder.write_config(run.config)
    return progress


def _prepare_weights(run: Run, progress: Progress) -> None:
    """Set the weights that do not start at random."""
    if run.discriminant_start:
        started = time.perf_counter()
        _start_from_discriminant(run)
        progress.seconds += time.perf_counter() - started
    if run.begin_extension is not None:
        run.begin_extension()


def _start_from_discriminant(run: Run) -> None:
    own = proxy_slice(run.loss)
    # Rank 0 computes the proxies of all classes.
    whole = run.whole_loss() if own else run.loss
    whole.to(run.fabric.device)
    if run.first:
        paths = [item.path for item in run.split.train]
        start_from_discriminant(run.embedder, whole, paths, run.numbers, run.evaluate)
    assert run.embedder.head is not None  # noqa: S101  # the options were checked
    # Broadcast the head explicitly instead of relying on DDP's first synchronisation.
    run.processes.copy_from_first([*run.embedder.head.parameters(), *whole.parameters()])
    if own:
        run.loss.load_state_dict(whole.state_dict() | {"proxies": whole.state_dict()["proxies"][own.classes]})


def train_steps(run: Run, progress: Progress) -> None:
    """Train until the last step, validating and saving after every epoch; an `Interrupted` on a request to stop."""
    fabric, total = run.fabric, run.total_steps
    model, optimiser = fabric.setup(run.embedder, run.optimiser)
    model.train()
    options = run.config.training.loggers, asdict(run.config)
    writer = TrainingLog(run.folder.path, progress.step, *options) if run.first else nullcontext()
    bars = progress_bar(disable=not (run.first and console.is_terminal))
    with StopRequest(run.processes.count == 1) as stop, writer as log, bars as bar, run.loader:
        task = bar.add_task("Training", total=total, completed=progress.step, note="")
        latest = "no image read"
        # A run that was stopped at the end of an epoch has not validated yet.
        _validate(run, progress, log)
        while progress.step < total:
            epoch, batch_number = divmod(progress.step, len(run.sampler))
            run.sampler.start(epoch, batch_number)
            started, stopping = time.perf_counter(), False
            for batch in stop.batches(run.loader):
                for group in optimiser.param_groups:
                    group["lr"] = group["base_lr"] * run.rate(progress.step)
                value = train_step(run, model, optimiser, batch, progress)
                if run.sampler.observes:
                    run.sampler.observe(progress.step, run.processes.gather_objects(value)[0])
                    progress.sampler = run.sampler.state()
                progress.step += 1
                if run.first and run.average_horizon:
                    update_average(progress.average, run.embedder, progress.step, max(run.average_horizon, 1.0))
                done = time.perf_counter()
                progress.seconds += done - started
                started = done
                _log_step(run, progress, log, value)
                if value is not None:
                    latest = f"loss {value:.3f}"
                    bar.update(task, completed=progress.step, note=latest)
                stopping = run.processes.any_of(stop.requested) and progress.step < total
                if stopping or progress.step == total:
                    break
            # The wait for a batch may have been ended.
            stopping |= stop.requested and run.processes.count == 1 and progress.step < total
            if not stopping and progress.step < total and progress.step % len(run.sampler):
                continue  # the sampler ended a round within the epoch, to look at the losses
            if log and not console.is_terminal:
                spent, to_do = progress.seconds, total - progress.step
                left = f", {duration(spent / progress.step * to_do)} left" if to_do else ""
                log_status(f"epoch {epoch + 1}, step {progress.step} of {total}: {latest}, {spent:.0f} s{left}")
            if not stopping:
                _validate(run, progress, log)
            if log:
                log.flush()
            update_peaks(progress.peak_memory, fabric.device)
            if run.first or proxy_slice(run.loss):
                save_checkpoint(run.folder.checkpoint, run.embedder, run.loss, run.optimiser, progress, run.identity)
            if stopping:
                done_of_all = f"{progress.step} of {total}"
                raise Interrupted(f"stopped after step {done_of_all}, nothing is lost", run.folder.how_to_resume)


def _log_step(run: Run, progress: Progress, log: TrainingLog | None, value: float | None) -> None:
    """Write a row every `_LOG_EVERY` steps, and for a step that was skipped."""
    if log is None:
        return
    if progress.skipped_steps[-1:] == [progress.step]:
        log.write(progress.step, skipped_steps=len(progress.skipped_steps))
    if value is not None and (progress.step % _LOG_EVERY == 0 or progress.step == run.total_steps):
        step = progress.step - 1
        factor = run.rate(step)
        rates = {"rate_factor": factor, "learning_rate": factor * run.config.training.learning_rate}
        row = {"epoch": step // len(run.sampler), "loss": value, **rates}
        shares = {f"share/{name}": share for name, share in run.sampler.shares().items()}
        log.write(progress.step, **row, seconds=progress.seconds, **shares)


def train_step(run: Run, model: Any, optimiser: Any, batch: Batch, progress: Progress) -> float | None:
    """Take an optimiser step and return the loss; None if no image could be read, or if the step was skipped."""
    device = run.fabric.device
    whole = run.processes.join(batch, run.sampler.batch_size)
    _note_skipped(run, whole.skipped, progress)
    if len(whole.labels) == 0:
        return None
    images, own = batch.images.to(device), whole.own  # (b, 3, S, S), (b,)
    if len(images) == 0:
        # This rank has no images; use a dummy image so that it still joins the collective.
        side = run.embedder.backbone.image_size
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
        own = torch.zeros(1, dtype=torch.int64)
    images = run.embedder.transform.normalise(images)
    averages = [buffer.clone() for buffer in run.loss.buffers()]
    # Adapter dropping is a function of seed, step and place in the global batch, so a resumed run is the same run, with
    # any number of processes.
    torch.manual_seed(noise_seed(run.seed, progress.step, 0))
    with drawing_for(own, len(whole.labels)):
        embeddings = model(images)  # (b, E)
    # Of this process's own images: DDP's mean over processes is that of the global batch.
    penalties = [run.embedder.method.penalty()]
    if run.extension is not None:
        penalties.append(run.extension.penalty(images, embeddings, batch.class_numbers.to(device)))
    if run.processes.count > 1:
        embeddings = gather(embeddings, whole)  # (B, E)
    # Some losses draw pairs at random: the same ones in every process.
    torch.manual_seed(noise_seed(run.seed, progress.step, 1))
    labels = whole.labels.to(device)
    loss: Tensor = run.loss(embeddings, labels)
    total = sum((penalty for penalty in penalties if penalty is not None), start=loss)
    run.fabric.backward(total)
    # Each process has the whole gradient of the proxies, but a GPU may round sums another way each time.
    of_loss = [parameter.grad for parameter in run.common_parameters if parameter.grad is not None]
    run.processes.copy_from_first(of_loss)
    run.processes.copy_from_first(list(run.loss.buffers()))
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    # Before clipping, which would make an infinite gradient a small one.
    value, finite = read_numbers(loss, total, learned)
    if run.processes.any_of(not finite):
        for buffer, before in zip(run.loss.buffers(), averages, strict=True):
            buffer.copy_(before)
        readable = len(batch.images)
        own_embeddings = embeddings.detach()[own[:readable].to(device)]
        handle_nonfinite_step(run, images[:readable], own_embeddings, batch.numbers, value, progress)
        optimiser.zero_grad(set_to_none=True)
        return None
    if run.clip_value > 0:
        nn.utils.clip_grad_value_(learned, run.clip_value)
    drawing = whole_loss(run.loss)
    if isinstance(drawing, CurricularFace) and drawing.drawn is not None:
        step_rows(run.optimiser, drawing.proxies, drawing.drawn)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value


def noise_seed(seed: int, step: int, use: int) -> int:
    """Return the seed of a step's random numbers: ``use`` 0 for adapter dropping, 1 for the loss's draws."""
    return (seed * 2**40 + step * 2**12 + use) % 2**63


def _note_skipped(run: Run, skipped: Sequence[tuple[int, str]], progress: Progress) -> None:
    """Remember the train images of a step that could not be read."""
    for number, reason in skipped:
        progress.skipped[number] = reason
        if run.evaluate.strict:
            path = run.split.train[number].path
            raise UserError(f"{path}: {reason}; --data.strict is set: remove or repair the file")
    if len(progress.skipped) == len(run.split.train):
        path, reason = run.split.train[0].path, progress.skipped[0]
        raise UserError(f"none of {len(run.split.train)} train images can be read; the first is {path}: {reason}")


def _validate(run: Run, progress: Progress, log: TrainingLog | None) -> None:
    """Measure on the validation classes, if that is due, and keep the best weights if they are wanted."""
    if log is None or not run.validate_every or progress.validated == progress.step:
        return
    epoch, within = divmod(progress.step, len(run.sampler))
    at_end = run.validate_at_end and progress.step == run.total_steps
    if not at_end and (within or epoch % run.validate_every):
        return
    with averaged_weights(run.embedder, progress.average, run.folder.checkpoint):
        _measure_validation(run, progress, log)


def _measure_validation(run: Run, progress: Progress, log: TrainingLog) -> None:
    images = run.split.validation
    brief = replace(run.evaluate, ks=(1,), mean_average_precision=False)
    measurement = brief(run.embedder, images, images, "Validating")
    number = {item.path: index for index, item in enumerate(images)}
    progress.skipped_validation |= {number[entry.path]: entry.reason for entry in measurement.skipped}
    metrics = measurement.metrics
    progress.validated = progress.step
    score = metrics["harmonic"]["recall@1"]
    log.write(progress.step, validation_harmonic=score, validation_unified=metrics["unified"]["recall@1"])
    if run.keep_best and (progress.best_score is None or score > progress.best_score):
        progress.best_score = score
        progress.best_weights = {
            name: value.detach().cpu().clone() for name, value in learned_weights(run.embedder).items()
        }
