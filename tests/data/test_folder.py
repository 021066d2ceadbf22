from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from unimetric.data.sources import read_sources
from unimetric.data.sources.folder import read_folder, read_images
from unimetric.errors import UserError


def make(root: Path, *names: str) -> Path:
    """Create files below ``root`` in a scrambled order; a trailing slash makes a folder."""
    for name in random.Random(0).sample(names, len(names)):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def found(root: Path, name: str | None = None) -> dict[str, list[tuple[str, str, str | None]]]:
    return {
        dataset.name: [(item.path.relative_to(root).as_posix(), item.label, item.role) for item in dataset.items]
        for dataset in read_folder(root, name)
    }


def ignored(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for dataset in read_folder(root) for path in dataset.ignored]


def unusable(root: Path) -> dict[str, str]:
    return {e.path.relative_to(root).as_posix(): e.reason for dataset in read_folder(root) for e in dataset.unusable}


def test_one_dataset(tmp_path: Path) -> None:
    root = make(
        tmp_path / "birds",
        "wren/b.JPG",
        "wren/a.png",
        "wren/deep/er/c.webp",
        "Auk/1.jpeg",
        "9/10.jpg",
        "9/9.jpg",
    )
    expected = [
        ("9/10.jpg", "9", None),
        ("9/9.jpg", "9", None),
        ("Auk/1.jpeg", "Auk", None),
        ("wren/a.png", "wren", None),
        ("wren/b.JPG", "wren", None),
        ("wren/deep/er/c.webp", "wren", None),
    ]
    assert found(root) == {"birds": expected}
    assert found(root, "mine") == {"mine": expected}
    assert {item.dataset for item in read_folder(root, "mine")[0].items} == {"mine"}


def test_the_name_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path / "birds", "wren/a.jpg", "auk/a.jpg"))
    (dataset,) = read_folder(Path())
    assert dataset.name == "birds"
    assert dataset.items[0].path == Path("auk/a.jpg")


def test_several_datasets(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "cars/audi/1.jpg",
        "cars/bmw/x/1.jpg",
        "birds/wren/1.jpg",
        "empty/",
        "notes/readme.txt",
        "x.jpg",
    )
    assert found(root) == {
        "birds": [("birds/wren/1.jpg", "wren", None)],
        "cars": [("cars/audi/1.jpg", "audi", None), ("cars/bmw/x/1.jpg", "bmw", None)],
    }
    assert list(found(root, "mine")) == ["mine/birds", "mine/cars"]
    assert {item.dataset for dataset in read_folder(root, "mine") for item in dataset.items} == {
        "mine/birds",
        "mine/cars",
    }
    assert ignored(root) == ["notes/readme.txt", "x.jpg"]


def test_one_image_directly_in_a_child_makes_the_children_classes(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "cars/audi/1.jpg", "cars/2.jpg", "birds/wren/1.jpg")
    assert found(root) == {
        "r": [
            ("birds/wren/1.jpg", "birds", None),
            ("cars/2.jpg", "cars", None),
            ("cars/audi/1.jpg", "cars", None),
        ]
    }


def catalogues(root: Path, *more: str) -> Path:
    names = [f"{kind}/{label}/{n}.png" for kind in ("shoes", "lamps") for label in "abcd" for n in range(2)]
    return make(root, *names, *more)


@pytest.mark.parametrize("cover", ["cover.png", "cover.jp2"])
def test_a_stray_image_does_not_turn_datasets_into_classes(cover: str, tmp_path: Path) -> None:
    assert list(found(catalogues(tmp_path / "clean"))) == ["lamps", "shoes"]
    for name in (f"shoes/{cover}", f"misc/{cover}"):
        root = catalogues(tmp_path / Path(name).parent.name, name)
        with pytest.raises(UserError, match=rf"datasets or classes: .*/{name} lies .*; move it into a class") as caught:
            read_folder(root)
        assert "\n" not in str(caught.value)
        assert {item.dataset for dataset in read_images(root) for item in dataset.items} == {root.name}
    root = make(tmp_path / "splits", "x/train/a/1.jpg", "x/test/b/1.jpg", "x/test/c/1.jpg", "x/cover.jpg")
    with pytest.raises(UserError, match=r"x/cover.jpg lies beside folders"):
        read_folder(root)


