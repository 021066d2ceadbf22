"""Stanford Online Products: 11,318 train and 11,316 test classes (Oh Song et al., CVPR 2016)."""

from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images
from unimetric.data.sources.benchmarks.listing import Listed, Listing
from unimetric.data.sources.benchmarks.text_tables import forward_slashes, read_table_with_header, whole_number

CLASSES = 22_634
_FILES = (("train", "Ebay_train.txt"), ("test", "Ebay_test.txt"))
_COLUMNS = ("class_id", "path")


def read_sop(folder: Path, require_images: bool) -> Listing:
    """Read Stanford Online Products: ``Ebay_train.txt``, then ``Ebay_test.txt``, each in its order.

    Labels are the numbers of the classes, which have no names. The folder ``Stanford_Online_Products`` has the two
    files and twelve folders such as ``bicycle_final``.
    """
    find_file(folder, "sop", [file for _, file in _FILES])
    listed = []
    for role, file_name in _FILES:
        file = folder / file_name
        for line, (number, path) in read_table_with_header(file, _COLUMNS):
            label = whole_number(number, f"{file}, line {line}", "class_id", 1, CLASSES)
            listed.append(Listed(forward_slashes(path), str(label), role))
    if require_images:
        find_images(folder, "sop", sorted({entry.path.partition("/")[0] for entry in listed}))
    return Listing(folder, folder / "Ebay_*.txt", listed)
