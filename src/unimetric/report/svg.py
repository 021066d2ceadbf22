"""Matplotlib figures as SVG whose colours come from the page's stylesheet: light, dark or printed.

Matplotlib writes inline styles, which a strict content security policy refuses, and fixed colours, of no use in dark
mode.
"""

from __future__ import annotations

import re
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
"""Placeholders for the colours of text and of background lines, which the stylesheet sets."""

FONT_SIZE = 11
"""Points; on a phone of 320 pixels a point is a pixel."""

SERIES = 8
"""Number of colours for datasets and runs; then they repeat."""

_CLASSES = {INK: "ink", FAINT: "faint"} | {f"#00ff{number:02x}": f"s{number}" for number in range(SERIES)}

_NAMESPACE = "{http://www.w3.org/2000/svg}"
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

    It has no ``style`` attribute and no script, so a strict content security policy allows it.

    Args:
        figure: A figure drawn with this module's colours.
        name: A name unique within the page; the prefix of every id.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - written by matplotlib above
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("metadata", "style")):
                parent.remove(child)
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {reference for value in values for reference in re.findall(r"#([\w-]+)", value)}
    for element in root.iter():
        _restyle(element)
        _rename(element, name, used)
    width, height = (float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height"))
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - names are escaped


def _restyle(element: ElementTree.Element) -> None:
    """Replace the ``style`` attribute by attributes, and this module's colours by classes."""
    properties: dict[str, str] = {}
    for declaration in element.attrib.pop("style", "").split(";"):
        key, colon, text = declaration.partition(":")
        if colon:
            properties[key.strip()] = text.strip()
    if font := properties.pop("font", None):
        # The shorthand is not an attribute; the stylesheet sets the font.
        if size := re.search(r"([\d.]+)px", font):
            properties["font-size"] = size[1]
        if "bold" in font or "700" in font:
            properties["font-weight"] = "bold"
    classes = []
    for name in ("fill", "stroke"):
        value = properties.get(name) or element.get(name)
        if value in _CLASSES:
            properties.pop(name, None)
            element.attrib.pop(name, None)
            classes.append(f"{name}-{_CLASSES[value]}")
    if element.tag == f"{_NAMESPACE}text" and not any(name.startswith("fill") for name in classes):
        classes.append("fill-ink")
    if classes:
        element.set("class", " ".join(classes))
    for name, value in properties.items():
        element.set(name, value)


def _rename(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Remove unused ids and prefix the others with the figure's name."""
    if (own := element.attrib.pop("id", None)) in used and own is not None:
        element.set("id", f"{name}-{own}")
    for attribute, value in element.attrib.items():
        if attribute == _LINK or "url(#" in value:
            element.set(attribute, value.replace("#", f"#{name}-", 1))
