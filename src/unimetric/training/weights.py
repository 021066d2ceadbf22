"""Where the weights of a trained model's backbone lie."""

from __future__ import annotations

from pathlib import Path

from unimetric.formats.run_folder import RunFolder


def weights_file(model: Path, weights: str | None = None) -> str | None:
    """What to give `Embedder.from_pretrained` as ``weights``; that they are the right ones is for it to check.

    Args:
        model: A run folder or a model folder.
        weights: As in `ModelConfig.weights`; None for what the run folder's own configuration says.

    Returns:
        The file, or None where the model folder says enough.

    Raises:
        UserError: the run folder's configuration is damaged.
    """
    run = RunFolder(model)
    if weights is None and run.config.is_file():
        weights = run.read_config().model.weights
    if weights in (None, "pretrained", "random"):
        return None
    path = Path(weights).expanduser()
    # A run that came from another machine may hold the file beside the model.
    beside = any((folder / path.name).is_file() for folder in (model, run.model))
    return None if beside and not path.is_file() else str(path)
