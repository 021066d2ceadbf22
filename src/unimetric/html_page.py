"""Rendering of a template into one HTML file that loads nothing and escapes every name."""

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def render(package: str, template: str, style: str, script: str, values: Mapping[str, Any]) -> str:
    """Render a template with its stylesheet and script inside, and a policy that allows only these two.

    Every string of the values is escaped, except `markupsafe.Markup`.

    Args:
        package: Package with a folder ``templates``.
        template: Name of the template there.
        style: Name of the stylesheet there.
        script: Name of the script there.
        values: Variables of the template, beside ``style``, ``script`` and ``policy``.
    """
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": short, "breakable": _breakable}
    folder = resources.files(package) / "templates"
    texts = [(folder / name).read_text(encoding="utf-8") for name in (style, script)]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    own = [Markup(text) for text in texts]  # noqa: S704 - files of this package
    return environment.get_template(template).render({**values, "style": own[0], "script": own[1], "policy": policy})


def short(name: str, length: int = 16) -> str:
    """Return a name on one line of at most ``length`` characters.

    >>> short("a very long name indeed", 10)
    'a very lo…'
    """
    printable = "".join(character if character.isprintable() else " " for character in name)
    return printable if len(printable) <= length else printable[: length - 1] + "…"


def _breakable(text: str) -> Markup:
    """Escape a name and allow line breaks after dots, slashes and underscores, and before capital letters."""
    escaped = str(escape(text))
    return Markup(re.sub(r"([./_])|(?<=[a-z])(?=[A-Z])", r"\1<wbr>", escaped))  # noqa: S704 - escaped above
