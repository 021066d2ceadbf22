"""Pixel-by-pixel comparison of two pictures, one of which may be a part, a mirror image or a framed copy of the other.

Band-passed grey values are compared, so that brightness, colour, noise and compression have little effect.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage, optimize

_SCALES = (1.0, 0.92, 0.85, 0.78, 0.71)
"""Shares of a picture's width and height that a part may have."""

_LEAST = 0.5
"""Minimum share of a part's width and height when its place is refined: a thin or turned strip fits anything."""

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
    """One or several pictures prepared as both part and whole, once for all of their pairs.

    Attributes:
        grey: Their grey values, uint8 [..., S, S].
        spectra: Fourier transforms of the band-passed pictures, as wholes, [..., S, S // 2 + 1].
        spreads: For each of `_SCALES`, the spread of every window of that size within the wholes, [..., P, P].
        patterns: For each of `_SCALES`, straight and mirrored, the conjugate spectra of the pictures as parts,
            [..., 2, S, S // 2 + 1].
    """

    grey: Grey
    spectra: NDArray[np.complex64]
    spreads: tuple[NDArray[np.float32], ...]
    patterns: tuple[NDArray[np.complex64], ...]

    @classmethod
    def of(cls, grey: Grey) -> "Prepared":
        """Prepare grey values [S, S] or [N, S, S] of whole pictures that were stretched to a square."""
        side = grey.shape[-1]
        ground = _band(grey, side / 90)
        # Sums over everything above and left of each place.
        border = [(0, 0)] * (grey.ndim - 2) + [(1, 0), (1, 0)]
        sums, squares = (
            np.pad(values.astype(np.float64).cumsum(-2).cumsum(-1), border) for values in (ground, ground**2)
        )
        spreads = []
        for small in _sizes(side):
            mean = _window(sums, small) / small**2
            variance = _window(squares, small) - small**2 * mean**2
            spreads.append(np.sqrt(np.maximum(variance, 0.1)).astype(np.float32))
        patterns = tuple(_pattern(grey, small) for small in _sizes(side))
        return cls(grey, fft.rfft2(ground), tuple(spreads), patterns)

    @property
    def side(self) -> int:
        """S, the side in pixels."""
        return int(self.grey.shape[-1])

    def at(self, places: NDArray[np.int64] | int) -> "Prepared":
        """Return some of several pictures, or a single one."""
        spreads = tuple(spread[places] for spread in self.spreads)
        patterns = tuple(pattern[places] for pattern in self.patterns)
        return Prepared(self.grey[places], self.spectra[places], spreads, patterns)


def best_fits(one: Prepared, other: Prepared) -> NDArray[np.float32]:
    """Return the fit of the best overlay for N pairs of pictures, [N]."""
    fits = [values.max(axis=(-3, -2, -1)) for pair in ((one, other), (other, one)) for _, values in _fits(*pair)]
    return np.asarray(np.maximum.reduce(fits), np.float32)


def best_overlay(one: Prepared, other: Prepared) -> Overlay:
    """Return the best overlay: either picture as the part, straight or mirrored, at several sizes, at any place."""
    best = Overlay(-1.0, swapped=False, mirrored=False, box=(0.0, 0.0, 1.0, 1.0))
    for whole, part, swapped in ((one, other, False), (other, one, True)):
        for small, fits in _fits(whole, part):
            # At full size, either picture may be the whole, with equal fits but for rounding.
            if (fit := float(fits.max())) > best.fit and not (swapped and small == one.side):
                mirrored, top, left = (int(index) for index in np.unravel_index(fits.argmax(), fits.shape))
                size = small / one.side
                best = Overlay(fit, swapped, bool(mirrored), (left / one.side, top / one.side, size, size))
    return best


def placed(one: Prepared, other: Prepared, start: Overlay) -> Overlay:
    """Return an overlay of two single pictures with refined place, width and height, at the size that was prepared."""
    whole, part = _whole_and_part(one.grey, other.grey, start)
    box, fit = _moved(whole, part, np.array(start.box), one.side / 90, evaluations=30)
    return _overlay(fit, start, box)


def refined(one: Grey, other: Grey, start: Overlay) -> Overlay:
    """Return an overlay with refined place, width and height, of grey values [S, S], S larger than for `best_overlay`.

    Its fit is the lower quartile of the correlation over all textured blocks: a watermark changes few of them, while
    two products on a white background share nothing but the outline.
    """
    whole, part = _whole_and_part(one, other, start)
    box = np.array(start.box)
    for blur in (2.0, 1.0):
        box, _ = _moved(whole, part, box, blur, evaluations=45)
    fit = _agreement(_laid_over(Image.fromarray(_band(whole, 1.0)), len(part), box), _band(part, 1.0))
    return _overlay(fit, start, box)


def _whole_and_part(one: Grey, other: Grey, overlay: Overlay) -> tuple[Grey, Grey]:
    whole, part = (other, one) if overlay.swapped else (one, other)
    return whole, part[:, ::-1] if overlay.mirrored else part


def _overlay(fit: float, start: Overlay, box: NDArray[np.float64]) -> Overlay:
    left, top, width, height = box.tolist()
    return Overlay(fit, start.swapped, start.mirrored, (left, top, width, height))


def _moved(
    whole: Grey, part: Grey, box: NDArray[np.float64], blur: float, evaluations: int
) -> tuple[NDArray[np.float64], float]:
    """Return the box near a given one at which the part correlates most with the whole, and the correlation."""
    misfit = partial(_misfit, Image.fromarray(_band(whole, blur)), _band(part, blur))
    simplex = np.vstack([box, box + np.diag([0.015, 0.015, 0.03, 0.03])])
    options = {"initial_simplex": simplex, "maxfev": evaluations, "xatol": 1e-3, "fatol": 1e-3}
    found = optimize.minimize(misfit, box, method="Nelder-Mead", options=options)
    return found.x, -float(found.fun)


def _misfit(ground: Image.Image, pattern: NDArray[np.float32], box: NDArray[np.float64]) -> float:
    """Return minus the normalised cross-correlation of a part with its place in the whole; 1 for a part too small."""
    if min(box[2:]) < _LEAST:
        return 1.0
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


def shrunk(grey: Grey, side: int) -> Grey:
    """Return grey values [..., S, S] at a smaller size."""
    if side == grey.shape[-1]:
        return grey
    pictures = (Image.fromarray(values) for values in grey.reshape(-1, *grey.shape[-2:]))
    small = [np.asarray(picture.resize((side, side), Image.Resampling.BOX)) for picture in pictures]
    return np.stack(small).reshape(*grey.shape[:-2], side, side)


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
