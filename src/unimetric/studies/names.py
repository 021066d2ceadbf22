"""Names of columns, folders, chosen values and sources."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from unimetric.files import path_exists, user_path

HARMONIC, UNIFIED = "harmonic", "unified"
PARAMETERS, SECONDS, MEMORY = "trainable parameters", "training seconds", "peak memory bytes"
RATIO = "specialists' trained parameters ÷ this"
COLUMNS = (HARMONIC, UNIFIED, PARAMETERS, RATIO, SECONDS, MEMORY)
"""Columns of every table; a dataset's name is the column of its Recall@1."""

_LONGEST = 60
_SOURCE = re.compile(r"((?:[^=/\\:]*=)?(?:[A-Za-z][A-Za-z0-9_-]+:)?)(.*)", re.DOTALL)


def slug(name: str) -> str:
    """Return a folder's name: small ASCII letters, digits, ``.``, ``_``, ``+`` and ``-``; 1 to 60 characters.

    >>> slug("PUMA, p = 0.5")
    'puma-p-0.5'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[^a-z0-9._+]+", "-", plain).strip("-.")[:_LONGEST].rstrip("-.")
    return text or f"entry-{_hash(name)}"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Return a different `slug` for every name; a taken one gets a part of the name's SHA-256.

    The first of two names keeps its slug, so adding a name at the end changes no other.
    """
    taken: dict[str, str] = {}
    for name in names:
        own = slug(name)
        taken[name] = own if own not in taken.values() else f"{own}-{_hash(name)}"
    return taken


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def describe_values(candidate: Mapping[str, Any]) -> str:
    """Return options by dotted name in a short form for messages and tables.

    >>> describe_values({"training.learning_rate": 2e-05, "model.options.adapter_drop": 0.2})
    'learning_rate 2e-05, adapter_drop 0.2'
    """
    return ", ".join(f"{name.split('.')[-1]} {_describe(value)}" for name, value in candidate.items())


def _describe(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def absolute_source(text: str) -> str:
    """Return a source with an absolute path, ``NAME=`` and ``FORMAT:`` kept; unchanged if no such path exists."""
    if text != "demo" and path_exists(text):
        return os.path.abspath(user_path(text))  # noqa: PTH100 - keeps symbolic links
    match = _SOURCE.fullmatch(text)
    if match is None or not path_exists(match[2]):
        return text
    return match[1] + os.path.abspath(user_path(match[2]))  # noqa: PTH100
