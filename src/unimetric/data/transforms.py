"""Transforms of an RGB image to a backbone's input."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unimetric.data.cropping import evaluation_crop


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize the shorter side to ``RESIZE_RATIO`` times the input size (bicubic), crop the centre, normalise.

    Args:
        image_size: Side S of the square input in pixels.
        mean: Per channel, for pixel values in [0, 1].
        std: Per channel, for pixel values in [0, 1].
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the input of an RGB image, float32 [3, S, S]."""
        return self.normalise(self.crop(image))

    def crop(self, image: Image.Image) -> Tensor:
        """Return the pixels of an RGB image's crop, uint8 [3, S, S]; uses one thread."""
        pixels: Tensor = F.pil_to_tensor(evaluation_crop(image, self.image_size))
        return pixels

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels, uint8 [..., 3, S, S], to float32 of the same shape."""
        scaled = F.to_dtype(pixels, torch.float32, scale=True)
        normalised: Tensor = F.normalize(scaled, list(self.mean), list(self.std))
        return normalised


@dataclass(frozen=True)
class TrainingTransform:
    """Cut a random crop, resize it to the input (bicubic) and mirror it by chance.

    Args:
        image_size: Side S of the square input in pixels.
        crop_scale_min: Smallest share of the image's area that a crop takes, in (0, 1].
        horizontal_flip: Mirror half of the images.
    """

    image_size: int
    crop_scale_min: float = 0.2
    horizontal_flip: bool = True

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """Return the pixels of a random crop, uint8 [3, S, S]; the same seed gives the same crop and flip."""
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the accelerators too.
            torch.default_generator.manual_seed(seed)
            draw = v2.RandomResizedCrop(self.image_size, scale=(self.crop_scale_min, 1.0))
            box = draw.make_params([image])
            mirrored = self.horizontal_flip and bool(torch.rand(()) < 0.5)
        pixels: Tensor = F.pil_to_tensor(F.crop(image, **box))
        # A tensor, not a Pillow image: the same bicubic filter, to a few grey levels, in a third of the time.
        pixels = F.resize(pixels, [self.image_size] * 2, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        return (F.horizontal_flip(pixels) if mirrored else pixels).contiguous()
