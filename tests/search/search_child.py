"""Work of a process that is to be killed; it is forked from one that has the slow imports behind it."""

from __future__ import annotations

import os
from pathlib import Path


def index(model: Path, images: Path, db: Path, log: Path) -> None:
    """`unimetric index` in small batches and commits, with its standard error in a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    import torch

    from unimetric.cli import main

    torch.set_num_threads(1)
    small = ["--batch_size", "2", "--commit_rows", "4"]
    cpu = ["--device.precision", "fp32", "--device.accelerator", "cpu"]
    code = main(["index", str(model), str(images), "--db", str(db), *small, *cpu])
    os._exit(code)


def upgrade(model: Path, db: Path, log: Path, options: tuple[str, ...]) -> None:
    """`unimetric upgrade` in small batches and commits, with its standard error in a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    import torch

    from unimetric.cli import main

    torch.set_num_threads(1)
    small = ["--batch_size", "2", "--commit_rows", "4", "--sample", "8", "--live", "now", "--model", str(model)]
    cpu = ["--device.precision", "fp32", "--device.accelerator", "cpu"]
    code = main(["upgrade", str(db), *(small if "--rollback" not in options else []), *options, *cpu])
    os._exit(code)
