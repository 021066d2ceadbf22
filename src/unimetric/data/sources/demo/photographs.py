"""Photographs: the class is a region of a photograph, the instances are views of it as a camera would differ.

A view is a turned, tilted piece of the region, under another exposure and colour temperature, slightly out of
focus, with sensor noise, saved as JPEG. No view leaves its region, and regions do not overlap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from unimetric.data.sources.demo.drawing import Drawing, generator
from unimetric.data.sources.demo.packages import package_file

VIEW = 144
"""Side of a view in pixels."""

_VIEWS = 9
# A view of bare sky does not show its region: another one is drawn, at most this many times.
_LEAST_CONTRAST = 16.0
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph, cut by a grid; the squares in the middle of the named cells are the regions."""

    name: str
    package: str
    path: str
    grid: tuple[int, int]
    """Columns and rows."""
    cells: tuple[int, ...]
    """Cells used, counted row by row: those that show something."""
    credit: str

    def regions(self, size: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
        """Yield left, top and side of the regions, in pixels, for the photograph's width and height."""
        columns, rows = self.grid
        width, height = size[0] // columns, size[1] // rows
        side = min(width, height)
        for cell in self.cells:
            row, column = divmod(cell, columns)
            yield column * width + (width - side) // 2, row * height + (height - side) // 2, side


def _skimage(name: str, file: str, grid: tuple[int, int], cells: tuple[int, ...], credit: str) -> Photograph:
    return Photograph(name, "scikit-image", f"skimage/data/{file}", grid, cells, credit)


def _sklearn(name: str, file: str, grid: tuple[int, int], cells: tuple[int, ...], credit: str) -> Photograph:
    return Photograph(name, "scikit-learn", f"sklearn/datasets/images/{file}", grid, cells, credit)


# Sorted by name, the first six and the rest have 22 regions each, so that no photograph has regions in both halves of
# the sorted classes. Credits are taken from the packages' own documentation.
PHOTOGRAPHS = (
    _skimage("astronaut", "astronaut.png", (3, 3), (1, 2, 4, 7, 8), "Eileen Collins, by NASA; public domain"),
    _skimage("brick", "brick.png", (2, 2), (0, 3), "CC0Textures, Bricks25; CC0"),
    _skimage("cat", "chelsea.png", (3, 2), (0, 1, 4), "Chelsea, by Stefan van der Walt; CC0"),
    _skimage("coffee", "coffee.png", (3, 2), (1, 3, 4, 5), "by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0"),
    _skimage("coins", "coins.png", (3, 2), (0, 1, 2, 4), "Brooklyn Museum Collection; no known copyright restrictions"),
    _skimage("deep-field", "hubble_deep_field.jpg", (4, 3), (1, 4, 7, 9), "by NASA, HubbleSite; public domain"),
    _sklearn(
        "flower", "flower.jpg", (4, 3), (5, 6, 10), "flickr.com/photos/vultilion/6056698931; CC BY 2.0; see below"
    ),
    _skimage("gravel", "gravel.png", (2, 2), (0, 3), "CC0Textures, Gravel04; CC0"),
    Photograph(
        "hopper",
        "matplotlib",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        (3, 3),
        (1, 4, 8),
        "portrait of Grace Hopper, by the United States Navy, whose works are in the public domain in the United "
        "States; matplotlib ships no note about it",
    ),
    _skimage("lawn", "grass.png", (2, 2), (0, 3), "by linolafett, DeviantArt; CC0"),
    _sklearn("pagoda", "china.jpg", (4, 3), (4, 5, 8), "flickr.com/photos/danielbuechele/6061409035; CC BY 2.0"),
    _skimage("photographer", "camera.png", (3, 3), (4, 7), "by Lav Varshney; CC0"),
    _skimage("retina", "retina.jpg", (3, 3), (3, 4, 7), "by Mikael Häggström, Wikimedia Commons; CC0"),
    _skimage("rocket", "rocket.jpg", (3, 2), (3, 4), "Falcon 9, by SpaceX; public domain"),
    _skimage(
        "tissue",
        "ihc.png",
        (3, 3),
        (0, 4),
        "Center for Microscopy And Molecular Imaging; no known copyright restrictions",
    ),
)


def photograph_drawings() -> Iterator[Drawing]:
    """Yield every view, region by region; a `UserError` if a photograph is missing."""
    for photograph in PHOTOGRAPHS:
        with Image.open(package_file(photograph.package, photograph.path)) as file:
            scene = file.convert("RGB")
        for number, (left, top, side) in enumerate(photograph.regions(scene.size), start=1):
            label = f"{photograph.name}-{number}"
            region = scene.crop((left, top, left + side, top + side))
            for view in range(_VIEWS):
                quality = int(generator("jpeg", label, str(view)).integers(35, 91))
                yield Drawing(label, f"view-{view}", partial(_draw, region, label, str(view)), quality)


def _draw(region: Image.Image, label: str, view: str) -> Image.Image:
    rng = generator("photographs", label, view)
    for _ in range(_TRIES):
        corners = _perspective(_corners(rng, region.width))
        picture = region.transform((VIEW, VIEW), Image.Transform.PERSPECTIVE, corners, Image.Resampling.BICUBIC)
        if np.asarray(picture.convert("L")).std() >= _LEAST_CONTRAST:
            break
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.3)))
    return _expose(picture, rng)


def _corners(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return the corners [4 x 2] of a view, in pixels of its region, clockwise from the upper left one."""
    angle = np.deg2rad(rng.uniform(-20, 20))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(0.5, 0.75) / 2
    corners = (corners * (1 + rng.uniform(-0.12, 0.12, size=(4, 2)))) @ turn.T
    # A large view, turned far, would be wider than its region: once in thousands.
    if (extent := np.ptp(corners, axis=0).max()) > 1:
        corners *= 0.999 / extent
    # Anywhere in the region, as long as the view stays inside.
    low, high = -corners.min(axis=0), 1 - corners.max(axis=0)
    return np.asarray((corners + rng.uniform(low, np.maximum(low, high))) * side)


def _perspective(corners: np.ndarray) -> tuple[float, ...]:
    """Return Pillow's eight coefficients of the map that takes the corners of a view to ``corners`` [4 x 2]."""
    rows, values = [], []
    for (x, y), (u, v) in zip([(0, 0), (VIEW, 0), (VIEW, VIEW), (0, VIEW)], corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(np.linalg.solve(np.array(rows, dtype=np.float64), np.array(values)).tolist())


def _expose(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply another exposure (up to 0.6 stops), contrast and colour temperature, and sensor noise."""
    warmth = rng.uniform(-0.22, 0.22)
    gains = 2 ** rng.uniform(-0.6, 0.6) * np.array([1 + warmth, 1.0, 1 - warmth])
    gamma = rng.uniform(0.75, 1.35)
    level = np.arange(256) / 255
    # One table per channel, rounded: the same pixels wherever the last bit of a power comes out differently.
    tables = np.rint(255 * np.clip(np.outer(gains, level), 0, 1) ** gamma)
    pixels = np.stack([tables[channel][np.asarray(band)] for channel, band in enumerate(picture.split())], axis=-1)
    noise = np.rint(rng.normal(0, rng.uniform(1, 9), size=pixels.shape))
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
