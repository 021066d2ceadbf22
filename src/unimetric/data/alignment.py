"""Pixel-by-pixel comparison of two pictures, one of which may be a part, a mirror image or a framed copy of the other.

Band-passed grey values are compared, so that brightness, colour, noise and compression have little effect.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

_SCALES = (1.0, 0.92, 0.85, 0.78, 0.71)
"""Shares of a picture's width and height that a part may have."""

_LEAST = 0.5
"""Minimum share of a part's width and height when its place is refined: a thin or turned strip fits anything."""

_STEPS = 8
"""Maximum number of steps to refine a place."""

_LONGEST_STEP = 0.05
"""Maximum change of place, width and height in one step."""

_LEAST_GAIN = 5e-4
"""Gain of correlation below which a step is the last one."""

_FAINT = 4.0
"""Grey values of 255 that count as noise."""

_TEXTURED = 0.3
"""Minimum spread of a block's scaled differences for the block to count as textured; 1 is strong texture."""

_LEAST_TEXTURED = 4
"""Minimum number of textured blocks, of 144, in a part: a corner of an object on white ground fits many others."""

_WHOLE = (0.0, 0.0, 1.0, 1.0)

_EQUAL_PLACES = 0.03
"""Maximum difference from the whole picture for a part to count as all of it."""

Grey = NDArray[np.uint8] | NDArray[np.float32]
"""Grey values from 0 to 255."""


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
    """One or several pictures prepared as both part and whole, once for all of their pairs.

    Attributes:
        bands: The band-passed pictures, [..., S, S].
        spectra: Their Fourier transforms, as wholes, [..., S, S // 2 + 1].
        spreads: For each of `_SCALES`, the spread of every window of that size within the wholes, [..., P, P].
        patterns: For each of `_SCALES`, straight and mirrored, the conjugate spectra of the pictures as parts,
            [..., 2, S, S // 2 + 1].
    """

    bands: NDArray[np.float32]
    spectra: NDArray[np.complex64]
    spreads: tuple[NDArray[np.float32], ...]
    patterns: tuple[NDArray[np.complex64], ...]

    @classmethod
    def of(cls, grey: Grey) -> "Prepared":
        """Prepare grey values [S, S] or [N, S, S] of whole pictures that were stretched to a square."""
        side = grey.shape[-1]
        bands = _band(grey, side / 90)
        # Sums over everything above and left of each place.
        border = [(0, 0)] * (grey.ndim - 2) + [(1, 0), (1, 0)]
        sums, squares = (
            np.pad(values.astype(np.float64).cumsum(-2).cumsum(-1), border) for values in (bands, bands**2)
        )
        spreads = []
        for small in _sizes(side):
            mean = _window(sums, small) / small**2
            variance = _window(squares, small) - small**2 * mean**2
            spreads.append(np.sqrt(np.maximum(variance, 0.1)).astype(np.float32))
        patterns = tuple(_pattern(grey, small) for small in _sizes(side))
        return cls(bands, fft.rfft2(bands), tuple(spreads), patterns)

    @property
    def side(self) -> int:
        """S, the side in pixels."""
        return int(self.bands.shape[-1])

    def at(self, places: NDArray[np.int64] | int) -> "Prepared":
        """Return some of several pictures, or a single one."""
        spreads = tuple(spread[places] for spread in self.spreads)
        patterns = tuple(pattern[places] for pattern in self.patterns)
        return Prepared(self.bands[places], self.spectra[places], spreads, patterns)


def best_fits(one: Prepared, other: Prepared) -> NDArray[np.float32]:
    """Return the fit of the best overlay for N pairs of pictures, [N]."""
    fits = [values.max(axis=(-3, -2, -1)) for pair in ((one, other), (other, one)) for _, values in _fits(*pair)]
    return np.asarray(np.maximum.reduce(fits), np.float32)


