"""FGVC-Aircraft: of its 100 variants, sorted by name, the first 50 train (Maji et al., arXiv 1306.5151)."""

from pathlib import Path

from unimetric.data.sources.benchmarks.finding import find_file, find_images, find_optional
from unimetric.data.sources.benchmarks.listing import Listed, Listing
from unimetric.data.sources.benchmarks.text_tables import read_table
from unimetric.errors import UserError

TRAIN_CLASSES = 50
_COLUMNS = ("image", "variant")
_TRAINVAL = "images_variant_trainval.txt"
_TEST = "images_variant_test.txt"


def read_aircraft(folder: Path, require_images: bool) -> Listing:
    """Read FGVC-Aircraft: the train and validation images, then the test images, divided by variant.

    Labels are the variants, sorted by code point to divide them. The folder is ``fgvc-aircraft-2013b`` or ``data`` in
    it, with ``images_variant_trainval.txt``, ``images_variant_test.txt`` and ``images``.
    """
    first = find_file(folder, "aircraft", [f"data/{_TRAINVAL}", f"data/{_TEST}", _TRAINVAL, _TEST])
    data = first.parent
    images = find_images(data, "aircraft", ["images"], required=require_images)
    # Needed only to find misspelt names.
    names = find_optional(data, ["variants.txt"])
    named = {variant for _, (variant,) in read_table(names, ["variant"], rest=True)} if names else set()
    pairs = []
    for file in (data / _TRAINVAL, data / _TEST):
        for line, (image, variant) in read_table(file, _COLUMNS, rest=True):
            if named and variant not in named:
                raise UserError(f"{file}, line {line}: the variant {variant!r} is not in {names}; download both again")
            pairs.append((image, variant))
    train = set(sorted(named or {variant for _, variant in pairs})[:TRAIN_CLASSES])
    listed = [Listed(f"{image}.jpg", variant, "train" if variant in train else "test") for image, variant in pairs]
    lists = data / "images_variant_*.txt"
    return Listing(images, lists, listed)
