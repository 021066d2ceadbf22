"""Small folders in the exact formats of the benchmark datasets, with empty images, and what is to be read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
ANNOTATIONS = SHARED / "annotations" / "annotations.tar.xz"
needs_annotations = pytest.mark.skipif(
    not ANNOTATIONS.is_file(), reason="the datasets' own annotation files are not at hand (../shared/annotations)"
)

Expected = list[tuple[str, str, str]]
"""Path relative to the folder, label, role."""


@dataclass(frozen=True)
class Made:
    folder: Path
    expected: Expected
    annotations: tuple[str, ...]
    """The annotation files that the reader cannot do without, relative to the folder."""
    images: str
    """A folder inside of the dataset's that holds images."""


def touch(paths: Iterable[Path]) -> None:
    """Create empty files, tens of thousands in a second."""
    folders: set[Path] = set()
    for path in paths:
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        path.open("w").close()


def write(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def cells(texts: Sequence[str]) -> np.ndarray:
    """A MATLAB cell array of texts, [1, N]."""
    return np.array([[*texts]], dtype=object)


def structs(rows: Sequence[dict[str, object]]) -> np.ndarray:
    """A MATLAB struct array, [1, N]."""
    table = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for position, row in enumerate(rows):
        table[0, position] = tuple(row.values())
    return table


def finish(folder: Path, expected: Expected, annotations: tuple[str, ...], images: str) -> Made:
    touch(folder / path for path, _, _ in expected)
    return Made(folder, expected, annotations, images)


def make_cub200(root: Path) -> Made:
    folder = root / "CUB_200_2011"
    names = {1: "Black_footed_Albatross", 2: "Ani", 100: "Brown_Pelican", 101: "White_Pelican", 200: "Yellowthroat"}
    classes = {number: f"{number:03d}.{name}" for number, name in names.items()}
    # Ids and classes out of order, as a check that tables are joined and nothing is sorted.
    numbers = [101, 1, 2, 100, 200, 1, 101]
    images = {7 - i: (f"{classes[number]}/{i}.jpg", number) for i, number in enumerate(numbers)}
    write(folder / "classes.txt", (f"{number} {text}" for number, text in classes.items()))
    write(folder / "images.txt", (f"{i} {path}" for i, (path, _) in images.items()))
    write(folder / "image_class_labels.txt", (f"{i} {number}" for i, (_, number) in sorted(images.items())))
    write(folder / "train_test_split.txt", (f"{i} {i % 2}" for i in images))
    expected = [
        (f"images/{path}", names[number].replace("_", " "), "train" if number <= 100 else "test")
        for path, number in images.values()
    ]
    return finish(folder, expected, ("images.txt", "image_class_labels.txt", "classes.txt"), "images")


def make_cars196(root: Path) -> Made:
    folder = root / "cars196"
    folder.mkdir(parents=True)
    numbers = [1, 98, 99, 196, 98, 99]
    names = [f"Maker Model {number}" for number in range(1, 197)]
    rows = [
        {"relative_im_path": f"car_ims/{i:06d}.jpg", "bbox_x1": 1, "class": number, "test": i % 2}
        for i, number in enumerate(numbers, start=1)
    ]
    savemat(folder / "cars_annos.mat", {"annotations": structs(rows), "class_names": cells(names)})
    expected = [
        (f"car_ims/{i:06d}.jpg", names[number - 1], "train" if number <= 98 else "test")
        for i, number in enumerate(numbers, start=1)
    ]
    return finish(folder, expected, ("cars_annos.mat",), "car_ims")


def make_cars196_devkit(root: Path) -> Made:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = [f"Maker Model {number}" for number in range(1, 197)]
    savemat(folder / "devkit/cars_meta.mat", {"class_names": cells(names)})
    expected = []
    parts = {"train": ("devkit/cars_train_annos.mat", [1, 99]), "test": ("cars_test_annos_withlabels.mat", [196, 98])}
    for part, (file, numbers) in parts.items():
        rows = [{"class": number, "fname": f"{i:05d}.jpg"} for i, number in enumerate(numbers, start=1)]
        savemat(folder / file, {"annotations": structs(rows)})
        expected += [
            (f"cars_{part}/{row['fname']}", names[number - 1], "train" if number <= 98 else "test")
            for row, number in zip(rows, numbers, strict=True)
        ]
    return finish(folder, expected, tuple(file for file, _ in parts.values()), "cars_train")


def make_sop(root: Path) -> Made:
    folder = root / "Stanford_Online_Products"
    sides = {"train": [1, 1, 11318], "test": [11319, 11319, 22634]}
    expected = []
    image = 0
    for role, numbers in sides.items():
        lines = ["image_id class_id super_class_id path"]
        for number in numbers:
            image += 1
            path = f"bicycle_final/{number}_{image}.JPG"
            lines.append(f"{image} {number} 1 {path}")
            expected.append((path, str(number), role))
        write(folder / f"Ebay_{role}.txt", lines)
    return finish(folder, expected, ("Ebay_train.txt", "Ebay_test.txt"), "bicycle_final")


def inshop_lines(expected: Expected) -> list[str]:
    rows = [f"{path:<70} {label}  {role}" for path, label, role in expected]
    return [str(len(rows)), "image_name item_id evaluation_status", *rows]


def make_inshop(root: Path) -> Made:
    folder = root / "inshop"
    expected = [
        (f"img/WOMEN/Dresses/{label}/{position:02d}_1_front.jpg", label, role)
        for position, (label, role) in enumerate(
            [
                ("id_00000002", "train"),
                ("id_00000001", "query"),
                ("id_00000001", "gallery"),
                ("id_00000007", "gallery"),
                ("id_00000002", "train"),
                ("id_00000007", "query"),
                ("id_00000009", "train"),
            ]
        )
    ]
    write(folder / "list_eval_partition.txt", inshop_lines(expected))
    return finish(folder, expected, ("list_eval_partition.txt",), "img")


def make_nabirds(root: Path) -> Made:
    folder = root / "nabirds"
    # 280 sparse ids, whose order as numbers is not that as text.
    numbers = list(range(5, 845, 3))
    names = {number: f"Bird {number} (Adult male)" for number in numbers}
    ids = {number: f"{number:08x}-21dc-4d0c-bfe1-4cae3c85c829" for number in reversed(numbers)}
    paths = {number: f"{number:04d}/{key.replace('-', '')}.jpg" for number, key in ids.items()}
    # An inner node of the hierarchy, of the same name as a leaf, and without images.
    write(folder / "classes.txt", ["0 Birds", f"1 {names[5]}", *(f"{n} {name}" for n, name in names.items())])
    write(folder / "hierarchy.txt", (f"{number} 0" for number in numbers))
    write(folder / "images.txt", (f"{key} {paths[number]}" for number, key in ids.items()))
    write(folder / "image_class_labels.txt", (f"{key} {number}" for number, key in ids.items()))
    train = set(numbers[:278])
    expected = [(f"images/{paths[n]}", names[n], "train" if n in train else "test") for n in ids]
    return finish(folder, expected, ("images.txt", "image_class_labels.txt", "classes.txt"), "images")


def write_dogs(file: Path, paths: Sequence[str], numbers: Sequence[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    column = np.array([[path] for path in paths], dtype=object)
    savemat(file, {"file_list": column, "annotation_list": column, "labels": np.array(numbers, dtype=float)[:, None]})


def make_dogs(root: Path) -> Made:
    folder = root / "dogs"
    breeds = {1: "n02085620-Chihuahua", 60: "n02096437-Dandie_Dinmont", 61: "n02097130-giant_schnauzer",
              120: "n02116738-African_hunting_dog"}  # fmt: skip
    numbers = [1, 1, 60, 61, 61, 120]
    paths = [f"{breeds[number]}/{breeds[number][:9]}_{i}.jpg" for i, number in enumerate(numbers)]
    write_dogs(folder / "file_list.mat", paths, numbers)
    expected = [
        (f"Images/{path}", breeds[n].split("-")[1].replace("_", " "), "train" if n <= 60 else "test")
        for path, n in zip(paths, numbers, strict=True)
    ]
    return finish(folder, expected, ("file_list.mat",), "Images")


def make_flowers102(root: Path) -> Made:
    folder = root / "flowers102"
    folder.mkdir(parents=True)
    numbers = [77, 1, 51, 52, 102, 1, 52]
    savemat(folder / "imagelabels.mat", {"labels": np.array([numbers], dtype=np.uint8)})
    savemat(folder / "setid.mat", {"trnid": [[6, 1]], "valid": [[3, 2]], "tstid": [[7, 5, 4]]})
    expected = [
        (f"jpg/image_{i:05d}.jpg", str(number), "train" if number <= 51 else "test")
        for i, number in enumerate(numbers, start=1)
    ]
    return finish(folder, expected, ("imagelabels.mat", "setid.mat"), "jpg")


def make_aircraft(root: Path) -> Made:
    folder = root / "fgvc-aircraft-2013b"
    variants = sorted([f"Boeing {number}" for number in range(50)] + ["A300B4", "F-16A/B"])
    train = set(variants[:50])
    expected = []
    for part in ("trainval", "test"):
        rows = {f"{len(expected) + i:07d}": variant for i, variant in enumerate(reversed(variants))}
        write(folder / f"data/images_variant_{part}.txt", (f"{image} {variant}" for image, variant in rows.items()))
        expected += [
            (f"data/images/{image}.jpg", variant, "train" if variant in train else "test")
            for image, variant in rows.items()
        ]
    write(folder / "data/variants.txt", variants)
    return finish(folder, expected, ("data/images_variant_trainval.txt", "data/images_variant_test.txt"), "data/images")


MAKERS: dict[str, tuple[str, Callable[[Path], Made]]] = {
    "cub200": ("cub200", make_cub200),
    "cars196": ("cars196", make_cars196),
    "cars196, devkit": ("cars196", make_cars196_devkit),
    "sop": ("sop", make_sop),
    "inshop": ("inshop", make_inshop),
    "nabirds": ("nabirds", make_nabirds),
    "dogs": ("dogs", make_dogs),
    "flowers102": ("flowers102", make_flowers102),
    "aircraft": ("aircraft", make_aircraft),
}
"""Every form of every dataset: its source and its maker."""
