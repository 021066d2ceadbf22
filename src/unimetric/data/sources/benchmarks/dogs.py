"""Stanford Dogs: classes 1 to 60 train, 61 to 120 test (Khosla et al., FGVC workshop at CVPR 2011)."""

from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing, readable_names
from unimetric.data.sources.benchmarks.mat_files import mat_numbers, mat_texts, read_mat
from unimetric.data.sources.benchmarks.text_tables import forward_slashes
from unimetric.errors import UserError

CLASSES = 120
TRAIN_CLASSES = 60


def read_dogs(folder: Path, require_images: bool) -> Listing:
    """Read Stanford Dogs in the order of ``file_list.mat``; labels are breeds, as in "Siberian husky".

    The folder has ``file_list.mat``, also in ``lists``, and ``Images``. The authors' ``train_list.mat`` and
    ``test_list.mat`` divide images, not classes, and are not used.
    """
    file = find_file(folder, "dogs", ["file_list.mat", "lists/file_list.mat"])
    images = find_images(folder, "dogs", ["Images", "images"], required=require_images)
    content = read_mat(file, ("file_list", "labels"))
    paths = [forward_slashes(path) for path in mat_texts(file, content["file_list"].reshape(-1), "file name")]
    numbers = mat_numbers(file, content["labels"].reshape(-1), "label", 1, CLASSES)
    if len(paths) != len(numbers):
        lengths = f"{len(paths)} file_list, {len(numbers)} labels"
        raise UserError(f"{file} holds {lengths}, which have to be as many; download it again")
    folders: dict[int, str] = {}
    for path, number in zip(paths, numbers, strict=True):
        folders.setdefault(number, path.partition("/")[0])
    # "n02110185-Siberian_husky"
    labels = readable_names({number: text.partition("-")[2] or text for number, text in folders.items()})
    listed = [
        Listed(path, labels[number], "train" if number <= TRAIN_CLASSES else "test")
        for path, number in zip(paths, numbers, strict=True)
    ]
    return Listing(images, file, listed)
