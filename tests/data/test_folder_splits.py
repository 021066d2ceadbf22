"""Split folders: their names, their places, and what is refused or noted."""

from __future__ import annotations

from pathlib import Path

import pytest
from folder_trees import found, ignored, make

from unimetric.data.sources import read_sources
from unimetric.data.sources.folder import read_folder, read_images
from unimetric.errors import UserError


def test_split_folders(tmp_path: Path) -> None:
    root = make(
        tmp_path / "r",
        "train/a/1.jpg",
        "valid/b/x/1.jpg",
        "query/c/1.jpg",
        "gallery/c/2.jpg",
        "train/stray.jpg",
    )
    assert found(root) == {
        "r": [
            ("train/a/1.jpg", "a", "train"),
            ("valid/b/x/1.jpg", "b", "validation"),
            ("gallery/c/2.jpg", "c", "gallery"),
            ("query/c/1.jpg", "c", "query"),
        ]
    }
    assert ignored(root) == ["train/stray.jpg"]


def test_split_folders_in_several_datasets(tmp_path: Path) -> None:
    root = make(tmp_path, "birds/train/a/1.jpg", "birds/test/b/1.jpg", "cars/audi/1.jpg", "cars/bmw/1.jpg")
    assert found(root) == {
        "birds": [("birds/train/a/1.jpg", "a", "train"), ("birds/test/b/1.jpg", "b", "test")],
        "cars": [("cars/audi/1.jpg", "audi", None), ("cars/bmw/1.jpg", "bmw", None)],
    }
    assert list(found(make(tmp_path / "all", "birds/train/a/1.jpg", "birds/val/b/1.jpg"))) == ["birds"]


def test_classes_that_are_named_like_splits(tmp_path: Path) -> None:
    """Vehicles and papers: images directly in the folders, or one such name alone, make them classes."""
    root = make(tmp_path / "r", "train/1.jpg", "test/1.jpg", "car/1.jpg")
    assert [label for _, label, _ in found(root)["r"]] == ["car", "test", "train"]
    assert list(found(make(tmp_path / "t", "train/a/1.jpg", "car/a/1.jpg"))) == ["car", "train"]


SPLIT_TREES = {
    "above the classes": ("train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/d/1.jpg"),
    "capitals": ("Train/a/1.jpg", "Train/b/1.jpg", "TEST/c/1.jpg", "TEST/d/1.jpg"),
    "other names": ("training/a/1.jpg", "training/b/1.jpg", "testing/c/1.jpg", "testing/d/1.jpg"),
    "with fillers": ("train_images/a/1.jpg", "train_images/b/1.jpg", "Test Set/c/1.jpg", "Test Set/d/1.jpg"),
    "evaluation": ("train/a/1.jpg", "train/b/1.jpg", "eval/c/1.jpg", "eval/d/1.jpg"),
    "common part": ("r_train/a/1.jpg", "r_train/b/1.jpg", "r_test/c/1.jpg", "r_test/d/1.jpg"),
    "years": ("train2017/a/1.jpg", "train2017/b/1.jpg", "test2017/c/1.jpg", "test2017/d/1.jpg"),
    "numbered": ("01_train/a/1.jpg", "01_train/b/1.jpg", "2-Test/c/1.jpg", "2-Test/d/1.jpg"),
    "of two years": ("train2017/a/1.jpg", "train2017/b/1.jpg", "test2015/c/1.jpg", "test2015/d/1.jpg"),
    "in one word": ("trainset/a/1.jpg", "trainset/b/1.jpg", "TESTDATA/c/1.jpg", "TESTDATA/d/1.jpg"),
    "hold-out": ("Training/a/1.jpg", "Training/b/1.jpg", "Hold-Out/c/1.jpg", "Hold-Out/d/1.jpg"),
    "twice": ("train/train/a/1.jpg", "train/train/b/1.jpg", "test/test/c/1.jpg", "test/test/d/1.jpg"),
    "beside files": ("train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/d/1.jpg", "labels/x.txt", "train.csv"),
}


@pytest.mark.parametrize("names", SPLIT_TREES.values(), ids=SPLIT_TREES.keys())
def test_names_of_split_folders(names: tuple[str, ...], tmp_path: Path) -> None:
    root = make(tmp_path / "r", *names)
    (dataset,) = read_folder(root)
    assert (dataset.name, dataset.notes) == ("r", ())
    assert [(item.label, item.role) for item in dataset.items] == [
        *[("a", "train"), ("b", "train"), ("c", "test"), ("d", "test")],
    ]
    (same,) = read_images(root)
    assert [item.path for item in same.items] == [item.path for item in dataset.items]


def test_validation_query_and_gallery_folders(tmp_path: Path) -> None:
    names = {"validation": ["VAL", "valid", "Validation", "dev"], "query": ["Query", "queries", "probe"]}
    names["gallery"] = ["Gallery", "index"]
    for name, role in [(name, role) for role, found_names in names.items() for name in found_names]:
        items = found(make(tmp_path / name / "r", "Train/a/1.jpg", f"{name}/b/1.jpg"))["r"]
        assert [(label, found_role) for _, label, found_role in items] == [("a", "train"), ("b", role)]


