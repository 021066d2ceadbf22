"""A function for each command: what it does with its options. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from unimetric.config import DeviceConfig


def tell(text: str) -> None:
    """Tell a person one line, on standard error."""
    from unimetric.progress import say

    say(text)


def model_options(options: Namespace) -> dict[str, Any]:
    """What the options say about the model: its folder, the backbone's weights, and where to compute."""
    return {
        "model": None if options.model is None else Path(options.model).expanduser(),
        "weights": options.weights,
        "device": DeviceConfig(**options.device.as_dict()),
    }
