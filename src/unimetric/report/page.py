"""Rendering of a template into one HTML file that loads nothing and escapes every name."""

import base64
import hashlib
import re
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from unimetric import __version__
from unimetric.report.figures import short


def render(template: str, values: dict[str, Any]) -> str:
    """Render a template with its stylesheet and script inside, and a policy that allows only these two.

    Every string of the values is escaped, except `markupsafe.Markup`.
    """
    environment = Environment(
        loader=PackageLoader("unimetric.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short, "breakable": _breakable}
    style, script = _file("style.css"), _file("map.js")
    return environment.get_template(template).render(
        values
        | {
            "style": Markup(style),  # noqa: S704 - a file of this package
            "script": Markup(script),  # noqa: S704
            "policy": _policy(style, script),
            "version": __version__,
        }
    )


def _breakable(text: str) -> Markup:
    """Escape a name and allow line breaks after dots, slashes and underscores, and before capital letters."""
    escaped = str(escape(text))
    return Markup(re.sub(r"([./_])|(?<=[a-z])(?=[A-Z])", r"\1<wbr>", escaped))  # noqa: S704 - escaped above


def _file(name: str) -> str:
    return (resources.files("unimetric.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