def test_classes_with_some_images_in_sub_folders_are_classes(tmp_path: Path) -> None:
    root = make(
        tmp_path / "one", "cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "cat/young/4.jpg", "cat/old/5.jpg", "dog/1.jpg"
    )
    assert {label for _, label, _ in found(root)["one"]} == {"cat", "dog"}
    root = make(tmp_path / "two", "cat/1.jpg", "cat/2.jpg", "dog/young/1.jpg", "dog/old/2.jpg")
    assert {label for _, label, _ in found(root)["two"]} == {"cat", "dog"}


def test_images_of_unsupported_formats_are_items(tmp_path: Path) -> None:
    """So that decoding names and counts them, as any file that cannot be read."""
    root = make(tmp_path / "r", "a/1.jpg", "a/2.HEIC", "b/3.dng", "b/notes.txt")
    assert found(root) == {"r": [("a/1.jpg", "a", None), ("a/2.HEIC", "a", None), ("b/3.dng", "b", None)]}
    assert ignored(root) == ["b/notes.txt"]


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
    "in one word": ("trainset/a/1.jpg", "trainset/b/1.jpg", "TESTDATA/c/1.jpg", "TESTDATA/d/1.jpg"),
    "hold-out": ("Training/a/1.jpg", "Training/b/1.jpg", "Hold-Out/c/1.jpg", "Hold-Out/d/1.jpg"),
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
    assert {name: [role for *_, role in items] for name, items in found(root).items()} == {"images": ["train", "test"]}
    root = make(tmp_path / "e", "images/train/a/1.jpg", "images/test/b/1.jpg", "labels/train/1.txt")
    assert {name: [role for *_, role in items] for name, items in found(root).items()} == {"images": ["train", "test"]}


def test_splits_within_classes(tmp_path: Path) -> None:
    tree = ("a/Train/1.jpg", "a/Test/2.jpg", "b/Train/1.jpg", "b/Test/2.jpg", "b/Test/notes.txt")
    expected = [("a/Test/2.jpg", "a", "test"), ("a/Train/1.jpg", "a", "train")]
    expected += [("b/Test/2.jpg", "b", "test"), ("b/Train/1.jpg", "b", "train")]
    assert found(make(tmp_path / "r", *tree)) == {"r": expected}
    assert ignored(tmp_path / "r") == ["b/Test/notes.txt"]
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


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.jpg", "car/a/1.jpg"], "dataset 'train' is named as a split but divided by classes; to keep the"),
        (
            ["shoes_train/a/1.jpg", "shoes_test/b/1.jpg", "car/a/1.jpg"],
            "datasets 'shoes_test' and 'shoes_train' are named as a split but divided by classes",
        ),
        (
            ["train/1.jpg", "test/1.jpg", "car/1.jpg"],
            "dataset 'r': 'test' and 'train' are read as classes, not as splits",
        ),
        (["Birds/a/1.jpg", "birds/b/1.jpg"], "the datasets 'Birds' and 'birds' have nearly the same name"),
        (
            ["x/Wren/1.jpg", "x/wren/1.jpg", "x/tit/2.jpg"],
            "dataset 'x': 'Wren' and 'wren': classes with nearly the same",
        ),
        (["wren/1.jpg", "wren /2.jpg", "tit/2.jpg"], "dataset 'r': 'wren' and 'wren ': one class each"),
        (
            ["JPEGImages/1.jpg", "masks/1.jpg", "tit/1.jpg"],
            "dataset 'r': the class 'JPEGImages' is named as a folder of",
        ),
        (["\u00e9/1.jpg", "e\u0301/2.jpg", "tit/2.jpg"], r"dataset 'r': 'e\u0301' and '\xe9': one class each"),
    ],
)
def test_doubtful_names_are_noted(names: list[str], message: str, tmp_path: Path) -> None:
    root = make(tmp_path / "r", *names)
    notes = [note for dataset in read_sources([str(root)]) for note in dataset.notes]
    assert len(notes) == 1
    assert notes[0].startswith(message)


def test_a_class_called_image_among_others_is_not_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "icons", "image/1.jpg", "mail/1.jpg", "menu/1.jpg")
    assert [note for dataset in read_sources([str(root)]) for note in dataset.notes] == []


