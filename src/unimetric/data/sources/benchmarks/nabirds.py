"""NABirds: of its 555 classes the first 278 train, the last 277 test (Van Horn et al., CVPR 2015)."""

from pathlib import Path

from unimetric.data.catalog import Dataset
from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, make_dataset, readable_names
from unimetric.data.sources.benchmarks.text_tables import read_class_names, read_image_classes, whole_number
from unimetric.errors import UserError

TRAIN_CLASSES = 278
_MOST = 10**6
"""More than any class id; the true bound is that an id is named in ``classes.txt``."""


def read_nabirds(folder: Path, name: str | None = None, *, require_images: bool = True) -> list[Dataset]:
    """Read NABirds in the order of ``images.txt``; labels are species with their plumage, as ``classes.txt`` has them.

    Class ids are sparse, for inner nodes of the hierarchy have some: the ids that images have are sorted as numbers,
    and the first 278 of them train. The authors' ``train_test_split.txt`` divides images, not classes, and is not
    used. The folder has ``images.txt``, ``image_class_labels.txt``, ``classes.txt`` and ``images``.
    """
    images_file = find_file(folder, "nabirds", ["images.txt"])
    images = find_images(folder, "nabirds", ["images"], required=require_images)
    classes_file = folder / "image_class_labels.txt"
    names = read_class_names(folder / "classes.txt", 0, _MOST)
    pairs = []
    for path, row in read_image_classes(images_file, classes_file):
        place = f"{classes_file}, line {row.line}"
        number = whole_number(row.values[1], place, "class id", 0, _MOST)
        if number not in names:
            raise UserError(
                f"{place}: the class id {number} is out of range: {folder / 'classes.txt'} does not name it; "
                "download both again"
            )
        pairs.append((path, number))
    used = sorted({number for _, number in pairs})
    train = set(used[:TRAIN_CLASSES])
    # Inner nodes repeat the names of leaves, so names are made distinct among the ids that images have.
    labels = readable_names({number: names[number] for number in used})
    listed = [Listed(path, labels[number], "train" if number in train else "test") for path, number in pairs]
    return make_dataset("nabirds", name, images, images_file, listed, require_images=require_images)
