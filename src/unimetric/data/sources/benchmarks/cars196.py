"""Cars-196: classes 1 to 98 train, 99 to 196 test, all 16,185 images (Krause et al., 3dRR workshop at ICCV 2013)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images, find_optional
from unimetric.data.sources.benchmarks.listing import Listed, Listing, readable_names
from unimetric.data.sources.benchmarks.mat_files import mat_column, mat_numbers, mat_texts, read_mat
from unimetric.data.sources.benchmarks.text_tables import forward_slashes
from unimetric.errors import UserError

CLASSES = 196
TRAIN_CLASSES = 98
_ALL = "cars_annos.mat"
_TRAIN = ("devkit/cars_train_annos.mat", "cars_train_annos.mat")
_TEST = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
_UNLABELLED = ("devkit/cars_test_annos.mat", "cars_test_annos.mat")
_NAMES = ("devkit/cars_meta.mat", "cars_meta.mat")


@dataclass(frozen=True, slots=True)
class _Part:
    """Images of one annotation file: their paths relative to the dataset's folder, and their class numbers."""

    file: Path
    paths: list[str]
    numbers: list[int]


def read_cars196(folder: Path, require_images: bool) -> Listing:
    """Read Cars-196 in the order of its annotation files; labels are models, as in "Acura TL Sedan 2012".

    Two forms are taken: ``cars_annos.mat`` with ``car_ims``, which is preferred, and ``devkit/cars_train_annos.mat``
    and ``cars_test_annos_withlabels.mat`` (beside or in ``devkit``) with ``cars_train`` and ``cars_test``. The
    authors' train and test sets divide images, not classes, and are joined.
    """
    file = find_file(folder, "cars196", [_ALL, *_TRAIN, *_TEST])
    whole = find_optional(folder, [_ALL])
    # Some copies have the annotations of both forms, and the images of one.
    if whole and ((folder / "car_ims").is_dir() or not find_optional(folder, _TRAIN)):
        find_images(folder, "cars196", ["car_ims"], required=require_images)
        parts = [_read_part(whole, "relative_im_path", "")]
        names_file: Path | None = whole
    else:
        parts = _read_devkit(folder, file, require_images)
        names_file = find_optional(folder, [*_NAMES, _ALL])
    labels, notes = _labels(names_file)
    listed = []
    for part in parts:
        for path, number in zip(part.paths, part.numbers, strict=True):
            if number not in labels:
                raise UserError(f"{part.file}: the class {number} has no name in {names_file}; download both again")
            listed.append(Listed(path, labels[number], "train" if number <= TRAIN_CLASSES else "test"))
    lists = parts[0].file if len(parts) == 1 else folder / "cars_*_annos*.mat"
    return Listing(folder, lists, listed, notes)


def _read_devkit(folder: Path, found: Path, require_images: bool) -> list[_Part]:
    train = find_optional(folder, _TRAIN)
    if train is None:
        raise UserError(f"{found} is there, but not {folder / _TRAIN[0]}; unpack car_devkit.tgz in {folder}")
    test = find_optional(folder, _TEST)
    if test is None:
        bare = find_optional(folder, _UNLABELLED)
        lack = f"{bare} has no labels" if bare else f"{train} labels the train images only"
        raise UserError(f"{lack}; put cars_test_annos_withlabels.mat in {folder}, beside devkit")
    return [
        _read_part(train, "fname", _images(folder, "cars_train", require_images)),
        _read_part(test, "fname", _images(folder, "cars_test", require_images)),
    ]


def _images(folder: Path, name: str, required: bool) -> str:
    """Return the folder of images relative to the dataset's; some copies have it inside another of the same name."""
    found = find_images(folder, "cars196", [f"{name}/{name}", name], usual=name, required=required)
    return f"{found.relative_to(folder).as_posix()}/"


def _read_part(file: Path, column: str, prefix: str) -> _Part:
    table = read_mat(file, ["annotations"])["annotations"]
    paths = mat_texts(file, mat_column(file, table, column), column)
    numbers = mat_numbers(file, mat_column(file, table, "class"), "class", 1, CLASSES)
    return _Part(file, [prefix + forward_slashes(path) for path in paths], numbers)


def _labels(file: Path | None) -> tuple[dict[int, str], Sequence[str]]:
    """Return the classes' names by number, and a note where there are none: some copies lack ``cars_meta.mat``."""
    required, optional = ([], ["class_names"]) if file and file.name == _ALL else (["class_names"], [])
    names = read_mat(file, required, optional).get("class_names") if file else None
    if file is None or names is None:
        note = "its classes have numbers for names, since there is no cars_meta.mat"
        return {number: str(number) for number in range(1, CLASSES + 1)}, [note]
    return readable_names(dict(enumerate(mat_texts(file, names.reshape(-1), "class name"), start=1))), []
