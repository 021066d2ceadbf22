"""``unimetric serve`` with a model that takes a second longer for every batch."""

from __future__ import annotations

import sys
import time
from typing import Any

from torch import Tensor

from unimetric.cli import main
from unimetric.models.inference import InferenceModel


def slow_down() -> None:
    """Make every forward pass of this process a second longer."""
    forward = InferenceModel.forward

    def slow_forward(self: Any, images: Tensor) -> Tensor:
        time.sleep(1)
        return forward(self, images)

    InferenceModel.forward = slow_forward  # type: ignore[method-assign]


if __name__ == "__main__":
    # Not when it is imported, which looking for doctests does.
    slow_down()
    sys.exit(main(["serve", *sys.argv[1:]]))
