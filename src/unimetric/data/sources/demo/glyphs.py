"""Glyphs: the class is the character, the instances are the fonts that matplotlib bundles."""

import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unimetric.data.sources.demo.drawing import Drawing, generator, place
from unimetric.data.sources.demo.packages import package_file

# No two look alike at any size and position: one of a pair such as c C, A and Cyrillic A, a and alpha.
# No digits, because these are a domain of their own.
LATIN = "AaBDEeFGgHhJKMNQRrTtWZ"
OTHERS = "ΓΔΘΛΞΣΦΨΩγδζλξπσω" + "БЖЦЭЮЯ" + "&@#%?§¶€£¥"

_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
# Knuth's Computer Modern: its character map is right for the Latin letters, not for signs (a pound sign in the
# place of the dollar) and has no Greek where Unicode has it.
_LATIN_ONLY_FONTS = ("cmb10", "cmr10", "cmss10", "cmtt10")
_FEWEST, _MOST = 9, 12
_POINTS = 160
_TURN = 12.0


def class_name(character: str) -> str:
    """Return the Unicode name, last word first, so that alphabets and signs mix when sorted.

    >>> class_name("g"), class_name("Δ"), class_name("?")
    ('g-latin-small', 'delta-greek-capital', 'question-mark')
    """
    name = unicodedata.name(character)
    if " LETTER " in name:
        kind, letter = name.split(" LETTER ")
        name = f"{letter} {kind}"
    return name.lower().replace(" ", "-")


def glyph_drawings() -> Iterator[Drawing]:
    """Yield every character in 9 to 12 fonts, chosen at random; a `UserError` if a font is missing."""
    paths = {font: _path(font) for font in (*_FONTS, *_LATIN_ONLY_FONTS)}
    for character in LATIN + OTHERS:
        label = class_name(character)
        fonts = [*_FONTS, *(_LATIN_ONLY_FONTS if character in LATIN else ())]
        rng = generator("glyphs", label)
        count = int(rng.integers(_FEWEST, _MOST + 1))
        for index in sorted(rng.permutation(len(fonts))[:count].tolist()):
            yield Drawing(label, fonts[index].lower(), partial(_draw, paths[fonts[index]], character, label))


def _path(font: str) -> Path:
    return package_file("matplotlib", f"matplotlib/mpl-data/fonts/ttf/{font}.ttf")


def _draw(path: Path, character: str, label: str) -> Image.Image:
    # Basic layout is built into Pillow; the other engine is missing on some machines.
    font = ImageFont.truetype(path, _POINTS, layout_engine=ImageFont.Layout.BASIC)
    mask = Image.new("L", (3 * _POINTS, 3 * _POINTS))
    ImageDraw.Draw(mask).text((_POINTS, _POINTS // 2), character, fill=255, font=font)
    return place(mask.crop(mask.getbbox()), generator("glyphs", label, path.stem), turn=_TURN)
