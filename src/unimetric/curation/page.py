"""The page for reviewing findings: one HTML file that makes no network requests."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from unimetric.curation.findings import KINDS, Finding
from unimetric.data.catalog import Item
from unimetric.data.thumbnails import thumbnail
from unimetric.errors import escaped
from unimetric.html_page import render

MOST_SHOWN = 300
"""Maximum number of findings per kind with pictures; the others are only in the table, to keep the page small."""

_MOST_PICTURES = 8


def review_page(findings: Sequence[Finding], title: str, summary: str, notes: Sequence[str], fingerprint: str) -> str:
    """Return the page as HTML.

    Args:
        findings: In the order of the table; decisions refer to its row numbers.
        title: The collections' names.
        summary: The numbers in one sentence.
        notes: Remarks on what could not be checked.
        fingerprint: Fingerprint of the audit, so that stored decisions on another one are ignored.
    """
    values = {
        "title": title,
        "summary": summary,
        "notes": list(notes),
        "fingerprint": fingerprint,
        "sections": list(_sections(findings)),
    }
    return render("unimetric.curation", "review.html.j2", "review.css", "review.js", values)


def _sections(findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    numbered = list(enumerate(findings))
    for kind, group in groupby(numbered, key=lambda pair: pair[1].kind):
        entries = list(group)
        cards = [_card(number, finding) for number, finding in entries[:MOST_SHOWN]]
        total = len(entries)
        yield {"kind": kind, "heading": KINDS[kind], "total": total, "cards": cards, "more": total - len(cards)}


def _card(number: int, finding: Finding) -> dict[str, Any]:
    pictures = [_picture(item, finding) for item in finding.images[:_MOST_PICTURES]]
    pictures += [{**_picture(item, finding), "shown": True} for item in finding.shown[:4]]
    accept = {
        "relabel": f"Relabel as {finding.relabel}",
        "drop": f"Leave out {len(finding.drop)} of {len(finding.images)}",
        "look": "Noted",
    }[finding.suggestion]
    return {
        "number": number,
        "reason": finding.reason,
        "confidence": f"{finding.confidence:.2f}",
        "pictures": pictures,
        "hidden": max(0, len(finding.images) - _MOST_PICTURES),
        "accept": accept,
    }


def _picture(item: Item, finding: Finding) -> dict[str, Any]:
    label = escaped(f"{item.dataset}: {item.label}" if item.label else item.dataset)
    words = f"{label} (left out)" if item in finding.drop else label
    return {"data": thumbnail(item.path, 144), "words": words, "path": escaped(item.path.name), "shown": False}
