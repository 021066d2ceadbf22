"""Oxford Flowers-102: classes 1 to 51 train, 52 to 102 test (Nilsback and Zisserman, ICVGIP 2008)."""

from collections import Counter
from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing
from unimetric.data.sources.benchmarks.mat_files import mat_numbers, read_mat
from unimetric.errors import UserError

CLASSES = 102
TRAIN_CLASSES = 51
_SETS = ("trnid", "valid", "tstid")


def read_flowers102(folder: Path, require_images: bool) -> Listing:
    """Read Oxford Flowers-102 in the order of the images' numbers: its three sets together, divided by class.

    Labels are the numbers of the classes: its files have no names. The folder has ``imagelabels.mat``, ``setid.mat``
    and ``jpg``.
    """
    labels_file = find_file(folder, "flowers102", ["imagelabels.mat"])
    images = find_images(folder, "flowers102", ["jpg"], required=require_images)
    labels = read_mat(labels_file, ["labels"])["labels"].reshape(-1)
    numbers = mat_numbers(labels_file, labels, "label", 1, CLASSES)
    listed = [
        Listed(f"image_{image:05d}.jpg", str(number), "train" if number <= TRAIN_CLASSES else "test")
        for image in _images(folder / "setid.mat", len(numbers))
        for number in [numbers[image - 1]]
    ]
    return Listing(images, labels_file, listed)


def _images(file: Path, count: int) -> list[int]:
    """Return the numbers of all images of the three sets, sorted."""
    sets = read_mat(file, _SETS)
    images = [image for part in _SETS for image in mat_numbers(file, sets[part].reshape(-1), part, 1, count)]
    image, times = Counter(images).most_common(1)[0] if images else (0, 1)
    if times > 1:
        raise UserError(f"{file} lists the image {image} {times} times; download it again")
    return sorted(images)
