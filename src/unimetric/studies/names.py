"""From a name that a person chose to the name of a folder."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

_LONGEST = 60


def slug(name: str) -> str:
    """Small ASCII letters, digits, ``.``, ``_``, ``+`` and ``-``; at most 60 characters, never empty, never hidden.

    >>> slug("PUMA, p = 0.5")
    'puma-p-0.5'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[^a-z0-9._+]+", "-", plain).strip("-.")[:_LONGEST].rstrip("-.")
    return text or f"entry-{_hash(name)}"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """The `slug` of every name, no two alike: where one is taken, a part of the name's SHA-256 is appended.

    The first of two names keeps its slug, so adding a name at the end changes no other.
    """
    taken: dict[str, str] = {}
    for name in names:
        own = slug(name)
        taken[name] = own if own not in taken.values() else f"{own}-{_hash(name)}"
    return taken


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
