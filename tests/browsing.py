"""Checks of a page in a real browser."""

from __future__ import annotations

from typing import Any


def barriers(page: Any, axe: str) -> list[tuple[str, list[str]]]:
    """Return the findings of axe-core in a page as it is now: each rule with the first elements that break it."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(axe)
    found = page.evaluate("() => axe.run({resultTypes: ['violations']})")["violations"]
    return [(fault["id"], [node["html"][:200] for node in fault["nodes"][:3]]) for fault in found]


def overflows(page: Any) -> bool:
    """True if the page is wider than its window."""
    return bool(page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth"))
