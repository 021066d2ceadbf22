"""Particulars of single benchmark datasets: its variants, its class ids, its faults."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmark_fixtures import (
    make_aircraft,
    make_cars196,
    make_cars196_devkit,
    make_cub200,
    make_dogs,
    make_flowers102,
    make_inshop,
    make_nabirds,
    make_sop,
    structs,
    touch,
    write_dogs,
)
from scipy.io import savemat

from unimetric.data.catalog import Dataset
from unimetric.data.sources import read_source
from unimetric.errors import UserError


def refusal(text: str) -> str:
    with pytest.raises(UserError) as error:
        read_source(text)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def only(folder: Path) -> Dataset:
    [dataset] = read_source(str(folder))
    return dataset


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("number", ["0", "201", "-1", "x", "1.0"])
def test_cub200_class_ids_out_of_range(number: str, tmp_path: Path) -> None:
    folder = make_cub200(tmp_path).folder
    file = folder / "image_class_labels.txt"
    replace(file, "7 101\n", f"7 {number}\n")
    message = refusal(str(folder))
    assert f"{file}, line 7: the class id" in message
    assert "1 to 200" in message


def test_cub200_tables_that_do_not_fit_together(tmp_path: Path) -> None:
    folder = make_cub200(tmp_path).folder
    classes, images, names = (folder / f"{name}.txt" for name in ("image_class_labels", "images", "classes"))
    content = classes.read_text()
    classes.write_text(content + "99 1\n")
    assert f"{images} has no image '99', which {classes} has on line 8" in refusal(str(folder))
    classes.write_text(content.replace("3 ", "4 "))
    assert f"{classes}, line 4: '4' is on line 3 too" in refusal(str(folder))
    classes.write_text(content)
    replace(images, "7 ", "8 ")
    assert f"{classes} has no image '8', which {images} has on line 1" in refusal(str(folder))
    replace(images, "8 ", "7 ")
    replace(names, "200 200.Yellowthroat\n", "")
    assert f"the class id 200 is not in {names}" in refusal(str(folder))
    names.write_text(names.read_text() + "1 001.Ani\n")
    assert f"{names}, line 5: the class id 1 is there twice" in refusal(str(folder))


def test_cub200_is_not_nabirds(tmp_path: Path) -> None:
    cub200, nabirds = make_cub200(tmp_path).folder, make_nabirds(tmp_path).folder
    assert f"{nabirds} is the folder of NABirds, not CUB-200-2011; write nabirds:{nabirds}" in refusal(
        f"cub200:{nabirds}"
    )
    (nabirds / "image_class_labels.txt").unlink()
    assert "image_class_labels.txt" in refusal(str(nabirds))
    assert only(cub200).name == "cub200"
    # All that is left to tell by is images.txt beside images: better an error than 200 wrong classes.
    (cub200 / "image_class_labels.txt").unlink()
    assert "there is no file" in refusal(str(cub200))


@pytest.mark.parametrize("path", ["../outside.jpg", "a/../../outside.jpg", "/etc/hostname", "a/.."])
def test_paths_that_lead_out_of_the_folder(path: str, tmp_path: Path) -> None:
    touch([tmp_path / "CUB_200_2011/outside.jpg", tmp_path / "CUB_200_2011/images/a/1.jpg"])
    folder = make_cub200(tmp_path).folder
    replace(folder / "images.txt", "101.White_pelican/0.jpg".replace("p", "P", 1), path)
    assert f"lists {path!r}, which leads out of {folder / 'images'}" in refusal(str(folder))


def test_an_image_listed_twice(tmp_path: Path) -> None:
    made = make_sop(tmp_path)
    file = made.folder / "Ebay_train.txt"
    content = file.read_text()
    file.write_text(content + "9 1 1 bicycle_final/1_1.JPG\n")
    dataset = only(made.folder)
    assert len(dataset.items) == len(made.expected)
    assert dataset.ignored == (made.folder / "bicycle_final/1_1.JPG",)
    file.write_text(content + "9 2 1 bicycle_final/1_1.JPG\n")
    assert "lists bicycle_final/1_1.JPG twice, as '1' (train) and '2' (train)" in refusal(str(made.folder))


@pytest.mark.parametrize("number", ["0", "22635", "1_0"])
def test_sop_class_ids_out_of_range(number: str, tmp_path: Path) -> None:
    folder = make_sop(tmp_path).folder
    replace(folder / "Ebay_test.txt", "4 11319 1", f"4 {number} 1")
    assert f"{folder / 'Ebay_test.txt'}, line 2: the class_id" in refusal(str(folder))


def test_inshop_variants(tmp_path: Path) -> None:
    made = make_inshop(tmp_path)
    plain = only(made.folder)
    file = made.folder / "list_eval_partition.txt"
    for place in ("Eval", "Anno"):
        (made.folder / place).mkdir()
        file = file.rename(made.folder / place / file.name)
        assert only(made.folder) == plain
    assert f"is one level too low for In-Shop Clothes Retrieval: its images are in {made.folder}" in refusal(
        str(made.folder / "Anno")
    )
    (made.folder / "Img").mkdir()
    (made.folder / "img").rename(made.folder / "Img/img")
    assert [item.path.relative_to(made.folder / "Img").as_posix() for item in only(made.folder).items] == [
        path for path, _, _ in made.expected
    ]


def test_inshop_faults(tmp_path: Path) -> None:
    folder = make_inshop(tmp_path).folder
    file = folder / "list_eval_partition.txt"
    content = file.read_text()
    replace(file, "  query", "  probe")
    assert f"{file}, line 4: unknown evaluation_status 'probe'; valid: train, query, gallery" in refusal(str(folder))
    file.write_text(content.replace("img/WOMEN", "WOMEN", 1))
    assert f"{file}, line 3: the image_name 'WOMEN/" in refusal(str(folder))
    file.write_text("\n".join(content.splitlines()[:2]))
    assert f"{file} lists no images" in refusal(str(folder))
    # The list of another DeepFashion benchmark has the same name.
    file.write_text("1\nimage_name evaluation_status\nimg/1.jpg train\n")
    assert f"{file} has no column 'item_id', only 'image_name', 'evaluation_status'" in refusal(str(folder))


def test_nabirds_class_ids_that_have_no_name(tmp_path: Path) -> None:
    folder = make_nabirds(tmp_path).folder
    replace(folder / "image_class_labels.txt", " 842\n", " 843\n")
    message = refusal(str(folder))
    assert f"{folder / 'image_class_labels.txt'}, line 1: the class id 843 is not in " in message


def test_dogs_with_its_lists_in_their_folder(tmp_path: Path) -> None:
    made = make_dogs(tmp_path)
    plain = only(made.folder)
    (made.folder / "lists").mkdir()
    (made.folder / "file_list.mat").rename(made.folder / "lists/file_list.mat")
    assert only(made.folder) == plain
    assert f"its images are in {made.folder}; give that folder" in refusal(str(made.folder / "lists"))


def test_dogs_faults(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path).folder
    file = folder / "file_list.mat"
    for number in (0, 121, -1):
        write_dogs(file, ["a-b/1.jpg"], [number])
        assert f"{file}, entry 1: the label {number} is out of range 1 to 120" in refusal(str(folder))
    for wrong in (1.5, float("nan")):
        write_dogs(file, ["a-b/1.jpg"], [wrong])  # type: ignore[list-item]
        assert f"{file}, entry 1: the label is not a whole number" in refusal(str(folder))
    write_dogs(file, ["a-b/1.jpg"], [1, 2])
    assert f"{file} holds 1 file_list, 2 labels" in refusal(str(folder))
    savemat(file, {"file_list": np.array([[1.0]]), "labels": [[1]]})
    assert f"{file}, entry 1: the file name is not text" in refusal(str(folder))


def test_breeds_of_one_name_stay_apart(tmp_path: Path) -> None:
    paths = ["n1-Shih_Tzu/1.jpg", "n2-Shih-Tzu/1.jpg", "n3-Shih_Tzu/1.jpg"]
    write_dogs(tmp_path / "file_list.mat", paths, [1, 2, 61])
    touch(tmp_path / "Images" / path for path in paths)
    assert [item.label for item in only(tmp_path).items] == ["Shih Tzu (1)", "Shih-Tzu", "Shih Tzu (61)"]


def test_flowers102_faults(tmp_path: Path) -> None:
    folder = make_flowers102(tmp_path).folder
    file = folder / "setid.mat"
    savemat(file, {"trnid": [[1]], "valid": [[2]], "tstid": [[8]]})
    assert f"{file}, entry 1: the tstid 8 is out of range 1 to 7" in refusal(str(folder))
    savemat(file, {"trnid": [[1]], "valid": [[2]], "tstid": [[1]]})
    assert f"{file} lists the image 1 2 times" in refusal(str(folder))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 103]])})
    assert "imagelabels.mat, entry 2: the label 103 is out of range 1 to 102" in refusal(str(folder))


def test_aircraft_from_its_data_folder(tmp_path: Path) -> None:
    made = make_aircraft(tmp_path)
    assert only(made.folder / "data") == only(made.folder)
    # One number of variants.txt decides nothing where the images show all variants.
    (made.folder / "data/variants.txt").unlink()
    assert [item.role for item in only(made.folder).items] == [role for _, _, role in made.expected]


def test_aircraft_variants_that_do_not_exist(tmp_path: Path) -> None:
    folder = make_aircraft(tmp_path).folder / "data"
    replace(folder / "images_variant_test.txt", "F-16A/B", "F-16")
    assert f"{folder / 'images_variant_test.txt'}, line 1: the variant 'F-16' is not in" in refusal(str(folder))


@pytest.mark.parametrize("number", [0, 197])
def test_cars196_class_out_of_range(number: int, tmp_path: Path) -> None:
    folder = make_cars196(tmp_path).folder
    savemat(
        folder / "cars_annos.mat", {"annotations": structs([{"relative_im_path": "car_ims/1.jpg", "class": number}])}
    )
    assert f"cars_annos.mat, entry 1: the class {number} is out of range 1 to 196" in refusal(str(folder))


def test_cars196_columns(tmp_path: Path) -> None:
    folder = make_cars196(tmp_path).folder
    savemat(folder / "cars_annos.mat", {"annotations": structs([{"fname": "1.jpg", "class": 1}])})
    assert "cars_annos.mat has no column 'relative_im_path', only 'fname', 'class'" in refusal(str(folder))
    savemat(folder / "cars_annos.mat", {"annotations": np.array([[1, 2]])})
    assert "cars_annos.mat has no column 'relative_im_path', only no named columns" in refusal(str(folder))


def test_cars196_of_one_image(tmp_path: Path) -> None:
    touch([tmp_path / "car_ims/000001.jpg"])
    rows = [{"relative_im_path": "car_ims/000001.jpg", "class": 99, "test": 0}]
    savemat(tmp_path / "cars_annos.mat", {"annotations": structs(rows)})
    dataset = only(tmp_path)
    assert [(item.label, item.role) for item in dataset.items] == [("99", "test")]
    assert any("numbers for names" in note for note in dataset.notes)


def test_cars196_devkit_variants(tmp_path: Path) -> None:
    made = make_cars196_devkit(tmp_path)
    plain = only(made.folder)
    labelled = "cars_test_annos_withlabels.mat"
    (made.folder / labelled).rename(made.folder / "devkit" / labelled)
    assert only(made.folder).items == plain.items
    assert f"its images are in {made.folder}; give that folder" in refusal(str(made.folder / "devkit"))
    # Some copies have the folders of images twice, one in the other.
    for part in ("cars_train", "cars_test"):
        (made.folder / part).rename(made.folder / "moved")
        (made.folder / part).mkdir()
        (made.folder / "moved").rename(made.folder / part / part)
    assert [item.path.parent.name for item in only(made.folder).items] == ["cars_train"] * 2 + ["cars_test"] * 2
    assert [item.label for item in only(made.folder).items] == [item.label for item in plain.items]
    # With the annotations of both forms, those count whose images are there.
    shutil.copy(make_cars196(tmp_path).folder / "cars_annos.mat", made.folder)
    assert [item.label for item in only(made.folder).items] == [item.label for item in plain.items]


def test_cars196_test_images_without_labels(tmp_path: Path) -> None:
    folder = make_cars196_devkit(tmp_path).folder
    (folder / "cars_test_annos_withlabels.mat").unlink()
    remedy = f"put cars_test_annos_withlabels.mat in {folder}"
    assert remedy in refusal(str(folder))
    bare = folder / "devkit/cars_test_annos.mat"
    savemat(bare, {"annotations": structs([{"fname": "00001.jpg", "bbox_x1": 1}])})
    assert f"{bare} has no labels; {remedy}" in refusal(str(folder))
