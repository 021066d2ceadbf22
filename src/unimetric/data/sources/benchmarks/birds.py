"""CUB-200-2011 and NABirds, whose annotation files have the same form.

Of CUB-200-2011, classes 1 to 100 train, 101 to 200 test (Wah et al., Caltech CNS-TR-2011-001); of the 555 classes of
NABirds, the first 278 train, the last 277 test (Van Horn et al., CVPR 2015). The authors' ``train_test_split.txt``
divides images, not classes, and is not used.
"""

from collections.abc import Iterable
from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing, readable_names
from unimetric.data.sources.benchmarks.text_tables import Row, forward_slashes, read_table, whole_number
from unimetric.errors import UserError

_CUB_CLASSES, _CUB_TRAIN_CLASSES = 200, 100
_NABIRDS_TRAIN_CLASSES = 278
_MOST = 10**6
"""More than any class id of NABirds; the true bound is that an id is named in ``classes.txt``."""


def read_cub200(folder: Path, require_images: bool) -> Listing:
    """Read CUB-200-2011 in the order of ``images.txt``; labels are species, as in "Black footed Albatross".

    The folder ``CUB_200_2011`` has ``images.txt``, ``image_class_labels.txt``, ``classes.txt`` and ``images``.
    """
    images_file = find_file(folder, "cub200", ["images.txt"])
    images = find_images(folder, "cub200", ["images"], required=require_images)
    names, pairs = _read_classes(folder, 1, _CUB_CLASSES)
    # "001.Black_footed_Albatross"
    labels = readable_names({number: text.partition(".")[2] or text for number, text in names.items()})
    listed = [
        Listed(path, labels[number], "train" if number <= _CUB_TRAIN_CLASSES else "test") for path, number in pairs
    ]
    return Listing(images, images_file, listed)


def read_nabirds(folder: Path, require_images: bool) -> Listing:
    """Read NABirds in the order of ``images.txt``; labels are species with their plumage, as ``classes.txt`` has them.

    Class ids are sparse, for inner nodes of the hierarchy have some: the ids that images have are sorted as numbers,
    and the first 278 of them train. The folder has the files of `read_cub200`.
    """
    images_file = find_file(folder, "nabirds", ["images.txt"])
    images = find_images(folder, "nabirds", ["images"], required=require_images)
    names, pairs = _read_classes(folder, 0, _MOST)
    used = sorted({number for _, number in pairs})
    train = set(used[:_NABIRDS_TRAIN_CLASSES])
    # Inner nodes repeat the names of leaves, so names are made distinct among the ids that images have.
    labels = readable_names({number: names[number] for number in used})
    listed = [Listed(path, labels[number], "train" if number in train else "test") for path, number in pairs]
    return Listing(images, images_file, listed)


def _read_classes(folder: Path, low: int, high: int) -> tuple[dict[int, str], list[tuple[str, int]]]:
    """Read ``classes.txt``, ``images.txt`` and ``image_class_labels.txt``.

    Returns:
        The names of the classes by id, from ``low`` to ``high``; and each image's path with the id of its class.
    """
    images_file, classes_file, names_file = (
        folder / name for name in ("images.txt", "image_class_labels.txt", "classes.txt")
    )
    names: dict[int, str] = {}
    for line, (text, name) in read_table(names_file, ("class_id", "class_name"), rest=True):
        number = whole_number(text, f"{names_file}, line {line}", "class id", low, high)
        if number in names:
            raise UserError(f"{names_file}, line {line}: the class id {number} is there twice; download the file again")
        names[number] = name
    images = _by_key(images_file, read_table(images_file, ("image_id", "path"), rest=True))
    classes = _by_key(classes_file, read_table(classes_file, ("image_id", "class_id")))
    sides = ((images_file, images, classes_file, classes), (classes_file, classes, images_file, images))
    for file, own, other_file, others in sides:
        alone = next((key for key in own if key not in others), None)
        if alone is not None:
            raise UserError(
                f"{other_file} has no image {alone!r}, which {file} has on line {own[alone].line}; download both again"
            )
    pairs = []
    for key, row in images.items():
        place = f"{classes_file}, line {classes[key].line}"
        number = whole_number(classes[key].values[1], place, "class id", low, high)
        if number not in names:
            raise UserError(f"{place}: the class id {number} is not in {names_file}; download both again")
        pairs.append((forward_slashes(row.values[1]), number))
    return names, pairs


def _by_key(file: Path, rows: Iterable[Row]) -> dict[str, Row]:
    """Return rows by their first value."""
    found: dict[str, Row] = {}
    for row in rows:
        key = row.values[0]
        if key in found:
            raise UserError(f"{file}, line {row.line}: {key!r} is on line {found[key].line} too; download it again")
        found[key] = row
    return found
