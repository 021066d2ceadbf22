"""A finding of an audit, and the table that holds all of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.data.catalog import Item
from unimetric.files import csv_text, write_text

KINDS = {
    "exact-copy": "The same picture more than once",
    "near-copy": "The same picture, edited",
    "leak": "One picture on both sides of a split",
    "contradiction": "One picture under two labels",
    "wrong-label": "Probably a wrong label",
    "one-class": "Two classes that look like one",
    "two-classes": "One class that looks like two",
    "stranger": "Unlike all others",
    "placeholder": "One picture in many classes",
    "unreadable": "Cannot be read",
    "blank": "Blank",
    "tiny": "Very small",
    "blurred": "Blurred",
    "extreme-shape": "Very long or very tall",
}
"""Every kind of finding, in the order of the page, with its heading."""

LEAST_DOUBT = 0.01
"""Probability of a wrong label from which an audit keeps it, for `apply_decisions`."""


@dataclass(frozen=True)
class Finding:
    """One finding of an audit.

    Attributes:
        kind: One of `KINDS`.
        confidence: From 0 to 1; findings of one kind are sorted by it. Measured precision is in ``docs/audit.md``.
        images: The images concerned. The first is the one to keep, if any.
        reason: One sentence for the reviewer.
        drop: The images that accepting the finding removes from the manifest.
        relabel: The label that accepting the finding gives to ``images[0]``, or None.
        shown: Further images that help to decide, such as examples of the suggested class.
    """

    kind: str
    confidence: float
    images: tuple[Item, ...]
    reason: str
    drop: tuple[Item, ...] = ()
    relabel: str | None = None
    shown: tuple[Item, ...] = ()

    @property
    def suggestion(self) -> str:
        """One of ``relabel``, ``drop`` and ``look``."""
        return "relabel" if self.relabel is not None else "drop" if self.drop else "look"


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings by kind, then by falling confidence, then by path."""
    place = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda f: (place[f.kind], -f.confidence, [str(item.path) for item in f.images]))


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write ``audit.csv``, one row per finding; lists of images are JSON, because a path may contain any separator."""
    rows: list[tuple[Any, ...]] = [("id", "kind", "confidence", "suggestion", "label", "images", "drop", "reason")]
    for number, finding in enumerate(findings):
        images, drop = (json.dumps([str(item.path) for item in part]) for part in (finding.images, finding.drop))
        confidence, label = f"{finding.confidence:.3f}", finding.relabel or ""
        rows.append((number, finding.kind, confidence, finding.suggestion, label, images, drop, finding.reason))
    write_text(path, csv_text(rows))