def test_splits_that_are_given_as_sources_are_noted(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/d/1.jpg")
    notes = [
        note for dataset in read_sources([str(tmp_path / "train"), str(tmp_path / "test")]) for note in dataset.notes
    ]
    assert len(notes) == 1
    assert notes[0].startswith("datasets 'train' and 'test' are named as a split")


def test_one_class_of_folders_that_differ_in_form_only(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "e\u0301/2.jpg", "\u00e9/1.jpg", "f/1.jpg", "\u00a0f/2.jpg")
    (dataset,) = read_folder(root)
    assert [item.label for item in dataset.items] == ["f", "f", "\u00e9", "\u00e9"]
    assert len({item.path for item in dataset.items}) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/a/1.jpg", "test/b/1.jpg", "extra/c/1.jpg"],
            r"split folders \(test, train\) beside 'extra'; move",
        ),
        (
            ["train/a/1.jpg", "test/1.jpg"],
            r"split folder .*test holds images but no class folders; put each class",
        ),
        (["train/1.jpg", "test/1.jpg"], r"split folder .*test holds images but no class folders; .* or rename"),
        (["x/train/a/1.jpg", "x/test/b/1.jpg", "y/test/1.jpg"], r"split folder .*y/test holds images but no class"),
    ],
)
def test_what_may_be_splits_or_classes_is_refused(names: list[str], message: str, tmp_path: Path) -> None:
    root = make(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        read_folder(root)
    assert sum(len(dataset.items) for dataset in read_images(root)) == len(names)


def test_clutter_is_skipped_and_strays_are_recorded(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        *(
            "a/1.jpg",
            "b/1.jpg",
            "a/.DS_Store",
            "a/._1.jpg",
            ".git/x/1.jpg",
            "__MACOSX/a/1.jpg",
            "a/Thumbs.db",
        ),
        *("cover.jpg", "labels.csv", "a/notes.txt", "c/readme.md", "a/.jpg"),
    )
    assert [name for items in found(root).values() for name, *_ in items] == ["a/1.jpg", "b/1.jpg"]
    assert ignored(root) == ["a/notes.txt", "c/readme.md", "cover.jpg", "labels.csv"]


def test_names_of_any_characters(tmp_path: Path) -> None:
    root = make(
        tmp_path / "r",
        "Zaunkönig/ü.jpg",
        "鳥/一.png",
        "two\nlines/a\nb.jpg",
        "  spaces /'q\".jpg",
        "🦉/x.jpg",
    )
    assert [label for _, label, _ in found(root)["r"]] == ["Zaunkönig", "spaces", "two\nlines", "鳥", "🦉"]


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="file names are text here")
def test_names_that_are_not_text_are_passed_over_and_named(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "a/1.jpg", "a/größe.jpg", "b/2.jpg")
    (root / "a" / os.fsdecode(b"\xff.jpg")).touch()
    (root / "b" / os.fsdecode(b"link\xff.jpg")).symlink_to("2.jpg")
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    (root / os.fsdecode(b"caf\xe9") / "3.jpg").touch()
    assert [place for place, *_ in found(root)["r"]] == ["a/1.jpg", "a/größe.jpg", "b/2.jpg"]
    assert unusable(root) == {
        r"caf\udce9": "its name is not valid UTF-8; rename it",
        r"a/\udcff.jpg": "its name is not valid UTF-8; rename it",
        r"b/link\udcff.jpg": "its name is not valid UTF-8; rename it",
    }
    assert ignored(root) == []
    with pytest.raises(UserError, match=r"the name of the folder .*udce9 is not valid UTF-8"):
        read_images(root / os.fsdecode(b"caf\xe9"))


@pytest.mark.skipif(os.name != "posix", reason="there are no such files here")
@pytest.mark.timeout(60)
def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "r", "a/1.jpg", "b/2.jpg", "b/text.txt")
    os.mkfifo(root / "a" / "pipe.jpg")
    os.mkfifo(root / "a" / ".hidden.jpg")
    monkeypatch.chdir(root / "a")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    for name, target in {
        "b/zeros.jpg": "/dev/zero",
        "b/pipe.png": "../a/pipe.jpg",
        "b/nothing.jpg": "absent.jpg",
        "b/below": "2.jpg/deeper",
        "b/self": "self",
        "b/up": "..",
        "b/text.jpg": "text.txt",
        "again": "b/self",
    }.items():
        (root / name).symlink_to(target)
    reasons = {
        "a/pipe.jpg": "a pipe, not a file",
        "a/socket": "a socket, not a file",
        "b/zeros.jpg": "a device, not a file",
        "b/pipe.png": "a pipe, not a file",
        "b/nothing.jpg": "a link to nothing",
        "b/below": "a link to nothing",
        "b/self": "a link that leads back to itself",
        "b/up": "a link that leads back to a folder it lies in",
        "again": "a link that leads back to itself",
    }
    assert unusable(root) == reasons
    assert ignored(root) == ["b/text.txt"]
    (dataset,) = read_images(root)
    assert {str(entry.path.relative_to(root)): entry.reason for entry in dataset.unusable} == reasons


