"""NABirds: of its 555 classes the first 278 train, the last 277 test (Van Horn et al., CVPR 2015)."""

from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing, readable_names
from unimetric.data.sources.benchmarks.text_tables import read_classes

TRAIN_CLASSES = 278
_MOST = 10**6
"""More than any class id; the true bound is that an id is named in ``classes.txt``."""


def read_nabirds(folder: Path, require_images: bool) -> Listing:
    """Read NABirds in the order of ``images.txt``; labels are species with their plumage, as ``classes.txt`` has them.

    Class ids are sparse, for inner nodes of the hierarchy have some: the ids that images have are sorted as numbers,
    and the first 278 of them train. The authors' ``train_test_split.txt`` divides images, not classes, and is not
    used. The folder has ``images.txt``, ``image_class_labels.txt``, ``classes.txt`` and ``images``.
    """
    images_file = find_file(folder, "nabirds", ["images.txt"])
    images = find_images(folder, "nabirds", ["images"], required=require_images)
    names, pairs = read_classes(folder, 0, _MOST)
    used = sorted({number for _, number in pairs})
    train = set(used[:TRAIN_CLASSES])
    # Inner nodes repeat the names of leaves, so names are made distinct among the ids that images have.
    labels = readable_names({number: names[number] for number in used})
    listed = [Listed(path, labels[number], "train" if number in train else "test") for path, number in pairs]
    return Listing(images, images_file, listed)
