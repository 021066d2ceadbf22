"""The source of a trained model: its folder, the weights of its backbone, and the device to load it on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from unimetric.config import DeviceConfig
from unimetric.errors import MissingOptionError
from unimetric.files import user_path

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder


@dataclass(frozen=True)
class ModelSource:
    """A trained model that is not loaded yet, and its device.

    Args:
        path: Run folder, model folder, or name of a backbone or of a model on the hub; None for the model that a run
            or a database records.
        weights: File of the backbone's weights, or one of the words of `ModelConfig.weights`; None for the one in the
            run folder's own configuration.
        device: Device and precision.
        size: Numbers of a vector; None for all that the model gives.
    """

    path: Path | None = None
    weights: str | None = None
    device: DeviceConfig = field(default_factory=DeviceConfig)
    size: int | None = None

    def at(self, path: Path) -> ModelSource:
        """Return the source of another model, with the same device and weights."""
        return replace(self, path=path)

    @cached_property
    def folder(self) -> Path:
        """The model's folder; for the name of a backbone or of a model on the hub, its folder in the cache.

        Raises:
            MissingOptionError: the path is None.
            UserError: as `model_path`.
        """
        if self.path is None:
            raise MissingOptionError("--model is missing: name a run folder or a model folder")
        if self.path.exists():
            return self.path
        from unimetric.models.embedder import model_path

        return model_path(self.path)

    @property
    def weights_file(self) -> str | None:
        """The file to read the backbone's weights from, or None where the model folder names them."""
        from unimetric.formats.run_folder import RunFolder

        run = RunFolder(self.folder)
        weights = self.weights
        if weights is None and run.config.is_file():
            weights = run.read_config().model.weights
        if weights in (None, "pretrained", "random"):
            return None
        file = user_path(weights)
        # A run copied from another machine may contain the file beside the model.
        beside = any((place / file.name).is_file() for place in (run.path, run.model))
        return None if beside and not file.is_file() else str(file)

    def load(self) -> Embedder:
        """Load the model onto its device.

        Raises:
            UserError: the folder or the weights cannot be read or do not match, the device is not available, or the
                model has no vectors of that size.
        """
        from unimetric.models.devices import choose_device
        from unimetric.models.embedder import Embedder
        from unimetric.models.saving import read_model_config
        from unimetric.models.sizes import check_size

        device = choose_device(self.device.accelerator)
        folder = self.folder
        if self.size is not None:
            # Name the model as the user does.
            check_size(self.size, read_model_config(folder)[1], str(self.path))
        return Embedder.from_pretrained(folder, weights=self.weights_file, size=self.size).to(device)