def best_overlay(one: Prepared, other: Prepared) -> Overlay:
    """Return the best overlay: either picture as the part, straight or mirrored, at several sizes, at any place."""
    best = Overlay(-1.0, swapped=False, mirrored=False, box=(0.0, 0.0, 1.0, 1.0))
    for whole, part, swapped in ((one, other, False), (other, one, True)):
        for small, fits in _fits(whole, part):
            # At full size either picture may contain the other; both fits are equal up to rounding.
            if (fit := float(fits.max())) > best.fit and not (swapped and small == one.side):
                mirrored, top, left = (int(index) for index in np.unravel_index(fits.argmax(), fits.shape))
                size = small / one.side
                best = Overlay(fit, swapped, bool(mirrored), (left / one.side, top / one.side, size, size))
    return best


def placed(one: Prepared, other: Prepared, start: Overlay) -> Overlay:
    """Return an overlay of two single pictures with refined place, width and height, at the size that was prepared."""
    whole, part = _whole_and_part(one.bands, other.bands, start)
    box, fit = _moved(whole, part, np.array(start.box))
    return replace(start, fit=fit, box=tuple(box.tolist()))


def refined(one: Grey, other: Grey, start: Overlay) -> Overlay:
    """Return an overlay with refined place, width and height, of grey values [S, S], S larger than for `placed`.

    Its fit is the lower quartile of the correlation over all textured blocks: a watermark changes few of them, while
    two products on a white background share nothing but the outline.
    """
    whole, part = _whole_and_part(_band(one, 1.0), _band(other, 1.0), start)
    box, _ = _moved(whole, part, np.array(start.box))
    least = 1 if np.abs(box - _WHOLE).max() < _EQUAL_PLACES else _LEAST_TEXTURED
    fit = _agreement(_laid_over(Image.fromarray(whole), len(part), box), part, least)
    return replace(start, fit=fit, box=tuple(box.tolist()))


