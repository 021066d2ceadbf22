"""Matplotlib figures as SVG whose colours come from the page's stylesheet: light, dark or printed.

Matplotlib writes inline styles, which a strict content security policy refuses, and fixed colours, of no use in dark
mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#00fe01", "#00fe02"
"""Placeholders for the colours of text and of background lines, which ``style.css`` replaces."""

FONT_SIZE = 11
"""Points, as in ``style.css``; on a phone of 320 pixels a point is a pixel."""

SERIES = 8
"""Number of colours for datasets and runs; then they repeat."""

_LINK = "{http://www.w3.org/1999/xlink}href"


def series_colour(number: int) -> str:
    """Return the placeholder colour of a dataset or run by its number."""
    return f"#00ff{number % SERIES:02x}"


def line_dashes(number: int | None) -> str:
    """Return a dataset's dash pattern in points; each round of the colours has its own."""
    return ("", "4 2", "1 1.5", "6 2 1 2")[0 if number is None else number // SERIES % 4]


@contextmanager
def drawing() -> Iterator[None]:
    """Apply matplotlib's settings for a page: text stays text, and no name is parsed as a formula."""
    import matplotlib as mpl

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "unimetric",
        "svg.image_inline": True,
        "text.parse_math": False,
        "font.size": FONT_SIZE,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.titlesize": FONT_SIZE,
        "legend.fontsize": FONT_SIZE,
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": FAINT,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings), quiet():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings about letters that matplotlib's font lacks; a browser draws them in another font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def to_svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an ``svg`` element, hidden from screen readers since its caption describes it.

    It has attributes in the place of each ``style`` and no script, so a strict content security policy allows it; the
    stylesheet knows this module's colours.

    Args:
        figure: A figure drawn with this module's colours.
        name: A name unique within the page; the prefix of every id.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - written by matplotlib above
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.endswith(("metadata", "style")):
                element.remove(child)
        for declaration in element.attrib.pop("style", "").split("; "):
            key, _, value = declaration.partition(": ")
            if key and key != "font-family":
                element.set(key, value)
        for attribute, value in element.attrib.items():
            if attribute == "id":
                element.set(attribute, f"{name}-{value}")
            elif attribute == _LINK or "url(#" in value:
                element.set(attribute, value.replace("#", f"#{name}-", 1))
    del root.attrib["width"], root.attrib["height"]
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - names are escaped
