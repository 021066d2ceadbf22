"""The run folder: what training writes where, and reading a run's configuration back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import yaml

from unimetric.config import RunConfig, run_config
from unimetric.data.catalog import ClassIndex
from unimetric.data.splits import Split
from unimetric.errors import UserError
from unimetric.files import explain_os_error, make_folder, write_text


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder.

    ``config.yaml`` (every option), ``log.jsonl`` (a row every few steps), ``checkpoint.safetensors`` (the latest),
    ``model/`` (what `Embedder.from_pretrained` loads), ``metrics.json`` (the measured numbers; written last).
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

    def create(self, config: RunConfig) -> None:
        """Make the folder and write the configuration.

        Raises:
            UserError: a run is there already, or no permission.
        """
        if self.config.exists():
            raise UserError(
                f"{self.path} holds a run already: continue it with `unimetric train --resume {self.path}`, or choose "
                "another --out"
            )
        make_folder(self.path)
        write_text(self.config, yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))

    def read_config(self) -> RunConfig:
        """The configuration that the run was started with.

        Raises:
            UserError: it is not a run folder, or the file is damaged.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml")
        try:
            with explain_os_error(self.config, "read"):
                values = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config} is damaged: {str(error).splitlines()[0]}") from error
        return run_config(values, str(self.config))


def run_identity(config: RunConfig, split: Split, classes: ClassIndex, fingerprint: str) -> str:
    """A SHA-256 of what has to be the same for a checkpoint to be continued.

    The train images with their classes, in order, the backbone's weights, and every option that decides the result.
    Where the computation runs and what is measured afterwards may change.
    """
    deciding = {name: asdict(config)[name] for name in ("model", "loss", "training")}
    deciding["model"].pop("weights")
    images = [(item.dataset, item.label, item.path.name) for item in split.train]
    content = json.dumps([deciding, classes.classes, images, fingerprint], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
