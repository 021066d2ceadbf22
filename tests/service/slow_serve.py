"""``unimetric serve`` with a model that waits before every batch while there is a file at the path ``HOLD``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from unimetric.cli import main
from unimetric.models.per_image import PerImageModel


def wait_for(hold: Path) -> None:
    """Make every call of the model in this process wait while a file is there."""
    embed_pixels = PerImageModel.embed_pixels

    def slow_embed_pixels(self: PerImageModel, images: list[Tensor]) -> Any:
        while hold.exists():
            time.sleep(0.01)
        return embed_pixels(self, images)

    PerImageModel.embed_pixels = slow_embed_pixels  # type: ignore[method-assign]


if __name__ == "__main__":
    # Not when it is imported, which looking for doctests does.
    wait_for(Path(os.environ["HOLD"]))
    sys.exit(main(["serve", *sys.argv[1:]]))
