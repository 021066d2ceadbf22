"""Icons: the class is the thing shown, the instances are its drawings by the packs and styles."""

import io
from collections.abc import Iterator
from functools import partial
from zipfile import ZipFile

import numpy as np
from PIL import Image

from unimetric.data.sources.demo.drawing import Drawing, generator, place
from unimetric.data.sources.demo.packages import REMEDY, package_file
from unimetric.errors import UserError

# Written out, because only a person recognises that two names mean one thing or one name two: no arrows, no
# letters or signs that are glyphs too, no "share" or "power" that every pack draws as something else.
_NAMES = """
anchor bell bone bookmark briefcase bug cake calculator calendar camera car carrot cat church clipboard clock
cloud compass cookie credit-card crown cube dog egg envelope eye fire-extinguisher fish flag folder gavel gear
ghost gift headset heart house image inbox key keyboard laptop leaf lightbulb link lock magnet magnifier map
microphone moon newspaper palette paperclip pencil phone printer receipt rocket scissors shopping-cart skull
snowflake star tag thermometer ticket train trash trophy truck umbrella wallet wrench
"""
CLASSES = tuple(_NAMES.split())
"""Names that at least four packs use for the same thing."""

_OTHER_NAMES = {
    "envelope": ("email", "mail"),
    "gear": ("settings", "cog", "cog-6-tooth"),
    "house": ("home",),
    "magnifier": ("magnifying-glass", "magnify", "search"),
    "trash": ("trash-can", "delete"),
}
# Where a pack means something else by the name: a shutter, a hash sign.
_NAME_IN_PACK = {("material-icons", "camera"): "photo-camera", ("material-icons", "tag"): "sell"}
# The visibly different styles of each pack. With near-duplicates, such as Phosphor's thin, light and regular, a query
# would find its own pack's drawing instead of another's.
_STYLES = {
    "phosphor": {"bold": "bold/{}-bold", "fill": "fill/{}-fill", "thin": "thin/{}-thin"},
    "material-icons": {"filled": "filled/{}", "outlined": "outlined/{}", "sharp": "sharp/{}"},
    "heroicons": {"outline": "24/outline/{}", "solid": "24/solid/{}"},
    "mdi": {"filled": "{}", "outline": "{}-outline"},
    "font-awesome": {"regular": "regular/{}", "solid": "solid/{}"},
    "lucide": {"plain": "{}"},
}
_RESOLUTION = 192
_TURN = 20.0
_FEWEST = 6


def icon_drawings() -> Iterator[Drawing]:
    """Yield every icon, class by class; a style that repeats another one's picture is skipped."""
    files = {pack: f"justmyresource_{pack.replace('-', '_')}/icons.zip" for pack in _STYLES}
    packs = {pack: ZipFile(package_file(f"justmyresource-{pack}", file)) for pack, file in files.items()}
    try:
        for label in CLASSES:
            masks = list(_distinct(_masks(packs, label)))
            if len(masks) < _FEWEST:
                raise UserError(
                    f"the installed icon packs draw {label!r} in {len(masks)} ways only, {_FEWEST} are needed; {REMEDY}"
                )
            for origin, mask in masks:
                yield Drawing(label, origin, partial(place, mask, generator("icons", label, origin), turn=_TURN))
    finally:
        for archive in packs.values():
            archive.close()


def _masks(packs: dict[str, ZipFile], label: str) -> Iterator[tuple[str, Image.Image]]:
    for pack, styles in _STYLES.items():
        names = (_NAME_IN_PACK.get((pack, label), label), *_OTHER_NAMES.get(label, ()))
        for style, pattern in styles.items():
            drawings = (f"{pattern.format(name)}.svg" for name in names)
            name = next((name for name in drawings if name in packs[pack].NameToInfo), None)
            if name is not None:
                svg = packs[pack].read(name).decode()
                yield f"{pack}-{style}", _render(svg)


def _render(svg: str) -> Image.Image:
    """Return the opacity of a drawing, as a grey picture: packs leave the colour to their users."""
    import resvg_py

    # Icons hold no text; to look up the system's fonts for each would take longer than to draw it.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=_RESOLUTION, height=_RESOLUTION, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A")


def _distinct(masks: Iterator[tuple[str, Image.Image]]) -> Iterator[tuple[str, Image.Image]]:
    """Skip a drawing that hardly differs from an earlier one: by less than 1 % of ink in a coarse picture."""
    seen: list[np.ndarray] = []
    for origin, mask in masks:
        box = mask.getbbox()
        if box is None:
            continue
        side = max(box[2] - box[0], box[3] - box[1])
        square = mask.crop((box[0], box[1], box[0] + side, box[1] + side))
        coarse = np.asarray(square.resize((24, 24), Image.Resampling.BOX), dtype=np.float64) / 255
        if all(np.abs(coarse - other).mean() >= 0.01 for other in seen):
            seen.append(coarse)
            yield origin, mask
