"""Report of `gpu.py`, and the device, models and images of its parts."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder


@dataclass
class Report:
    """Lines of the report, and the checks that failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def section(self, title: str, *header: str) -> None:
        """Begin a table."""
        self.lines += ["", f"## {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]

    def row(self, *cells: object) -> None:
        """Add a row, and print it at once."""
        line = f"| {' | '.join(str(cell) for cell in cells)} |"
        self.lines.append(line)
        print(line, flush=True)

    def check(self, what: str, passed: bool, detail: str) -> None:
        """Add the row of a check."""
        self.row(what, "passed" if passed else "**failed**", detail)
        if not passed:
            self.failed.append(what)

    def attempt(self, what: str, action: Callable[[], None]) -> None:
        """Run a group of checks; an exception is a failed check, and the others go on."""
        try:
            action()
        except Exception as error:
            traceback.print_exc()
            self.check(what, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


@dataclass(frozen=True)
class Sizes:
    """The device and the sizes of all parts."""

    device: torch.device
    backbone: str = "vit_small_patch14_dinov2"
    image_size: int = 112
    batch: int = 64
    vectors: int = 20_000
    repeats: int = 20

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def embedder(self, method: str, **options: Any) -> Embedder:
        """A model with random weights, the same for the same method."""
        torch.manual_seed(0)
        backbone = make_backbone(self.backbone, weights="random", image_size=self.image_size)
        embedder = Embedder(backbone, method, options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (p for p in embedder.parameters() if p.requires_grad and method != "full"):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        return embedder

    def images(self, count: int) -> list[Tensor]:
        """Noise images, uint8 [3, S, S] each."""
        generator = torch.Generator().manual_seed(2)
        shape = (count, 3, self.image_size, self.image_size)
        return list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def verdict(report: Report) -> str:
    """One sentence about all checks."""
    return f"{len(report.failed)} checks failed: {', '.join(report.failed)}." if report.failed else "All checks passed."


def machine(device: torch.device) -> str:
    """Name and versions of what was measured."""
    when = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    if device.type != "cuda":
        return f"rehearsal on the CPU, torch {torch.__version__}, {when}"
    card = torch.cuda.get_device_properties(device)
    memory = f"{card.total_memory / 2**30:.0f} GiB"
    return f"{card.name}, {memory}, CUDA {torch.version.cuda}, torch {torch.__version__}, {when}"
