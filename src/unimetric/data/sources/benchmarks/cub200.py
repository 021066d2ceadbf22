"""CUB-200-2011: classes 1 to 100 train, 101 to 200 test (Wah et al., Caltech CNS-TR-2011-001)."""

from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing, readable_names
from unimetric.data.sources.benchmarks.text_tables import read_classes

CLASSES = 200
TRAIN_CLASSES = 100


def read_cub200(folder: Path, require_images: bool) -> Listing:
    """Read CUB-200-2011 in the order of ``images.txt``; labels are species, as in "Black footed Albatross".

    The folder ``CUB_200_2011`` has ``images.txt``, ``image_class_labels.txt``, ``classes.txt`` and ``images``. The
    authors' ``train_test_split.txt`` divides images, not classes, and is not used.
    """
    images_file = find_file(folder, "cub200", ["images.txt"])
    images = find_images(folder, "cub200", ["images"], required=require_images)
    names, pairs = read_classes(folder, 1, CLASSES)
    # "001.Black_footed_Albatross"
    labels = readable_names({number: text.partition(".")[2] or text for number, text in names.items()})
    listed = [Listed(path, labels[number], "train" if number <= TRAIN_CLASSES else "test") for path, number in pairs]
    return Listing(images, images_file, listed)
