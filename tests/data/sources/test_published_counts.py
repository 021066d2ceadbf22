"""The published counts, from the authors' own annotation files where they are at hand, else from files as long."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from benchmark_fixtures import (
    ANNOTATIONS,
    Expected,
    cells,
    inshop_lines,
    needs_annotations,
    structs,
    touch,
    write,
    write_dogs,
)
from scipy.io import loadmat, savemat

from unimetric.data.catalog import Dataset
from unimetric.data.sources import read_source
from unimetric.data.sources.benchmarks import read_benchmark
from unimetric.errors import UserError

IMAGES = {"cub200": "images", "nabirds": "images", "flowers102": "jpg", "aircraft": "images"}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("annotations")
    with tarfile.open(ANNOTATIONS) as archive:
        archive.extractall(root)
    return root


def counts(dataset: Dataset) -> dict[str | None, tuple[int, int]]:
    """Images and classes of every role."""
    roles = dict.fromkeys(item.role for item in dataset.items)
    return {
        role: (
            sum(item.role == role for item in dataset.items),
            len({item.label for item in dataset.items if item.role == role}),
        )
        for role in roles
    }


def read_all(source: str, folder: Path) -> Dataset:
    [dataset] = read_benchmark(source, folder, require_images=False)
    return dataset


@needs_annotations
@pytest.mark.parametrize(
    ("source", "train", "test", "first", "last"),
    [
        ("cub200", (5_864, 100), (5_924, 100), "Black footed Albatross", "Common Yellowthroat"),
        pytest.param(
            *("nabirds", (22_909, 278), (25_653, 277), "Oak Titmouse", "Black-throated Gray Warbler"),
            marks=pytest.mark.soak,
        ),
        ("flowers102", (3_493, 51), (4_696, 51), "77", "62"),
        ("aircraft", (5_000, 50), (5_000, 50), "707-320", "Yak-42"),
    ],
)
def test_real_annotations(
    source: str, train: tuple[int, int], test: tuple[int, int], first: str, last: str, real: Path
) -> None:
    folder = real / source
    (folder / IMAGES[source]).mkdir(exist_ok=True)
    touch(item.path for item in read_all(source, folder).items)
    [dataset] = read_source(str(folder))
    assert counts(dataset) == {"train": train, "test": test}
    assert len(dataset.labels) == train[1] + test[1]
    assert dataset.notes == ()
    assert (dataset.items[0].label, dataset.items[-1].label) == (first, last)


@needs_annotations
def test_real_cars196_without_the_labels_of_its_test_images(real: Path) -> None:
    with pytest.raises(UserError, match=r"cars_test_annos.mat has no labels; put cars_test_annos_withlabels.mat in"):
        read_source(str(real / "cars196"))


@needs_annotations
def test_real_cars196_completed(real: Path, tmp_path: Path) -> None:
    """The authors' train file, and as many test images as there are, of classes that make up the published counts."""
    content = loadmat(real / "cars196/cars_train_annos.mat")["annotations"][0]
    learned = sum(int(row["class"][0, 0]) <= 98 for row in content)
    numbers = [1] * (8_054 - learned) + list(range(99, 197))
    numbers += [99] * (8_041 - len(numbers))
    folder = tmp_path / "cars"
    (folder / "cars_train").mkdir(parents=True)
    (folder / "cars_test").mkdir()
    for name in ("cars_meta.mat", "cars_train_annos.mat"):
        (folder / name).write_bytes((real / "cars196" / name).read_bytes())
    rows = [{"class": number, "fname": f"{i:05d}.jpg"} for i, number in enumerate(numbers, start=1)]
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": structs(rows)})
    dataset = read_all("cars196", folder)
    assert counts(dataset) == {"train": (8_054, 98), "test": (8_131, 98)}
    assert dataset.notes == ()
    assert dataset.items[0].label == "Audi TTS Coupe 2012"
    assert len(dataset.labels) == 196


def spread(images: int, classes: int) -> list[int]:
    """A class, from 0, for every image."""
    return [position * classes // images for position in range(images)]


def make_full_sop(folder: Path) -> str:
    image = 0
    for role, images, classes, offset in (("train", 59_551, 11_318, 1), ("test", 60_502, 11_316, 11_319)):
        lines = ["image_id class_id super_class_id path"]
        for number in spread(images, classes):
            image += 1
            lines.append(f"{image} {number + offset} 1 bicycle_final/{image}_0.JPG")
        write(folder / f"Ebay_{role}.txt", lines)
    return "Ebay_test.txt"


def make_full_inshop(folder: Path) -> str:
    (folder / "img").mkdir(parents=True)
    expected: Expected = []
    for role, images, classes, offset in (
        ("train", 25_882, 3_997, 0),
        ("query", 14_218, 3_985, 4_000),
        ("gallery", 12_612, 3_985, 4_000),
    ):
        expected += [
            (f"img/MEN/Denim/{role}_{image}.jpg", f"id_{number + offset:08d}", role)
            for image, number in enumerate(spread(images, classes))
        ]
    write(folder / "list_eval_partition.txt", inshop_lines(expected))
    return "list_eval_partition.txt"


def make_full_dogs(folder: Path, missing: int = 0) -> str:
    (folder / "Images").mkdir(parents=True)
    numbers = [number + 1 for number in spread(20_580, 120)][missing:]
    write_dogs(folder / "file_list.mat", [f"n{n:08d}-Breed_{n}/{i}.jpg" for i, n in enumerate(numbers)], numbers)
    return "file_list.mat"


def make_full_cars196(folder: Path) -> str:
    (folder / "car_ims").mkdir(parents=True)
    numbers = [n + 1 for n in spread(8_054, 98)] + [n + 99 for n in spread(8_131, 98)]
    rows = [{"relative_im_path": f"car_ims/{i:06d}.jpg", "class": n} for i, n in enumerate(numbers, start=1)]
    names = cells([f"Car {n}" for n in range(1, 197)])
    savemat(folder / "cars_annos.mat", {"annotations": structs(rows), "class_names": names})
    return "cars_annos.mat"


@pytest.mark.parametrize(
    ("source", "make", "wanted"),
    [
        ("sop", make_full_sop, {"train": (59_551, 11_318), "test": (60_502, 11_316)}),
        (
            "inshop",
            make_full_inshop,
            {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)},
        ),
        ("dogs", make_full_dogs, {"train": (10_290, 60), "test": (10_290, 60)}),
        ("cars196", make_full_cars196, {"train": (8_054, 98), "test": (8_131, 98)}),
    ],
)
def test_files_of_full_length(source, make, wanted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "data"
    make(folder)
    dataset = read_all(source, folder)
    assert counts(dataset) == wanted
    assert dataset.notes == ()


def test_one_image_less_is_noted(tmp_path: Path) -> None:
    make_full_dogs(tmp_path, missing=1)
    assert read_all("dogs", tmp_path).notes == (
        "dataset 'dogs' differs from Stanford Dogs as published: 20579 images, not 20580",
    )
