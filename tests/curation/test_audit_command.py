"""The command from folders to a manifest that training reads, with a toy model."""

import csv
import html
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from audit_pictures import compressed, picture
from toy_runs import unimetric
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    backbone = make_backbone("test_vit", weights="random", image_size=32)
    Embedder(backbone, "linear", embedding_size=8).save_pretrained(folder)
    return folder


@pytest.fixture
def shoes(tmp_path: Path) -> Path:
    for label in ("boot", "clog", "pump", "shoe"):
        (tmp_path / "shoes" / label).mkdir(parents=True)
        for index in range(4):
            picture(100 * ord(label[0]) + index).save(tmp_path / "shoes" / label / f"{index}.png")
    compressed(picture(100 * ord("b"))).save(tmp_path / "shoes" / "shoe" / "leak.png")
    Image.new("RGB", (50, 50), "black").save(tmp_path / "shoes" / "clog" / "black.png")
    return tmp_path / "shoes"


def test_from_folders_to_a_manifest(shoes: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "audit"
    assert unimetric("audit", shoes, "--model", model, "--out", out) == 0
    assert "1  one picture on both sides of a split" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "audit.csv").open()))
    assert {"leak", "contradiction", "near-copy", "blank"} <= {row["kind"] for row in rows}
    page = (out / "audit.html").read_text()
    assert page.count("<article") == len(rows)
    assert "default-src &#39;none&#39;" in page
    assert "http://" not in page
    assert "https://" not in page

    accepted = [int(row["id"]) for row in rows if row["kind"] in ("leak", "blank")]
    (tmp_path / "decisions.json").write_text(json.dumps({"accepted": accepted, "rejected": []}))
    assert unimetric("audit", "--out", out, "--apply", tmp_path / "decisions.json") == 0
    kept = list(csv.DictReader((out / "clean.csv").open()))
    assert {Path(row["path"]).name for row in kept if row["label"] == "boot"} == {"1.png", "2.png", "3.png"}
    assert len(kept) == 16
    assert len(list(shoes.rglob("*.png"))) == 18

    # A second audit, of what is left, finds neither.
    assert unimetric("audit", out / "clean.csv", "--model", model, "--out", tmp_path / "again") == 0
    kinds = {row["kind"] for row in csv.DictReader((tmp_path / "again" / "audit.csv").open())}
    assert not kinds & {"leak", "contradiction", "near-copy", "blank"}


def test_remarks_on_labels_are_those_of_other_commands(
    shoes: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(shoes / "boot", shoes / "Boot")
    assert unimetric("audit", shoes, "--model", model, "--out", tmp_path / "audit") == 0
    remark = "'Boot' and 'boot': classes with nearly the same name"
    assert remark in " ".join(capsys.readouterr().err.split())
    assert remark in html.unescape((tmp_path / "audit" / "audit.html").read_text())


def test_names_cannot_leave_their_place_on_the_page(model: Path, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    for label in (hostile, "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (40, 40), "white").save(tmp_path / "set" / label / f"{index}.png")
            picture(ord(label[0]) + index).save(tmp_path / "set" / label / f"p{index}.png")
    assert unimetric("audit", tmp_path / "set", "--model", model, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "audit.html").read_text()
    assert hostile not in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "audit needs sources"),
        (["missing", "--out", "o"], "missing"),
        (["--apply", "d.json", "--out", "o"], "audit.json"),
        (["x", "--apply", "d.json", "--out", "o"], "--apply takes no sources"),
        (["x", "--manifest", "m.csv", "--out", "o"], "--manifest is m.csv"),
        (["x", "--doubtful", "0.05", "--out", "o"], "--doubtful is 0.05: it is for --apply"),
        (["x", "--image_size", "140000", "--out", "o"], "--image_size is 140000: use 1 to 4096"),
        (["--apply", "d.json", "--out", "o", "--split", "given"], "--split has no effect with --apply"),
        (["x", "--model", "m", "--image_size", "224", "--out", "o"], "--image_size has no effect with --model"),
        (["x"], "--out"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert unimetric("audit", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
