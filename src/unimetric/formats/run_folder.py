"""The run folder: its paths, its configuration and its identity."""

import dataclasses
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unimetric.config import RunConfig, read_options, run_config
from unimetric.data.catalog import ClassIndex
from unimetric.data.splits import Split
from unimetric.errors import ProcessLost, UserError, cause
from unimetric.files import check_writable, make_folder, remove_leftovers, write_text
from unimetric.formats.vectors import VECTORS_FILE
from unimetric.progress import log_status
from unimetric.yaml_files import as_yaml

_LOCK = "train.lock"
LOCK_SECONDS = 60.0
"""Time to wait for another process that trains in the same folder, which may be about to end after a signal."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder.

    ``config.yaml`` (every option), ``log.jsonl`` (a row every few steps), ``tensorboard/``, ``csv/`` and ``wandb/``
    (the same rows), ``checkpoint.safetensors`` (the latest), ``model/`` (for `Embedder.from_pretrained`),
    ``vectors.parquet`` (the measured vectors), ``metrics.json`` (the measured numbers; written last).
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration of the run."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """The latest checkpoint."""
        return self.path / "checkpoint.safetensors"

    @property
    def model(self) -> Path:
        """The trained model's folder."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """The measured numbers."""
        return self.path / "metrics.json"

    @property
    def vectors(self) -> Path:
        """The vectors that were measured."""
        return self.path / VECTORS_FILE

    @property
    def how_to_resume(self) -> str:
        """The command that resumes the run, for the end of a message."""
        return f"continue with: unimetric train --resume {shlex.quote(str(self.path))}"

    def refuse_new_run(self) -> None:
        """Check, before the work, that a new run can be written here.

        Raises:
            UserError: a run is there already, or no permission.
        """
        if self.config.exists():
            raise UserError(f"{self.path} holds a run already: choose another --out, or {self.how_to_resume}")
        check_writable(self.path)

    @contextmanager
    def new_run(self, config: RunConfig) -> Iterator[None]:
        """Make and lock the folder, and write the configuration.

        An error before the first checkpoint removes everything that the run made. Interruption and the death of another
        process keep it, so that the run can be resumed.

        Raises:
            UserError: a run is there already, or no permission.
        """
        self.refuse_new_run()
        folders = [path for path in (self.path, *self.path.parents) if not path.exists()]
        make_folder(self.path)
        with ExitStack() as stack:
            stack.enter_context(self.locked())
            # Only now, since another process may just have begun a run here.
            names = ("config.yaml", "log.jsonl", "loggers.json", "tensorboard", "csv", "wandb")
            made = [path for name in names if not (path := self.path / name).exists()]
            try:
                self.refuse_new_run()
                self.write_config(config)
                yield
            except ProcessLost:
                raise
            except Exception:
                # Windows cannot remove an open file.
                stack.close()
                if not self.checkpoint.exists():
                    self._remove(made, folders)
                raise

    def _remove(self, made: Iterable[Path], folders: Iterable[Path]) -> None:
        """Remove what a run made, its lock if no other run is here, and folders without other files."""
        for path in made:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        # A folder may hold other files, and on Windows a process that waits for the lock holds it open.
        with suppress(OSError):
            if not self.config.exists():
                (self.path / _LOCK).unlink(missing_ok=True)
            for path in folders:
                path.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here meanwhile; the system frees the lock of one that is killed.

        Raises:
            UserError: another process still trains here after `LOCK_SECONDS`.
        """
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log_status(f"{self.path} is in use; waiting for the other process that trains there")
            try:
                lock.acquire(timeout=LOCK_SECONDS)
            except Timeout as error:
                raise UserError(
                    f"another process trains in {self.path}: wait for it to end, stop it, or if there is none, "
                    f"delete {_LOCK} there; then {self.how_to_resume}"
                ) from error
        except (OSError, NotImplementedError) as error:
            # Some network file systems have no locks.
            log_status(f"note: {self.path} cannot be locked ({cause(error)}): do not resume it twice", style="yellow")
        try:
            yield
        finally:
            lock.release()

    def write_config(self, config: RunConfig) -> None:
        """Write the configuration.

        Raises:
            UserError: full disk, or no permission.
        """
        write_text(self.config, as_yaml(config))

    def read_config(self) -> RunConfig:
        """Read the configuration that the run was started with.

        Raises:
            UserError: it is not a run folder, or the file is damaged.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml")
        return run_config(read_options(self.config), str(self.config))

    def refuse_changes(self, config: RunConfig) -> None:
        """Check that a configuration continues the run that is here.

        Raises:
            UserError: an option that decides the result differs; it is named, with both values.
        """
        config_before = self.read_config()
        started = _deciding_options(config_before) | _selection(config_before)
        for section, options in (_deciding_options(config) | _selection(config)).items():
            for name, value in options.items():
                before = started[section][name]
                if value != before:
                    raise UserError(
                        f"--{section}.{name} is {value!r}, but {self.path} was started with {before!r}: leave it out, "
                        "or start a new run with --out"
                    )

    def remove_leftovers(self) -> None:
        """Remove temporary files of a process that was killed."""
        for path in (self.checkpoint, self.config, self.metrics, self.vectors, self.path / "log.jsonl"):
            remove_leftovers(path)
        for path in self.model.glob(".saving-*"):
            shutil.rmtree(path)


def run_identity(config: RunConfig, split: Split, classes: ClassIndex, fingerprint: str) -> str:
    """Return a SHA-256 of everything that must be the same to continue a checkpoint.

    The train images with their classes, in order, the backbone's weights, and every option that decides the result.
    Device and evaluation may change.
    """
    deciding = _deciding_options(config)
    images = [(item.dataset, item.label, item.path.name) for item in split.train]
    content = json.dumps([deciding, classes.classes, images, fingerprint], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _deciding_options(config: RunConfig) -> dict[str, dict[str, Any]]:
    options = {name: asdict(config)[name] for name in ("model", "loss", "sampling", "training")}
    # The weights are compared by content, not by path.
    options["model"].pop("weights")
    # None of these changes the result.
    options["training"].pop("shard_proxies")
    options["training"].pop("recompute_blocks")
    options["training"].pop("loggers")
    # A run that was stopped by a bad batch may continue without it.
    options["training"].pop("non_finite")
    return options


def _selection(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the options that decide the train images and their pixels; the identity has the images themselves.

    The extension is not part of the identity either, because its model is in the run folder.
    """
    values = asdict(config)
    names = ("train_datasets", "few_shot", "train_images", "cache", "reduced_decode")
    return {"data": {name: values["data"][name] for name in names}, "extension": values["extension"]}
