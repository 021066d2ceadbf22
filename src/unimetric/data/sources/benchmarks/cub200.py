"""CUB-200-2011: classes 1 to 100 train, 101 to 200 test (Wah et al., Caltech CNS-TR-2011-001)."""

from pathlib import Path

from unimetric.data.catalog import Dataset
from unimetric.data.sources.benchmarks.finding import find_file, find_images, recognise
from unimetric.data.sources.benchmarks.listing import Listed, make_dataset, readable_names
from unimetric.data.sources.benchmarks.text_tables import read_class_names, read_image_classes, whole_number
from unimetric.errors import UserError

CLASSES = 200
TRAIN_CLASSES = 100


def read_cub200(folder: Path, name: str | None = None, *, require_images: bool = True) -> list[Dataset]:
    """Read CUB-200-2011 in the order of ``images.txt``; labels are species, as in "Black footed Albatross".

    The folder ``CUB_200_2011`` has ``images.txt``, ``image_class_labels.txt``, ``classes.txt`` and ``images``. The
    authors' ``train_test_split.txt`` divides images, not classes, and is not used.
    """
    images_file = find_file(folder, "cub200", ["images.txt"])
    if recognise(folder) == ["nabirds"]:
        raise UserError(f"{folder} is the folder of NABirds, not CUB-200-2011; write nabirds:{folder}")
    images = find_images(folder, "cub200", ["images"], required=require_images)
    classes_file = folder / "image_class_labels.txt"
    labels = _labels(folder / "classes.txt")
    listed = []
    for path, row in read_image_classes(images_file, classes_file):
        place = f"{classes_file}, line {row.line}"
        number = whole_number(row.values[1], place, "class id", 1, CLASSES)
        if number not in labels:
            raise UserError(f"{place}: the class id {number} is not in {folder / 'classes.txt'}; download both again")
        listed.append(Listed(path, labels[number], "train" if number <= TRAIN_CLASSES else "test"))
    return make_dataset("cub200", name, images, images_file, listed, require_images=require_images)


def _labels(file: Path) -> dict[int, str]:
    # "001.Black_footed_Albatross"
    names = read_class_names(file, 1, CLASSES)
    return readable_names({number: text.partition(".")[2] or text for number, text in names.items()})
