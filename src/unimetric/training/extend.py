"""Addition of domains to a trained model: prepare a run that starts from it, with a replay set, and train."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from unimetric.config import DeviceConfig, ExtendConfig, ExtensionConfig, RunConfig, SamplingConfig
from unimetric.data.catalog import ClassIndex, Dataset
from unimetric.data.labels import clean_label
from unimetric.data.replay import ReplaySet, has_replay, read_replay
from unimetric.data.sources import read_sources
from unimetric.errors import UserError
from unimetric.files import explain_os_error, make_folder
from unimetric.formats.run_folder import RunFolder
from unimetric.losses import LOSSES
from unimetric.models.petl import METHODS
from unimetric.models.saving import CARD, CONFIG, WEIGHTS, read_model_config
from unimetric.models.sizes import ROTATION
from unimetric.progress import log_status
from unimetric.training.extension import (
    PROXIES,
    carry_over_check,
    loss_state,
    make_replay,
    replay_folder,
    same_images,
    write_proxies,
)
from unimetric.training.loop import train
from unimetric.training.setup import load_split


def extend_run(
    run: Path, data: Sequence[str], out: Path, options: ExtendConfig, device: DeviceConfig
) -> tuple[RunConfig, dict[str, Any]]:
    """Train a model further on new datasets, and write a run folder ``out`` like any other.

    Only a replay set is written to the old run, where it has none. Returns the new run's configuration, and the content
    of its ``metrics.json``.

    Raises:
        UserError: the run lacks its model, its checkpoint or a replay set and the images to make one; a new dataset
            has the name of an old one; or anything that training refuses.
        Interrupted: as `train`; the new run goes on with ``unimetric train --resume``.
    """
    old, new = RunFolder(run), RunFolder(out)
    config = old.read_config()
    if device.processes > 1:
        raise UserError(f"--device.processes is {device.processes}: extend trains in one process; use 1")
    if not METHODS[config.model.method].has_head:
        raise UserError(f"{run} was trained with --model.method {config.model.method}, which learns nothing to extend")
    model, about = read_model_config(run)
    new.refuse_new_run()
    added = read_sources(data)
    state = loss_state(old)
    replay = replay_folder(run)
    kept = read_replay(replay) if has_replay(replay) else _write_from_images(config, old, options.replay_per_class)
    if kept.image_size < about["backbone"]["image_size"]:
        raise UserError(
            f"the replay set {replay} was made for {kept.image_size} px, the model reads "
            f"{about['backbone']['image_size']} px: write it again with --replay_only while the old images are there"
        )
    carry_over_check(config, state, kept.classes, old.checkpoint)
    if known := next((dataset.name for dataset in added if dataset.name in kept.datasets), None):
        raise UserError(
            f"--data names a dataset {known!r}, and {run} was trained on one of that name: give the new one another, "
            "as in --data NAME=PATH"
        )
    extended = _configuration(config, kept, added, data, out, options, device)
    folders = [path for path in (out, *out.parents) if not path.exists()]
    base = out / "base"
    try:
        _copy_base(base, model, replay, state, kept)
        return extended, train(extended, new)
    finally:
        if not new.config.exists():
            _remove_base(base)
            with suppress(OSError):  # it holds other files
                for path in folders:
                    path.rmdir()


def _copy_base(base: Path, model: Path, replay: Path, state: dict[str, Tensor], kept: ReplaySet) -> None:
    """Put all that is needed of the old run into the new one: whole, or not at all."""
    _remove_base(base)
    if base.exists():
        raise UserError(f"{base} exists and was not written by unimetric extend: choose another --out")
    make_folder(base.parent)
    with explain_os_error(base, "write"), TemporaryDirectory(prefix=".base-", dir=base.parent) as staging:
        staged = Path(staging) / "base"
        make_folder(staged / "model")
        for name in (WEIGHTS, ROTATION, CARD, CONFIG):
            # Models on the ball have no rotation.
            if name != ROTATION or (model / name).exists():
                shutil.copyfile(model / name, staged / "model" / name)
        shutil.copytree(replay, replay_folder(staged))
        write_proxies(staged / PROXIES, state, kept.classes)
        staged.replace(base)


def _remove_base(base: Path) -> None:
    if (base / PROXIES).is_file():
        shutil.rmtree(base)


def keep_replay_set(run: Path, options: ExtendConfig) -> ReplaySet:
    """Write or replace a run's replay set from its train images; a `UserError` if they are gone or of other classes."""
    folder = RunFolder(run)
    config = folder.read_config()
    return _write_from_images(config, folder, options.replay_per_class)


def _write_from_images(config: RunConfig, run: RunFolder, images_per_class: int) -> ReplaySet:
    try:
        split = load_split(config)
    except UserError as error:
        raise UserError(
            f"{run.path} has no replay set, and its train images cannot be read ({error}): put them back, or name "
            "where they are now in its config.yaml"
        ) from error
    carry_over_check(config, loss_state(run), ClassIndex.of(split.train).classes, run.checkpoint)
    if not same_images(config, split, run):
        log_status(
            f"note: the images or options are not exactly those that {run.path} was trained with; if classes were "
            "renamed, their proxies are mixed up",
            style="yellow",
        )
    return make_replay(config, split, run, config.model.image_size, images_per_class)


def _configuration(
    config: RunConfig,
    kept: ReplaySet,
    added: Sequence[Dataset],
    data: Sequence[str],
    out: Path,
    options: ExtendConfig,
    device: DeviceConfig,
) -> RunConfig:
    names = [dataset.name for dataset in added]
    old_sources = _sources_left(config.data.sources)
    there = [dataset.name for dataset in read_sources(old_sources)] if old_sources else []
    if twice := next((name for name in names if name in there), None):
        raise UserError(
            f"--data names a dataset {twice!r}, and the sources of the old run hold one of that name, which it was not "
            "trained on: give the new one another, as in --data NAME=PATH"
        )
    tested = [name for name in map(clean_label, config.data.test_datasets) if name in there]
    training = config.training
    return replace(
        config,
        data=replace(
            config.data,
            sources=[*old_sources, *data],
            train_datasets=names,
            test_datasets=[*tested, *names] if config.data.test_datasets else [],
            few_shot=None,
            train_images={},
            replay_per_class=kept.images_per_class,
            workers=options.workers,
        ),
        # Half of each batch are old images, half new ones, unless the loss needs pairs.
        sampling=SamplingConfig("dataset-balanced")
        if LOSSES[config.loss.name].images_per_class is None
        else SamplingConfig(),
        training=replace(
            training,
            start="random",
            steps=options.steps,
            batch_size=training.batch_size if options.batch_size is None else options.batch_size,
            learning_rate=training.learning_rate * options.learning_rate_scale,
            schedule="cosine",
            warmup_steps=min(training.warmup_steps, options.steps // 10),
            seed=options.seed,
            selection="last",
        ),
        extension=ExtensionConfig(str(out / "base"), options.distillation, options.compatible),
        evaluation=replace(config.evaluation, classes="test"),
        device=device,
    )


def _sources_left(sources: Sequence[str]) -> list[str]:
    """Return the old run's sources that can still be read; a note names each of the others."""
    left = []
    for source in sources:
        try:
            read_sources([source])
        except UserError as error:  # noqa: PERF203 - each source is looked at by itself
            log_status(f"note: an old source is skipped in the measurement: {error}", style="yellow")
        else:
            left.append(source)
    return left
