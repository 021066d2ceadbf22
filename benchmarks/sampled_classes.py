"""Bias of CurricularFace's loss if a step draws some of the classes.

    python benchmarks/sampled_classes.py

Of the loss alone, on one batch: 20,000 classes in groups of twenty that are alike.
"""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from machine import write_result
from unimetric.losses import CurricularFace

CLASSES, GROUP, SIZE, BATCH, DRAWS = 20_000, 20, 128, 64, 20
SHARES = (0.01, 0.03, 0.1, 0.3)


class Unweighted(CurricularFace):
    """Each drawn class counts once."""

    def _draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        classes, log_weights = super()._draw(labels)
        return classes, torch.zeros_like(log_weights)


def main() -> None:
    """Measure and write ``results/sampled_classes.json``."""
    rows = []
    for spread in (1.0, 0.35):
        torch.manual_seed(0)
        centres = F.normalize(torch.randn(CLASSES // GROUP, SIZE)).repeat_interleave(GROUP, 0)
        proxies = F.normalize(centres + spread * F.normalize(torch.randn(CLASSES, SIZE)))
        labels = torch.randint(CLASSES, (BATCH,))
        embeddings = F.normalize(proxies[labels] + 0.8 * F.normalize(torch.randn(BATCH, SIZE)))
        losses = {"weighted": CurricularFace(CLASSES, SIZE), "unweighted": Unweighted(CLASSES, SIZE)}
        for loss in losses.values():
            loss.load_state_dict({"proxies": proxies, "t": torch.full((CLASSES,), 0.5)})
            loss.momentum = 1.0  # t stands still
        row = {"spread_in_group": spread, "all_classes": losses["weighted"](embeddings, labels).item(), "drawn": []}
        for share in SHARES:
            drawn = {"share": share}
            for name, loss in losses.items():
                loss.sampled_classes = share
                values = [loss(embeddings, labels).item() for _ in range(DRAWS)]
                drawn[name] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}
            row["drawn"].append(drawn)
        rows.append(row)
    print(write_result("sampled_classes", {"rows": rows}))


if __name__ == "__main__":
    main()
