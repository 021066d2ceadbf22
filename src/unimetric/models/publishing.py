"""Push a trained model to a model hub: its learned weights, its configuration, its numbers and a model card."""

import json
from pathlib import Path
from typing import Any

from unimetric.errors import UserError, cause
from unimetric.files import parse_json, read_bytes
from unimetric.formats.hub import HubName, push_files
from unimetric.models.card import model_card
from unimetric.models.saving import CARD, CONFIG, WEIGHTS, read_model_config, read_weights
from unimetric.models.sizes import ROTATION

_PUSHED = (
    "separate", "harmonic", "unified", "counts", "distance", "intervals", "unified_gap", "thresholds", "budgets",
    "model", "extension",
)  # fmt: skip
"""Parts of ``metrics.json`` that are pushed: measured numbers, but neither paths of images nor the machine."""


def push_model(
    path: Path,
    name: HubName,
    *,
    private: bool = False,
    license: str | None = None,
    message: str = "",
    token: str | None = None,
) -> str:
    """Push the model of a run folder or a model folder, and return the address of the commit.

    A branch is the revision of ``name``. For the other arguments see `Embedder.push_to_hub`.
    """
    folder, config = read_model_config(path)
    weights = read_weights(folder / WEIGHTS, config["weights_sha256"])
    metrics = _metrics(path, folder)
    card = model_card(
        config, sum(value.numel() for value in weights.values()), metrics, place=name.repo, license=license
    )
    names = (CONFIG, WEIGHTS, ROTATION) if "rotation" in config else (CONFIG, WEIGHTS)
    files = {CARD: card.encode(), **{name: read_bytes(folder / name) for name in names}}
    if metrics is not None:
        files["metrics.json"] = json.dumps(metrics, indent=2, ensure_ascii=False).encode()
    text = message or f"{config['method']['name']} on {config['backbone']['name']}"
    return push_files(name, files, message=text, private=private, token=token)


def _metrics(path: Path, folder: Path) -> dict[str, Any] | None:
    """The numbers of a run or of a fetched model, without what describes this machine."""
    for place in (path, folder, *([folder.parent] if (folder.parent / "config.yaml").is_file() else [])):
        file = place / "metrics.json"
        if file.is_file():
            try:
                values = parse_json(read_bytes(file))
                return {name: values[name] for name in _PUSHED if name in values}
            except (ValueError, TypeError) as error:
                raise UserError(f"{file} is damaged ({cause(error)}): measure again with unimetric evaluate") from error
    return None
