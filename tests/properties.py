"""Numbers of random examples of the property tests: a quarter in ``make test``, all in ``make soak``."""

from __future__ import annotations

import os

SOAK = "SOAK_SECONDS" in os.environ


def examples(count: int) -> int:
    """The number of examples to draw.

    Args:
        count: As drawn by ``make soak``.
    """
    return count if SOAK else max(25, count // 4)
