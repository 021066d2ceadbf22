"""One of several processes that train a number of runs together, as a launcher such as torchrun starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from unimetric.cli import main


def train_all(folder: Path, world: int, ports: list[int]) -> int:
    """Train each of the folder's options files with the processes of ``world``; the worst exit code."""
    codes = []
    # A port each: the first process may be in one run while another is in the next.
    for options, port in zip(sorted(folder.glob("*.yaml")), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        out = folder / f"{options.stem}-{world}"
        arguments = ["--config", options, "--out", out, "--device.processes", world]
        codes.append(main(["train", *map(str, arguments)]))
    return max(codes)


if __name__ == "__main__":
    sys.exit(train_all(Path(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