def _whole_and_part(
    one: NDArray[np.float32], other: NDArray[np.float32], overlay: Overlay
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    whole, part = (other, one) if overlay.swapped else (one, other)
    return whole, part[:, ::-1] if overlay.mirrored else part


def _moved(
    whole: NDArray[np.float32], part: NDArray[np.float32], box: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the box near a given one at which the part correlates most with the whole, and the correlation.

    Gauss-Newton steps on windows of norm 1 with Marquardt's damping: Evangelidis and Psarakis, *Parametric image
    alignment using enhanced correlation coefficient maximization*, 2008, with a box in place of a homography.
    """
    ground, pattern = Image.fromarray(whole), _unit(part)
    window = _laid_over(ground, len(part), box)
    fit, damping = float(np.vdot(_unit(window), pattern)), 1e-3
    curvature, slope = _derivatives(window, pattern, box)
    for _ in range(_STEPS):
        damped = curvature + damping * np.diag(np.maximum(np.diag(curvature), 1e-9))
        moved = box + np.clip(np.linalg.solve(damped, slope), -_LONGEST_STEP, _LONGEST_STEP)
        window = _laid_over(ground, len(part), moved)
        gain = float(np.vdot(_unit(window), pattern)) - fit if moved[2:].min() >= _LEAST else -1.0
        if gain > 0:
            box, fit, damping = moved, fit + gain, damping / 5
            curvature, slope = _derivatives(window, pattern, box)
        else:
            damping = max(0.1, 10 * damping)
        if 0 < gain < _LEAST_GAIN or damping > 10:
            break
    return box, fit


def _derivatives(
    window: NDArray[np.float32], pattern: NDArray[np.float32], box: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the Gauss-Newton curvature [4, 4] and the slope [4] of the correlation, by left, top, width and height."""
    side, inner = len(window), _inner(len(window))
    place = (np.arange(side, dtype=np.float32)[inner] + 0.5) / side
    down, along = (np.asarray(np.gradient(window, axis=axis))[inner, inner] for axis in (0, 1))
    down, along = down * (side / box[3]), along * (side / box[2])
    changes = np.stack([along, down, along * place, down * place[:, None]]).reshape(4, -1)
    centred = _centred(window)
    now = (centred / _norm(centred)).ravel()
    changes = (changes - changes.mean(axis=1, keepdims=True)) / _norm(centred)
    changes -= np.outer(changes @ now, now)
    return (changes @ changes.T).astype(np.float64), (changes @ pattern.ravel()).astype(np.float64)


def _unit(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inside of a window with mean 0 and norm 1."""
    centred = _centred(window)
    return np.asarray(centred / _norm(centred), np.float32)


def _centred(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a window with mean 0, without its border, where the band-pass lacks neighbours."""
    inner = _inner(len(window))
    return np.asarray(window[inner, inner] - window[inner, inner].mean(), np.float32)


def _norm(values: NDArray[np.float32]) -> float:
    return max(float(np.linalg.norm(values)), 0.1)


def _inner(side: int) -> slice:
    return slice(side // 16, -(side // 16))


def _laid_over(ground: Image.Image, side: int, box: NDArray[np.float64]) -> NDArray[np.float32]:
    left, top, width, height = box
    matrix = (width, 0.0, left * side, 0.0, height, top * side)
    return np.asarray(ground.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _agreement(window: NDArray[np.float32], pattern: NDArray[np.float32], least: int) -> float:
    blocks = [_blocks(values) for values in (window, pattern)]
    textured = np.maximum(*(values.std(axis=1) for values in blocks))
    shows = textured > _TEXTURED
    if shows.sum() < least:
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


def _fits(whole: Prepared, part: Prepared) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the sizes of the part and its fits at every place of the whole, straight and mirrored, [..., 2, P, P]."""
    side = whole.side
    for small, spread, pattern in zip(_sizes(side), whole.spreads, part.patterns, strict=True):
        places = side - small + 1
        products = whole.spectra[..., None, :, :] * pattern
        yield small, fft.irfft2(products, (side, side))[..., :places, :places] / spread[..., None, :, :]


def _pattern(grey: Grey, small: int) -> NDArray[np.complex64]:
    """Return conjugate spectra of norm 1 of the shrunk pictures, straight and mirrored; 0 for flat ones."""
    side = grey.shape[-1]
    band = _band(shrunk(grey, small), side / 90)
    band -= band.mean(axis=(-2, -1), keepdims=True)
    norm = np.linalg.norm(band, axis=(-2, -1), keepdims=True)
    band = np.where(norm < 0.1, 0, band / np.maximum(norm, 0.1))
    padded = np.zeros((*grey.shape[:-2], 2, side, side), np.float32)
    padded[..., 0, :small, :small] = band
    padded[..., 1, :small, :small] = band[..., ::-1]
    return np.asarray(np.conj(fft.rfft2(padded)))


def shrunk(grey: Grey, side: int) -> NDArray[np.float32]:
    """Return grey values [..., S, S] averaged to a smaller size, [..., side, side]."""
    averages = _averages(grey.shape[-1], side)
    return np.asarray(averages @ grey.astype(np.float32) @ averages.T, np.float32)


@cache
def _averages(side: int, small: int) -> NDArray[np.float32]:
    """Return the weights [small, side] of Pillow's box filter."""
    rows = Image.fromarray(np.eye(side, dtype=np.float32)).resize((side, small), Image.Resampling.BOX)
    return np.asarray(rows)


def _sizes(side: int) -> list[int]:
    return [round(side * scale) for scale in _SCALES]


def _band(grey: Grey, blur: float) -> NDArray[np.float32]:
    """Return differences from the surroundings over their local magnitude, so that strong edges do not dominate."""
    values = grey.astype(np.float32)
    around = 2 * round(8 * blur) + 1
    axes = (-2, -1)
    band = ndimage.gaussian_filter(values, blur, axes=axes) - ndimage.uniform_filter(values, around, axes=axes)
    scaled: NDArray[np.float32] = band / (ndimage.uniform_filter(np.abs(band), around, axes=axes) + _FAINT)
    return scaled


def _window(sums: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the sums over every window of ``size`` x ``size``."""
    low, high = slice(None, -size), slice(size, None)
    total: NDArray[np.float64] = (
        sums[..., high, high] - sums[..., low, high] - sums[..., high, low] + sums[..., low, low]
    )
    return total
