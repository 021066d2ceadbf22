"""``unimetric serve`` with a model that takes a second longer for every batch."""

from __future__ import annotations

import sys
import time
from typing import Any

from torch import Tensor

from unimetric.cli import main
from unimetric.models.per_image import PerImageModel


def slow_down() -> None:
    """Make every call of the model in this process a second longer."""
    embed_pixels = PerImageModel.embed_pixels

    def slow_embed_pixels(self: PerImageModel, images: list[Tensor]) -> Any:
        time.sleep(1)
        return embed_pixels(self, images)

    PerImageModel.embed_pixels = slow_embed_pixels  # type: ignore[method-assign]


if __name__ == "__main__":
    # Not when it is imported, which looking for doctests does.
    slow_down()
    sys.exit(main(["serve", *sys.argv[1:]]))
