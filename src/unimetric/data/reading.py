"""Read images from a cache of resized ones, or decode their files, in full or reduced."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unimetric.data.cache import ImageCache
from unimetric.data.cropping import resized_side
from unimetric.data.images import decode_image
from unimetric.errors import UserError
from unimetric.files import user_path


@dataclass(frozen=True)
class ImageReader:
    """Reads images through a cache; an image that is not in it, or was changed, is decoded from its file.

    Args:
        cache: The cache, or None.
        at_least: Let JPEG files be decoded at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps this
            many pixels; None decodes in full.
    """

    cache: ImageCache | None = None
    at_least: int | None = None

    def __call__(self, path: Path) -> Image.Image:
        """Return the image, upright, of mode RGB.

        Raises:
            ImageError: It cannot be read.
        """
        image = None if self.cache is None else self.cache.read(path)
        return decode_image(path, at_least=self.at_least) if image is None else image

    def note(self, paths: Iterable[Path]) -> str | None:
        """Return a note with the number of images that the cache does not hold, or None if it holds all."""
        if self.cache is None:
            return None
        distinct = list(dict.fromkeys(paths))
        missing = [path for path in distinct if not self.cache.holds(path)]
        if not missing:
            return None
        return (
            f"{len(missing)} of {len(distinct)} images are not in the cache {self.cache.folder} or were changed since, "
            f"and are read from their files; the first is {missing[0]}; prepare them with: unimetric prepare"
        )


def image_reader(cache: str | None, reduced: bool, image_size: int, option: str) -> ImageReader:
    """Return the reader for a cache that ``unimetric prepare`` wrote, or for none.

    JPEG files are decoded at a ``reduced`` size, not below twice the size that an input of S pixels is cut from;
    ``option`` names the cache in messages.

    Raises:
        UserError: The folder is no cache, or its images are too small for the input.
    """
    needed = resized_side(image_size)
    at_least = 2 * needed if reduced else None
    if cache is None:
        return ImageReader(None, at_least)
    opened = ImageCache.open(user_path(cache))
    if opened.kind.side < needed:
        raise UserError(
            f"--{option} is {cache}: its images have a shorter side of {opened.kind.side} pixels, but an input of "
            f"{image_size} is cut from {needed}; prepare another one with --side {needed} or more"
        )
    return ImageReader(opened, at_least)
