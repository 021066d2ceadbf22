"""Pixel-by-pixel comparison of two pictures, one of which may be a part, a mirror image or a framed copy of the other.

Band-passed grey values are compared, so that brightness, colour, noise and compression have little effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage, optimize

_SCALES = (1.0, 0.92, 0.85, 0.78, 0.71)
"""Shares of a picture's width and height that a part may have."""

_FAINT = 4.0
"""Grey values of 255 that count as noise."""

_TEXTURED = 0.3
"""Minimum spread of a block's scaled differences for the block to count as textured; 1 is strong texture."""

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Overlay:
    """The best placement of one picture, as a part, over another, as the whole.

    Attributes:
        fit: Normalised cross-correlation, -1 to 1; about 0 for unrelated pictures.
        swapped: The second picture is the whole and the first one the part.
        mirrored: The part is mirrored.
        box: Left, top, width and height of the part within the whole, as shares of it.
    """

    fit: float
    swapped: bool
    mirrored: bool
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Prepared:
    """A picture prepared as both part and whole, once for all of its pairs.

    Attributes:
        spectrum: Fourier transform of the band-passed picture, as the whole.
        spreads: For each of `_SCALES`, the spread of every window of that size within the whole.
        patterns: For each of `_SCALES`, straight and mirrored, the conjugate spectrum of the picture as a part.
    """

    side: int
    spectrum: NDArray[np.complex64]
    spreads: tuple[NDArray[np.float32], ...]
    patterns: tuple[tuple[NDArray[np.complex64], NDArray[np.complex64]] | None, ...]

    @classmethod
    def of(cls, grey: Grey) -> Prepared:
        """Prepare grey values [S, S] of a whole picture that was stretched to a square."""
        side = len(grey)
        ground = _band(grey, side / 90)
        # Sums over everything above and left of each place.
        sums, squares = (
            np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for values in (ground, ground**2)
        )
        spreads = []
        for small in _sizes(side):
            mean = _window(sums, small) / small**2
            variance = _window(squares, small) - small**2 * mean**2
            spreads.append(np.sqrt(np.maximum(variance, 0.1)).astype(np.float32))
        patterns = tuple(_pattern(grey, small) for small in _sizes(side))
        return cls(side, fft.rfft2(ground), tuple(spreads), patterns)


def best_overlay(one: Prepared, other: Prepared) -> Overlay:
    """Return the best overlay: either picture as the part, straight or mirrored, at several sizes, at any place."""
    found = [
        Overlay(fit, swapped, mirrored, box)
        for whole, part, swapped in ((one, other, False), (other, one, True))
        for mirrored in (False, True)
        for fit, box in [_part_of(whole, part, mirrored)]
    ]
    return max(found, key=lambda overlay: overlay.fit)


def refined(one: Grey, other: Grey, start: Overlay) -> Overlay:
    """Return an overlay with refined place, width and height, of grey values [S, S], S larger than for `best_overlay`.

    Its fit is the lower quartile of the correlation over all textured blocks: a watermark changes few of them, while
    two products on a white background share nothing but the outline.
    """
    whole, part = (other, one) if start.swapped else (one, other)
    part = part[:, ::-1] if start.mirrored else part
    place = np.array(start.box)
    for blur in (2.0, 1.0):
        ground, pattern = Image.fromarray(_band(whole, blur)), _band(part, blur)
        simplex = np.vstack([place, place + np.diag([0.015, 0.015, 0.03, 0.03])])
        options = {"initial_simplex": simplex, "maxfev": 45, "xatol": 1e-3, "fatol": 1e-3}
        place = optimize.minimize(partial(_misfit, ground, pattern), place, method="Nelder-Mead", options=options).x
    fit = _agreement(_laid_over(Image.fromarray(_band(whole, 1.0)), len(part), place), _band(part, 1.0))
    left, top, width, height = place.tolist()
    return Overlay(fit, start.swapped, start.mirrored, (left, top, width, height))