def test_splits_above_datasets(tmp_path: Path) -> None:
    tree = (
        "train/birds/a/1.jpg",
        "train/cars/x/1.jpg",
        "test/birds/b/1.jpg",
        "test/cars/y/z/1.jpg",
        "test/cars/w/1.jpg",
    )
    assert found(make(tmp_path / "r", *tree)) == {
        "birds": [("train/birds/a/1.jpg", "a", "train"), ("test/birds/b/1.jpg", "b", "test")],
        "cars": [
            ("test/cars/w/1.jpg", "w", "test"),
            ("train/cars/x/1.jpg", "x", "train"),
            ("test/cars/y/z/1.jpg", "y", "test"),
        ],
    }
    assert list(found(tmp_path / "r", "mine")) == ["mine/birds", "mine/cars"]
    # As detectors keep their images, beside folders of labels.
    root = make(
        tmp_path / "d", "train/images/a/1.jpg", "train/labels/1.txt", "test/images/b/1.jpg", "test/labels/1.txt"
    )
    assert {name: [role for *_, role in items] for name, items in found(root).items()} == {"d": ["train", "test"]}
    root = make(tmp_path / "e", "images/train/a/1.jpg", "images/test/b/1.jpg", "labels/train/1.txt")
    assert {name: [role for *_, role in items] for name, items in found(root).items()} == {"e": ["train", "test"]}


def test_splits_within_classes(tmp_path: Path) -> None:
    tree = ("a/Train/1.jpg", "a/Test/2.jpg", "b/Train/1.jpg", "b/Test/2.jpg", "b/Test/notes.txt")
    expected = [("a/Test/2.jpg", "a", "test"), ("a/Train/1.jpg", "a", "train")]
    expected += [("b/Test/2.jpg", "b", "test"), ("b/Train/1.jpg", "b", "train")]
    assert found(make(tmp_path / "r", *tree)) == {"r": expected}
    assert ignored(tmp_path / "r") == []
    several = make(tmp_path / "s", *(f"x/{name}" for name in tree), "y/c/1.jpg")
    assert found(several) == {
        "x": [(f"x/{path}", label, role) for path, label, role in expected],
        "y": [("y/c/1.jpg", "c", None)],
    }


def test_datasets_with_a_split_in_their_names(tmp_path: Path) -> None:
    root = make(tmp_path, "cars_train/a/1.jpg", "cars_test/b/1.jpg", "birds-train/c/1.jpg", "birds-test/d/1.jpg")
    assert found(root) == {
        "birds": [("birds-train/c/1.jpg", "c", "train"), ("birds-test/d/1.jpg", "d", "test")],
        "cars": [("cars_train/a/1.jpg", "a", "train"), ("cars_test/b/1.jpg", "b", "test")],
    }


def test_a_dataset_with_one_side_beside_one_with_both(tmp_path: Path) -> None:
    root = make(tmp_path, "birds/train/a/1.jpg", "birds/test/b/1.jpg", "cars/test/x/1.jpg", "cars/test/y/1.jpg")
    assert [(label, role) for _, label, role in found(root)["cars"]] == [("x", "test"), ("y", "test")]


def test_splits_that_are_given_as_sources_are_noted(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/d/1.jpg")
    notes = [
        note for dataset in read_sources([str(tmp_path / "train"), str(tmp_path / "test")]) for note in dataset.notes
    ]
    assert len(notes) == 1
    assert notes[0].startswith("datasets 'train' and 'test' are named as a split")


def test_a_dataset_with_one_side_in_its_name_beside_one_with_both(tmp_path: Path) -> None:
    items = found(make(tmp_path, "cars_train/a/1.jpg", "cars_test/b/1.jpg", "birds_test/c/1.jpg", "birds_test/d/1.jpg"))
    assert [(label, role) for _, label, role in items["birds"]] == [("c", "test"), ("d", "test")]
    assert [(label, role) for _, label, role in items["cars"]] == [("a", "train"), ("b", "test")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/a/1.jpg", "test/b/1.jpg", "extra/c/1.jpg"],
            r"split folders \(test, train\) beside 'extra'; move",
        ),
        (
            ["1_train/a/1.jpg", "2_test/b/1.jpg", "3_extra/c/1.jpg"],
            r"split folders \(1_train, 2_test\) beside '3_extra'; move",
        ),
        (["1_train/1.jpg", "2_test/1.jpg"], r"split folder .*1_train holds images but no class folders; .* or rename"),
        (
            ["train/a/1.jpg", "test/1.jpg"],
            r"split folder .*test holds images but no class folders; put each class",
        ),
        (["train/1.jpg", "test/1.jpg"], r"split folder .*test holds images but no class folders; .* or rename"),
        (["x/train/a/1.jpg", "x/test/b/1.jpg", "y/test/1.jpg"], r"split folder .*y/test holds images but no class"),
        # COCO, Market-1501, Tiny ImageNet, Roboflow's exports, iNaturalist 2021
        (["train2017/1.jpg", "val2017/1.jpg"], r"split folder .*train2017 holds images but no class folders"),
        (["images/train2017/1.jpg", "images/val2017/1.jpg"], r"split folder .*train2017 holds images but no class"),
        (
            ["bounding_box_train/1.jpg", "bounding_box_test/1.jpg", "query/1.jpg", "gt_bbox/1.jpg"],
            r"split folder .*bounding_box_test holds images but no class folders",
        ),
        (
            ["train/n01/images/1.jpg", "train/n02/images/1.jpg", "val/images/1.jpg"],
            r"split folder .*val holds all images in 'images', not in class folders; put each class",
        ),
        (["train/images/1.jpg", "valid/images/1.jpg"], r"split folder .*train holds all images in 'images'"),
        (["train_mini/a/1.jpg", "val/a/1.jpg"], r"which split folders in .* belong together: train_mini, val; rename"),
        (["train/a/1.jpg", "test/b/1.jpg", "test_extra/b/1.jpg"], r"belong together: test, test_extra, train; rename"),
    ],
)
def test_what_may_be_splits_or_classes_is_refused(names: list[str], message: str, tmp_path: Path) -> None:
    root = make(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        read_folder(root)
    assert sum(len(dataset.items) for dataset in read_images(root)) == len(names)
