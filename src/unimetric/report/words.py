"""Formatting of numbers for pages and terminals."""

from collections.abc import Iterator, Mapping
from typing import Any

from unimetric.report.analysis import Score


def percent(value: float) -> str:
    """Return a share in percent with one digit, never minus zero.

    >>> percent(0.1234), percent(-0.0001)
    ('12.3', '0.0')
    """
    return f"{round(100 * float(value), 1) + 0.0:.1f}".replace("-", "−")


def spread(score: Score) -> str:
    """Return the interval of a score in percent."""
    return f"{percent(score.low)}–{percent(score.high)}"


def cell(score: Score) -> dict[str, str]:
    """Return a score for templates."""
    return {"text": percent(score.value), "interval": spread(score)}


def two_digits(value: float) -> str:
    """Return a number with two digits, never minus zero.

    >>> two_digits(-0.001), two_digits(-2.5)
    ('0.00', '−2.50')
    """
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")


def similarity(value: float, distance: str) -> str:
    """Return a similarity with three digits: a cosine, or a hyperbolic distance without its minus.

    >>> similarity(0.5, "cosine"), similarity(-2.0, "poincare")
    ('0.500', '2.000')
    """
    shown = value if distance == "cosine" else -value
    # Avoid "-0.0".
    return f"{round(shown, 3) + 0.0:.3f}".replace("-", "−")


def flattened(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested options as dotted names and text."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{before}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{before}{name}", text or "–"