def _misfit(ground: Image.Image, pattern: NDArray[np.float32], box: NDArray[np.float64]) -> float:
    """Return minus the normalised cross-correlation of a part with its place in the whole."""
    window = _laid_over(ground, len(pattern), box)
    # Skip the border, where the band-pass lacks neighbours.
    inner = slice(len(pattern) // 16, -(len(pattern) // 16))
    return -float(_correlation(window[inner, inner].ravel(), pattern[inner, inner].ravel()))


def _laid_over(ground: Image.Image, side: int, box: NDArray[np.float64]) -> NDArray[np.float32]:
    left, top, width, height = box
    matrix = (width, 0.0, left * side, 0.0, height, top * side)
    return np.asarray(ground.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _agreement(window: NDArray[np.float32], pattern: NDArray[np.float32]) -> float:
    blocks = [_blocks(values) for values in (window, pattern)]
    textured = np.maximum(*(values.std(axis=1) for values in blocks))
    shows = textured > _TEXTURED
    if not shows.any():
        return -1.0
    return float(np.quantile(_correlation(*(values[shows] for values in blocks)), 0.25))


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inner 12 x 12 of 14 x 14 blocks, [144, pixels]."""
    size = len(values) // 14
    inner = values[size : 13 * size, size : 13 * size]
    return inner.reshape(12, size, 12, size).swapaxes(1, 2).reshape(144, size * size)


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the correlation along the last axis; 0 where one side is flat."""
    one, other = (values - values.mean(axis=-1, keepdims=True) for values in (one, other))
    norm = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.asarray((one * other).sum(axis=-1) / np.maximum(norm, 0.1), np.float32)


def _part_of(whole: Prepared, part: Prepared, mirrored: bool) -> tuple[float, tuple[float, float, float, float]]:
    """Return the best fit of ``part`` within ``whole``, over all `_SCALES` and places, and its place."""
    side = whole.side
    best, box = -1.0, (0.0, 0.0, 1.0, 1.0)
    for small, spread, pattern in zip(_sizes(side), whole.spreads, part.patterns, strict=True):
        if pattern is None:
            continue
        places = side - small + 1
        fits = fft.irfft2(whole.spectrum * pattern[mirrored], (side, side))[:places, :places] / spread
        if fits.max() > best:
            top, left = divmod(int(fits.argmax()), places)
            best, box = float(fits.max()), (left / side, top / side, small / side, small / side)
    return best, box


def _pattern(grey: Grey, small: int) -> tuple[NDArray[np.complex64], NDArray[np.complex64]] | None:
    """Return conjugate spectra of norm 1 of the shrunk picture, straight and mirrored; None for a flat one."""
    side = len(grey)
    band = _band(np.asarray(Image.fromarray(grey).resize((small, small), Image.Resampling.BOX)), side / 90)
    band = band - band.mean()
    norm = float(np.linalg.norm(band))
    if norm < 0.1:
        return None
    padded = np.zeros((2, side, side), np.float32)
    padded[0, :small, :small] = band / norm
    padded[1, :small, :small] = band[:, ::-1] / norm
    straight, mirrored = np.conj(fft.rfft2(padded))
    return straight, mirrored


def _sizes(side: int) -> list[int]:
    return [round(side * scale) for scale in _SCALES]


def _band(grey: Grey, blur: float) -> NDArray[np.float32]:
    """Return differences from the surroundings over their local magnitude, so that strong edges do not dominate."""
    values = grey.astype(np.float32)
    around = 2 * round(8 * blur) + 1
    band = ndimage.gaussian_filter(values, blur) - ndimage.uniform_filter(values, around)
    scaled: NDArray[np.float32] = band / (ndimage.uniform_filter(np.abs(band), around) + _FAINT)
    return scaled


def _window(sums: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the sums over every window of ``size`` x ``size``."""
    total: NDArray[np.float64] = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return total