@pytest.mark.skipif(os.name != "posix", reason="there are no such files here")
def test_with_several_datasets_each_names_its_own(tmp_path: Path) -> None:
    root = make(tmp_path, "x/a/1.jpg", "x/b/1.jpg", "y/c/1.jpg", "y/d/1.jpg", "z/text.txt")
    for name in ("x/nothing", "y/c/nothing", "z/nothing", "nothing"):
        (root / name).symlink_to("absent")
    for read in (read_folder, read_images):
        assert {d.name: [str(entry.path.relative_to(root)) for entry in d.unusable] for d in read(root)} == {
            "x": ["nothing", "z/nothing", "x/nothing"],
            "y": ["y/c/nothing"],
        }


@pytest.mark.skipif(os.name != "posix", reason="there are no such files here")
def test_a_folder_of_nothing_else_says_so(tmp_path: Path) -> None:
    (tmp_path / "pipe.jpg").symlink_to("absent.jpg")
    with pytest.raises(UserError, match=r"found no files at all and .*pipe.jpg, a link to nothing; looked"):
        read_folder(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    store = make(tmp_path / "store", "wren/1.jpg", "wren/deep/2.jpg")
    root = make(tmp_path / "r", "auk/1.jpg")
    (root / "wren").symlink_to(store / "wren")
    (root / "auk" / "up").symlink_to(root)
    (store / "wren" / "deep" / "again").symlink_to(store / "wren")
    (root / "auk" / "self").symlink_to("self")
    (root / "auk" / "broken.jpg").symlink_to("nowhere.jpg")
    assert found(root) == {
        "r": [("auk/1.jpg", "auk", None), ("wren/1.jpg", "wren", None), ("wren/deep/2.jpg", "wren", None)]
    }
    assert ignored(root) == []
    assert list(unusable(root)) == ["auk/broken.jpg", "auk/self", "auk/up", "wren/deep/again"]


def test_an_image_reached_twice(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "a/2.jpg", "b/1.jpg")
    (root / "a" / "1.jpg").symlink_to("2.jpg")
    assert found(root) == {"r": [("a/1.jpg", "a", None), ("b/1.jpg", "b", None)]}
    assert ignored(root) == ["a/2.jpg"]
    (root / "b" / "again").symlink_to(root / "a")
    with pytest.raises(UserError, match=r"dataset 'r'.*the same file as .*labels 'a' and 'b'; keep one"):
        read_folder(root)


def test_two_datasets_may_share_an_image(tmp_path: Path) -> None:
    root = make(tmp_path, "x/a/1.jpg", "y/b/2.jpg")
    (root / "y" / "a").symlink_to(root / "x" / "a")
    assert [len(items) for items in found(root).values()] == [1, 2]


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*absent; check the path"):
        read_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"there is no folder"):
        read_folder(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match=r"a.jpg is a file, not a folder; give"):
        read_folder(make(tmp_path, "a.jpg") / "a.jpg")


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images in .*: found no files at all; looked for .*gif.*jpg"):
        read_folder(make(tmp_path, "a/", "b/"))
    make(tmp_path, "a/x.tga", "a/y.TGA", "b/z.txt", "LICENSE")
    with pytest.raises(UserError, match=r"found 4 other files \(2 .tga, 1 .*\)") as caught:
        read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_without_class_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 2 images but no class folders; put each class in a folder"):
        read_folder(make(tmp_path, "1.jpg", "2.jpg", "notes/x.txt"))


def test_unreadable_folder(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.jpg", "b/1.jpg")
    (root / "b").chmod(0)
    try:
        if os.access(root / "b", os.R_OK):
            pytest.skip("this user, root, may read everything")
        with pytest.raises(UserError, match=r"cannot read the folder .*b: Permission denied; make it readable"):
            read_folder(root)
        with pytest.raises(UserError, match=r"cannot read the folder .*b.deeper: no permission"):
            read_folder(root / "b" / "deeper")
    finally:
        (root / "b").chmod(0o700)


def test_images_two_folders_below_every_class_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "office", "amazon/images/bike/1.jpg", "amazon/images/mug/2.jpg", "dslr/images/mug/3.jpg")
    (dataset,) = read_folder(root)
    assert dataset.labels == ("amazon", "dslr")
    (note,) = dataset.notes
    assert note == (
        f"dataset 'office': all images in {root}/amazon/images are of the class 'amazon'; "
        "if the 2 folders in it are the classes, name it as a source"
    )
    make(root, "dslr/4.jpg")
    assert read_folder(root)[0].notes == ()
