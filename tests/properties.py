"""Random tests: a quarter of the examples in ``make test``, all in ``make soak``, whose seconds and seed are here."""

from __future__ import annotations

import os

SOAK = "SOAK_SECONDS" in os.environ
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SOAK_SEED = int(os.environ.get("SOAK_SEED", "0"))


def examples(count: int) -> int:
    """The number of examples to draw.

    Args:
        count: As drawn by ``make soak``.
    """
    return count if SOAK else max(25, count // 4)
