"""Images that no model can use: unreadable, blank, tiny, blurred, or of an extreme shape."""

from collections.abc import Iterator

import numpy as np

from unimetric.curation.findings import Finding
from unimetric.curation.measurements import BLANK, Measurements

TINY = 32
"""Shorter side in pixels below which a picture is tiny."""

EXTREME = 4.0
"""Ratio of the sides from which the central crop that models read misses most of a picture."""


def unusable(measured: Measurements) -> Iterator[Finding]:
    """Yield a finding for every image that is unreadable, blank, tiny, blurred or of an extreme shape."""
    for row, reason in measured.reasons.items():
        item = measured.items[row]
        yield Finding("unreadable", 1.0, (item,), f"This file cannot be read: {reason}.", drop=(item,))
    blurred = _blurred(measured)
    for row in measured.readable.tolist():
        item = measured.items[row]
        width, height, spread, _ = measured.numbers[row].tolist()
        long, short = max(width, height), min(width, height)
        if spread < BLANK:
            reason = f"The grey values of this picture spread by {spread:.1f} of 255: it shows nothing."
            yield Finding("blank", min(1.0, 1.2 - spread / BLANK / 2), (item,), reason, drop=(item,))
            continue
        if short < TINY:
            reason = f"This picture has {width:.0f} x {height:.0f} pixels."
            yield Finding("tiny", 1 - short / TINY / 2, (item,), reason, drop=(item,))
        if long / short >= EXTREME:
            reason = f"The sides of this picture ({width:.0f} x {height:.0f}) differ by a factor of {long / short:.1f}."
            yield Finding("extreme-shape", 1 - EXTREME / (2 * long / short), (item,), reason)
        if row in blurred:
            reason = "This picture has far fewer sharp edges than the others of its collection."
            yield Finding("blurred", blurred[row], (item,), reason)


def _blurred(measured: Measurements) -> dict[int, float]:
    """Return the confidence by row, for pictures far less sharp than the rest of their dataset."""
    found: dict[int, float] = {}
    names = np.array([item.dataset for item in measured.items])
    readable = measured.readable
    for name in np.unique(names[readable]):
        rows = readable[names[readable] == name]
        sharpness = np.log(np.maximum(measured.numbers[rows, 3], 1e-4))
        shows = measured.numbers[rows, 2] >= BLANK
        if shows.sum() < 20:
            continue
        median = float(np.median(sharpness[shows]))
        spread = 1.4826 * float(np.median(np.abs(sharpness[shows] - median)))
        depth = (median - sharpness) / max(spread, 0.05)
        for row, value in zip(rows[shows & (depth > 4)].tolist(), depth[shows & (depth > 4)].tolist(), strict=True):
            found[row] = 1 - 2 / value
    return found
