"""Checks of every benchmark dataset in every form."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from benchmark_fixtures import MAKERS, Made, make_cars196_devkit, touch
from scipy.io import savemat

from unimetric.data.catalog import Dataset
from unimetric.data.selection import select_train
from unimetric.data.sources import SOURCES, read_source
from unimetric.data.sources.benchmarks import BENCHMARKS, read_benchmark
from unimetric.data.sources.benchmarks.listing import absent_images
from unimetric.data.sources.benchmarks.published import PUBLISHED, count_differences
from unimetric.data.splits import split_datasets
from unimetric.errors import UserError

TEXT_FILES = [(form, file) for form, files in {
    "cub200": ("images.txt", "image_class_labels.txt", "classes.txt"),
    "sop": ("Ebay_train.txt", "Ebay_test.txt"),
    "inshop": ("list_eval_partition.txt",),
    "nabirds": ("images.txt", "image_class_labels.txt", "classes.txt"),
    "aircraft": ("data/images_variant_trainval.txt", "data/images_variant_test.txt", "data/variants.txt"),
}.items() for file in files]  # fmt: skip
PATH_FILES = ("images.txt", "Ebay_train.txt", "Ebay_test.txt", "list_eval_partition.txt")
MAT_FILES = [(form, file) for form, files in {
    "cars196": ("cars_annos.mat",),
    "cars196, devkit": ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"),
    "dogs": ("file_list.mat",),
    "flowers102": ("imagelabels.mat", "setid.mat"),
}.items() for file in files]  # fmt: skip


@pytest.fixture(params=MAKERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(form: str, root: Path) -> tuple[str, Made]:
    source, maker = MAKERS[form]
    return source, maker(root)


def refusal(text: str) -> str:
    """The message of the error that a source string ends in: one line."""
    with pytest.raises(UserError) as error:
        read_source(text)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def only(text: str) -> Dataset:
    [dataset] = read_source(text)
    return dataset


def test_every_dataset_has_a_reader_and_published_counts_under_the_same_name() -> None:
    assert set(BENCHMARKS) == set(PUBLISHED) == {source for source, _ in MAKERS.values()}
    assert set(BENCHMARKS) <= set(SOURCES)
    for published in PUBLISHED.values():
        assert not published.images or sum(published.images.values()) == published.all_images


def test_items_are_as_listed(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    dataset = only(f"{source}:{made.folder}")
    assert dataset.name == source
    read = [(item.path.relative_to(made.folder).as_posix(), item.label, item.role) for item in dataset.items]
    assert read == made.expected
    assert {item.dataset for item in dataset.items} == {source}
    assert dataset.ignored == ()


def test_the_format_follows_from_the_folder(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    assert only(str(made.folder)) == only(f"{source}:{made.folder}")
    assert only(f"mine={made.folder}").name == only(f"mine={source}:{made.folder}").name == "mine"
    assert {item.dataset for item in only(f"mine={made.folder}").items} == {"mine"}
    if form == "cars196, devkit":  # its folders of images are named as splits
        with pytest.raises(UserError, match="holds images but no class folders"):
            read_source(f"folder:{made.folder}")
        return
    # Said in so many words, it is a folder of class folders.
    assert all(item.role is None for dataset in read_source(f"folder:{made.folder}") for item in dataset.items)


def test_the_split_keeps_classes_apart(form: str, tmp_path: Path) -> None:
    _, made = make(form, tmp_path)
    split = split_datasets(read_source(str(made.folder)))
    learned = {item.label for item in split.train}
    assert learned.isdisjoint(item.label for item in (*split.query, *split.gallery))
    assert len(split.train) == sum(role == "train" for _, _, role in made.expected)


def test_a_difference_from_the_published_counts_is_noted(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    dataset = only(str(made.folder))
    notes = [note for note in dataset.notes if "as published" in note]
    assert len(notes) == 1
    assert PUBLISHED[source].title in notes[0]
    for difference in count_differences(source, dataset.items):
        assert difference in notes[0]
    assert f"{len(made.expected)} images, not 20580" in notes[0] or source != "dogs"


def test_absent_images_are_counted_and_the_first_is_named(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    gone = [made.folder / path for path, _, _ in made.expected[-2:]]
    for path in gone:
        path.unlink()
    gone[1].mkdir()
    message = refusal(str(made.folder))
    assert f"2 of the {len(made.expected)} images" in message
    assert str(gone[0]) in message
    [dataset] = read_benchmark(source, made.folder, require_images=False)
    assert absent_images(dataset.items) == gone


def test_without_any_images_the_message_says_what_to_download(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    shutil.rmtree(made.folder / made.images)
    message = refusal(str(made.folder))
    assert made.images.split("/")[-1] in message
    assert PUBLISHED[source].home in message
    assert PUBLISHED[source].download[0] in message


def test_one_level_too_high(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    assert f"one level too high for {PUBLISHED[source].title}" in refusal(f"{source}:{tmp_path}")
    assert f"it lies in {made.folder}; give that folder" in refusal(f"{source}:{tmp_path}")
    # Without the format, the folder above would be read as one of class folders.
    message = refusal(str(tmp_path))
    assert f"one level too high for {PUBLISHED[source].title}" in message
    assert f"{source}:{made.folder}" in message


def test_too_low(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    message = refusal(f"{source}:{made.folder / made.images}")
    assert "too low" in message
    assert f"in {(made.folder / made.images).parent}; give that folder" in message or f"in {made.folder};" in message
    # Without the format, a folder of class folders among the dataset's would be read as one.
    for low in (made.folder / made.images, (made.folder / made.expected[0][0]).parent):
        message = refusal(str(low))
        assert f"{low} is too low for {PUBLISHED[source].title}" in message
        assert f"give {source}:{made.folder}" in message
        assert f"or folder:{low}" in message


def test_too_high_whatever_the_folder_is_called(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    renamed = made.folder.rename(tmp_path / "of our own")
    assert f"{tmp_path} is one level too high" in refusal(str(tmp_path))
    assert f"give {source}:{renamed}" in refusal(str(tmp_path))
    # Among very many folders, it is the usual names that tell.
    for number in range(101):
        (tmp_path / f"class {number}").mkdir()
    renamed.rename(made.folder)
    assert f"give {source}:{made.folder}" in refusal(str(tmp_path))


def test_other_images_beside_a_dataset_are_read(form: str, tmp_path: Path) -> None:
    _, made = make(form, tmp_path)
    own = [made.folder / "our own" / label / "0.png" for label in "ab"]
    touch(own)
    assert [item.path for item in only(str(made.folder / "our own")).items] == own


def test_a_listed_image_whose_name_differs_in_capitals(form: str, tmp_path: Path) -> None:
    _, made = make(form, tmp_path)
    image = made.folder / made.expected[0][0]
    other = image.with_suffix({".jpg": ".JPG", ".JPG": ".jpg"}[image.suffix])
    image.rename(other)
    if image.exists():
        pytest.skip("this file system takes small and capital letters for the same")
    message = refusal(str(made.folder))
    assert f"the first is {image}, where {other.name} is instead; rename" in message


def test_without_the_folder_of_images_all_are_listed(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    shutil.rmtree(made.folder / made.images)
    if form == "cars196, devkit":
        shutil.rmtree(made.folder / "cars_test")
    [dataset] = read_benchmark(source, made.folder, require_images=False)
    assert absent_images(dataset.items) == [made.folder / path for path, _, _ in made.expected]


def test_a_folder_of_annotations_that_cannot_be_read(tmp_path: Path) -> None:
    made = make_cars196_devkit(tmp_path)
    (made.folder / "devkit").chmod(0)
    if os.access(made.folder / "devkit", os.R_OK):
        pytest.skip("this user, root, may read everything")
    assert f"cannot read the folder {made.folder / 'devkit'}: no permission" in refusal(f"cars196:{made.folder}")


def test_few_shot(form: str, tmp_path: Path) -> None:
    _, made = make(form, tmp_path)
    split = split_datasets(read_source(str(made.folder)))
    counts = Counter(item.label for item in split.train)
    for few_shot in (1, 2, 4, 8, 16):
        drawn = select_train(split, few_shot=few_shot)
        assert Counter(item.label for item in drawn.train) == {k: min(few_shot, n) for k, n in counts.items()}
        assert len(set(drawn.train)) == len(drawn.train)
        assert (drawn.query, drawn.gallery) == (split.query, split.gallery)


def test_the_wrong_folder(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path / "one")
    (tmp_path / "empty").mkdir()
    message = refusal(f"{source}:{tmp_path / 'empty'}")
    assert f"no {PUBLISHED[source].title} folder" in message
    assert PUBLISHED[source].home in message
    file = made.folder / made.expected[0][0]
    assert f"{file} is a file, not a folder" in refusal(f"{source}:{file}")
    others = {name: maker for name, maker in MAKERS.values() if name not in (source, "cub200", "nabirds")}
    other, maker = next(iter(others.items()))
    message = refusal(f"{source}:{maker(tmp_path / 'two').folder}")
    assert f"is the folder of {PUBLISHED[other].title}, not {PUBLISHED[source].title}; write {other}:" in message


def test_two_datasets_in_one_folder(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    (made.folder / "Ebay_train.txt").touch()
    (made.folder / "setid.mat").touch()
    message = refusal(str(made.folder))
    assert "cannot determine the format" in message
    assert source in message


def test_missing_annotation_files(form: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    for file in made.annotations:
        moved = (made.folder / file).rename(tmp_path / "moved")
        assert Path(file).name in refusal(f"{source}:{made.folder}")
        moved.rename(made.folder / file)


@pytest.mark.parametrize(("form", "file"), TEXT_FILES)
def test_damaged_text(form: str, file: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    path = made.folder / file
    content = path.read_bytes()
    text = f"{source}:{made.folder}"

    path.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert len(only(text).items) == len(made.expected)

    path.write_bytes(content.replace(b"\n", b"\r"))
    assert len(only(text).items) == len(made.expected)

    path.write_bytes(b"")
    assert str(path) in refusal(text)
    path.write_bytes(content + b"\n\0\n")
    assert f"{path} is not text (line {content.count(10) + 2})" in refusal(text)
    path.write_bytes(content + b"\xff\xfe\n")
    assert f"{path} is not UTF-8 (line {content.count(10) + 1})" in refusal(text)
    path.unlink()
    path.mkdir()
    if file != "data/variants.txt":  # needed only to find misspelt names
        assert Path(file).name in refusal(text)


@pytest.mark.parametrize(("form", "file"), [case for case in TEXT_FILES if case[1] in PATH_FILES])
def test_paths_as_windows_writes_them(form: str, file: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    before = only(str(made.folder))
    path = made.folder / file
    path.write_bytes(path.read_bytes().replace(b"/", b"\\"))
    assert only(f"{source}:{made.folder}") == before
    path.write_bytes(path.read_bytes().replace(b"\\", b"\\..\\..\\"))
    assert "leads out of" in refusal(f"{source}:{made.folder}")


@pytest.mark.parametrize(("form", "file"), [case for case in TEXT_FILES if case[1] != "data/variants.txt"])
def test_a_row_without_its_last_column(form: str, file: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    path = made.folder / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].split()[0]]))
    assert f"{path}, line {len(lines)}: 1 value for the columns" in refusal(f"{source}:{made.folder}")


@pytest.mark.parametrize(("form", "file"), [case for case in TEXT_FILES if "Ebay" in case[1] or "list_" in case[1]])
def test_a_header_without_a_column(form: str, file: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    path = made.folder / file
    path.write_text(path.read_text().replace("class_id", "klass").replace("item_id", "klass"))
    assert f"{path} has no column '{'item_id' if form == 'inshop' else 'class_id'}'" in refusal(
        f"{source}:{made.folder}"
    )


@pytest.mark.parametrize(("form", "file"), MAT_FILES)
def test_damaged_mat(form: str, file: str, tmp_path: Path) -> None:
    source, made = make(form, tmp_path)
    path = made.folder / file
    content = path.read_bytes()
    text = f"{source}:{made.folder}"
    for length in (0, 1, 100, 128, 130, 136, 150, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:length])
        assert str(path) in refusal(text), length
    path.write_bytes(b"not a MATLAB file" * 20)
    assert f"{path} is not a readable .mat file" in refusal(text)
    path.write_bytes(content[:124] + b"\x00\x02" + content[126:])
    assert "its version is 0x0200, not that of MATLAB 5" in refusal(text)
    if "meta" not in file:
        savemat(path, {"something": 1})
        assert f"{path} has no variable" in refusal(text)
    path.write_bytes(content)
    assert len(only(text).items) == len(made.expected)
