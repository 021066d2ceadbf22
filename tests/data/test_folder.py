from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from folder_trees import found, ignored, make, unusable

from unimetric.data.sources import read_sources
from unimetric.data.sources.folder import read_folder, read_images
from unimetric.errors import UserError


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
    assert ignored(root) == ["x.jpg"]


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
    assert ignored(root) == []


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
        (
            [f"fold{fold}/{label}/1.jpg" for fold in range(5) for label in "ab"],
            "the datasets 'fold0' and 'fold1' and 'fold2' and others have classes of the same names",
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


def test_numbers_of_classes_are_no_names(tmp_path: Path) -> None:
    root = make(tmp_path / "r", *(f"{name}/{label}/1.jpg" for name in ("mnist", "svhn") for label in range(3)))
    assert [note for dataset in read_sources([str(root)]) for note in dataset.notes] == []


def test_a_class_called_image_among_others_is_not_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "icons", "image/1.jpg", "mail/1.jpg", "menu/1.jpg")
    assert [note for dataset in read_sources([str(root)]) for note in dataset.notes] == []


def test_one_class_of_folders_that_differ_in_form_only(tmp_path: Path) -> None:
    root = make(tmp_path / "r", "e\u0301/2.jpg", "\u00e9/1.jpg", "f/1.jpg", "\u00a0f/2.jpg")
    (dataset,) = read_folder(root)
    assert [item.label for item in dataset.items] == ["f", "f", "\u00e9", "\u00e9"]
    assert len({item.path for item in dataset.items}) == 4


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
    assert ignored(root) == ["cover.jpg"]


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
    assert ignored(root) == []
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
    root = make(tmp_path / "office", "amazon/2010/bike/1.jpg", "amazon/2010/mug/2.jpg", "dslr/2010/mug/3.jpg")
    (dataset,) = read_folder(root)
    assert dataset.labels == ("amazon", "dslr")
    (note,) = dataset.notes
    assert note == (
        f"dataset 'office': all images in {root}/amazon/2010 are of the class 'amazon'; "
        "if the 2 folders in it are the classes, name it as a source"
    )
    make(root, "dslr/4.jpg")
    assert read_folder(root)[0].notes == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Food-101, Office-31, archives that were unpacked into folders of their names
        (["images/a/1.jpg", "images/b/2.jpg", "meta/train.txt"], {"r": "ab"}),
        (["x/images/a/1.jpg", "x/images/b/2.jpg", "y/Images/a/3.jpg"], {"x": "ab", "y": "a"}),
        (["r/r/a/1.jpg", "r/r/b/2.jpg"], {"r": "ab"}),
        (["images/x/a/1.jpg", "images/y/b/2.jpg"], {"x": "a", "y": "b"}),
        (["images/1.jpg", "b/2.jpg"], {"r": ["b", "images"]}),
        (["x/images/1.jpg", "y/images/2.jpg"], {"x": ["images"], "y": ["images"]}),
    ],
)
def test_a_folder_of_all_images_is_no_class(names: list[str], expected: dict[str, object], tmp_path: Path) -> None:
    read = read_folder(make(tmp_path / "r", *names))
    assert {dataset.name: dataset.labels for dataset in read} == {
        name: tuple(found) for name, found in expected.items()
    }
