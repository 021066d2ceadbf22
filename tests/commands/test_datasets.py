"""Miniatures in the authors' formats: what is there, what is missing or damaged, what is in both train and test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toy_runs import unimetric
from unimetric.data.dataset_checks import DatasetCheck, check_datasets, exit_code
from unimetric.data.sources.benchmarks.published import PUBLISHED


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # BMP: every file of one size has the same number of bytes, whatever it shows.
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(path, format="BMP")


def make_sop(folder: Path) -> Path:
    """Two train and two test classes of two images."""
    for part, first in (("train", 1), ("test", 3)):
        rows = ["image_id class_id super_class_id path"]
        for number in range(first, first + 2):
            for shot in range(2):
                name = f"chair_final/{number}_{shot}.JPG"
                image(folder / name, 10 * number + shot)
                rows.append(f"{len(rows)} {number} 1 {name}")
        (folder / f"Ebay_{part}.txt").write_text("\n".join(rows) + "\n")
    return folder


def make_inshop(folder: Path) -> Path:
    rows = []
    for shade, (label, role) in enumerate(
        [(1, "train"), (1, "train"), (2, "query"), (2, "gallery"), (2, "gallery")], start=100
    ):
        name = f"img/WOMEN/Tees/id_{label:08}/{shade}.jpg"
        image(folder / name, shade)
        rows.append(f"{name} id_{label:08} {role}")
    text = f"{len(rows)}\nimage_name item_id evaluation_status\n" + "\n".join(rows) + "\n"
    (folder / "list_eval_partition.txt").write_text(text)
    return folder


def check(root: Path, name: str, **options: Any) -> DatasetCheck:
    return next(check for check in check_datasets(root, **options) if check.name == name)


def states(root: Path) -> dict[str, str]:
    return {check.name: check.state for check in check_datasets(root) if check.state != "not found"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_sop(tmp_path / "root/Stanford_Online_Products")
    make_inshop(tmp_path / "root/inshop")
    return tmp_path / "root"


def test_what_is_found_is_counted_by_role(root: Path) -> None:
    checks = check_datasets(root)
    assert [one.name for one in checks] == list(PUBLISHED)
    assert states(root) == {"sop": "good", "inshop": "good"}
    assert exit_code(checks) == 0
    assert check(root, "sop").counts() == {"train": (4, 2), "test": (4, 2)}
    inshop = check(root, "inshop", decode=True)
    assert inshop.counts() == {"train": (2, 1), "query": (1, 1), "gallery": (2, 1)}
    assert "2 train images, not 25882" in inshop.differences
    assert (inshop.missing, inshop.unreadable, inshop.duplicates) == ((), (), ())


@pytest.mark.parametrize("place", ["SOP", "products of mine", "wrapper/inner", "."])
def test_a_dataset_is_found_by_its_files_whatever_its_folder_is_called(place: str, tmp_path: Path) -> None:
    make_sop(tmp_path / "r" / place)
    found = check(tmp_path / "r", "sop")
    assert found.folder == tmp_path / "r" / place
    assert found.state == "good"


def test_missing_images_are_all_named(root: Path) -> None:
    gone = root / "Stanford_Online_Products/chair_final/1_0.JPG"
    gone.unlink()
    found = check(root, "sop")
    assert (found.state, found.missing, found.problem) == ("bad", (gone,), None)
    assert found.counts()["train"] == (4, 2)
    assert exit_code(check_datasets(root)) == 1


def test_unreadable_files(root: Path) -> None:
    folder = root / "Stanford_Online_Products/chair_final"
    (folder / "1_0.JPG").write_bytes(b"")
    (folder / "3_0.JPG").write_bytes((folder / "3_0.JPG").read_bytes()[:100])
    assert check(root, "sop").unreadable == ((folder / "1_0.JPG", "empty file"),)
    assert check(root, "sop", decode=True).unreadable == (
        (folder / "1_0.JPG", "empty file"),
        (folder / "3_0.JPG", "truncated"),
    )


def test_duplicates_are_those_between_train_and_test(root: Path) -> None:
    folder = root / "Stanford_Online_Products/chair_final"
    copies = {"2_1.JPG": "1_0.JPG", "4_0.JPG": "1_0.JPG", "4_1.JPG": "3_1.JPG"}
    for target, source in copies.items():
        (folder / target).write_bytes((folder / source).read_bytes())
    inshop = root / "inshop/img/WOMEN/Tees"
    for other in ("id_00000002/102.jpg", "id_00000002/103.jpg"):
        (inshop / other).write_bytes((inshop / "id_00000001/100.jpg").read_bytes())
    assert check(root, "sop").duplicates == ((folder / "1_0.JPG", folder / "4_0.JPG"),)
    assert check(root, "inshop").duplicates == tuple(
        (inshop / "id_00000001/100.jpg", inshop / other) for other in ("id_00000002/102.jpg", "id_00000002/103.jpg")
    )
    # A remark on the data as published, for which there is nothing to mend.
    assert states(root) == {"sop": "good", "inshop": "good"}


def test_a_damaged_annotation_file_is_that_dataset_s_problem(root: Path) -> None:
    (root / "inshop/list_eval_partition.txt").write_text("2\nimage_name item_id\nimg/a.jpg id_1\n")
    found = check(root, "inshop")
    assert found.state == "bad"
    assert found.problem is not None
    assert "evaluation_status" in found.problem
    assert check(root, "sop").state == "good"


def test_a_folder_of_the_usual_name_without_the_files(root: Path) -> None:
    (root / "CUB_200_2011").mkdir()
    found = check(root, "cub200")
    assert (found.state, found.folder) == ("bad", root / "CUB_200_2011")
    assert "images.txt" in (found.problem or "")


def test_nothing_is_found(tmp_path: Path) -> None:
    checks = check_datasets(tmp_path)
    assert {one.state for one in checks} == {"not found"}
    assert exit_code(checks) == 1


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "Stanford_Online_Products/chair_final/1_0.JPG").unlink()
    assert unimetric("datasets", "check", root) == 1
    text = capsys.readouterr().out
    for words in (
        "Stanford Online Products (sop): bad",
        "In-Shop Clothes Retrieval (inshop): good",
        "CUB-200-2011 (cub200): not found",
        "8 datasets: 1 good, 1 bad, 6 not found",
        "CUB_200_2011.tgz from",
        "not decoded",
        "  missing    1: chair_final/1_0.JPG\n",
        PUBLISHED["cub200"].home,
    ):
        assert words in text


def test_a_fact_is_a_line_whatever_the_width(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    (root / "inshop").rename(root / "elsewhere")
    (root / "elsewhere/list_eval_partition.txt").unlink()
    unimetric("datasets", "check", root)
    published = PUBLISHED["inshop"]
    lines = capsys.readouterr().out.splitlines()
    assert f"  download   {published.downloads()} from {published.home}" in lines
    looked = f"{root}, its folders and one level below, for list_eval_partition.txt (usually in {published.folders[0]})"
    assert f"  looked in  {looked}" in lines


def test_a_root_within_a_dataset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low = root / "Stanford_Online_Products/chair_final"
    found = check(low, "sop")
    assert found.state == "not found"
    assert found.problem == f"{low} is too low for Stanford Online Products: it lies in {low.parent}; check that folder"
    assert check(low, "inshop").problem is None
    assert unimetric("datasets", "check", low) == 1
    assert "too low for Stanford Online Products" in " ".join(capsys.readouterr().out.split())


def test_annotations_without_images_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "inshop/img")
    found = check(root, "inshop")
    assert (found.state, found.problem, len(found.missing)) == ("bad", None, 5)
    assert found.counts() == {"train": (2, 1), "query": (1, 1), "gallery": (2, 1)}
    assert unimetric("datasets", "check", root) == 1
    assert ".jpg and 2 more" in " ".join(capsys.readouterr().out.split())


def test_json_says_all(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unimetric("datasets", "check", root, "--json", "--decode") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(found) == list(PUBLISHED)
    assert found["inshop"]["images"] == {"train": 2, "query": 1, "gallery": 2}
    assert found["inshop"]["published"]["images"] == {"train": 25_882, "query": 14_218, "gallery": 12_612}
    assert found["sop"]["decoded"]
    assert found["dogs"]["state"] == "not found"
    assert found["dogs"]["download"]["files"] == ["images.tar", "lists.tar"]


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert unimetric("datasets", "list") == 0
    text = capsys.readouterr().out
    assert all(name in text and published.title in text for name, published in PUBLISHED.items())
    assert "11,318 / 11,316" in text
    assert max(map(len, text.splitlines())) <= 80
    assert unimetric("datasets", "list", "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(PUBLISHED)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "ABSENT"], "there is no folder ABSENT; check the path"),
        (["check", "FILE"], "FILE is a file, not a folder"),
        (["check"], "ROOT is missing"),
        (["chek", "ABSENT"], "ACTION is 'chek': did you mean 'check'"),
        (["list", "ABSENT"], "list takes no 'ABSENT'"),
        (["list", "--decode"], "list takes no --decode"),
        ([], "ACTION is missing"),
        (["check", "ABSENT", "--decod"], "unknown option --decod; did you mean '--decode'"),
    ],
)
def test_mistakes(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "FILE").touch()
    places = {name: str(tmp_path / name) for name in ("ABSENT", "FILE")}
    for name, place in places.items():
        words = words.replace(name, place)
    assert unimetric("datasets", *[places.get(argument, argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("unimetric: error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_an_unreadable_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this user, root, may read everything")
    assert unimetric("datasets", "check", tmp_path / "closed") == 2
    assert "cannot read the folder" in capsys.readouterr().err


def test_torch_is_not_needed(root: Path) -> None:
    script = "import sys; from unimetric.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, "datasets", "check", str(root)], check=True, capture_output=True)
