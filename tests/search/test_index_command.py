"""`unimetric index`: what is unchanged is skipped, what changed is updated; and `unimetric search`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from search_toys import FP32, dump, make_model, new_picture, thresholds
from timm.layers import PatchEmbed
from torch.nn.modules.module import register_module_forward_pre_hook

from toy_runs import removed, unimetric
from unimetric.commands.index import ChangeOptions, RowOptions, change_database, index_sources
from unimetric.data.sources import read_sources
from unimetric.errors import UserError
from unimetric.models.embedder import Embedder
from unimetric.progress import console
from unimetric.search import DatabaseError, ModelMismatchError, SearchIndex

CPU = ["--device.precision", "fp32", "--device.accelerator", "cpu"]


class Embedded:
    """The number of images that went through models, which Ctrl-C may stop after so many."""

    def __init__(self) -> None:
        self.images = 0
        self.stop_after = 10**9

    def __call__(self, module: torch.nn.Module, pixels: object) -> None:
        if isinstance(module, PatchEmbed):
            if self.images == self.stop_after:
                raise KeyboardInterrupt
            self.images += 1


@pytest.fixture
def embedded() -> Iterator[Embedded]:
    counted = Embedded()
    with removed(register_module_forward_pre_hook(counted)):
        yield counted


def indexed(
    model: Path,
    sources: list[Path],
    db: Path,
    *,
    dataset: str | None = None,
    delete_missing: bool = False,
    **rows: object,
) -> tuple[int, int, int, int]:
    named = [str(source) for source in sources]
    result, _, _ = index_sources(
        model,
        named,
        str(db),
        dataset=dataset,
        delete_missing=delete_missing,
        rows=RowOptions(**rows),
        device=FP32,
    )
    return result.written, result.unchanged, len(result.refused), result.deleted


def test_only_what_changed_is_embedded(model: Path, own: Path, tmp_path: Path, embedded: Embedded) -> None:
    db = tmp_path / "db"
    assert indexed(model, [own], db, batch_size=10) == (24, 0, 0, 0)
    assert embedded.images == 24
    before = dump(db)
    assert {row["dataset"] for row in before} == {"hats", "shoes"}
    assert len({row["fingerprint"] for row in before}) == 1
    assert indexed(model, [own], db) == (0, 24, 0, 0)
    assert embedded.images == 24
    assert dump(db) == before

    new_picture(own / "hats/c0/0.png")
    new_picture(own / "hats/c9/new.png")
    (own / "shoes/c1/1.png").unlink()
    (own / "shoes/c1/2.png").write_bytes(b"")
    (own / "shoes/c1/bad.jpg").write_bytes(b"no image")
    assert indexed(model, [own], db) == (2, 21, 2, 0)
    assert embedded.images == 26
    after = {row["path"]: row for row in dump(db)}
    assert len(after) == 25
    old = {row["path"]: row for row in before}
    changed = {path for path, row in after.items() if row != old.get(path)}
    assert changed == {str(own / "hats/c0/0.png"), str(own / "hats/c9/new.png")}
    # A row of a file that can no longer be read is kept, and so are those of another dataset.
    assert indexed(model, [own / "shoes"], db, delete_missing=True) == (0, 10, 2, 1)
    assert str(own / "shoes/c1/2.png") in {row["path"] for row in dump(db)}
    assert len(dump(db)) == 24


def test_new_prices_need_no_embedding(model: Path, own: Path, tmp_path: Path, embedded: Embedded) -> None:
    paths = sorted(own.glob("*/*/*.png"))
    manifest = tmp_path / "m.csv"

    def write(price: str, header: str = "price") -> None:
        lines = [f"{path},x,{price if number else ''}" for number, path in enumerate(paths)]
        manifest.write_text("\n".join([f"path,label,{header}", *lines]))

    write("3")
    assert indexed(model, [manifest], tmp_path / "db") == (24, 0, 0, 0)
    before = dump(tmp_path / "db")
    write("4.5")
    assert indexed(model, [manifest], tmp_path / "db", commit_rows=7) == (23, 1, 0, 0)
    assert embedded.images == 24
    after = dump(tmp_path / "db")
    assert [row | {"price": 0} for row in after] == [row | {"price": 0} for row in before]
    assert {row["price"] for row in after} == {None, 4.5}
    write("cheap")
    with pytest.raises(UserError, match=r"m\.csv: the column 'price' holds 'cheap', a text, but number"):
        indexed(model, [manifest], tmp_path / "db")
    assert dump(tmp_path / "db") == after


def test_numbers_in_a_column_of_text_stay_text(
    model: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CSV file cannot show that its sizes 38 and 40 are of the kind of M and 42.0 in another one."""
    manifests = {"a": ("M", "42.0"), "b": ("38", "40.0"), "c": ("true", "")}
    for number, (name, sizes) in enumerate(manifests.items()):
        paths = sorted(own.glob("hats/*/*.png"))[2 * number : 2 * number + 2]
        lines = [f"{path},x,{size}" for path, size in zip(paths, sizes, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,size", *lines]))
    assert indexed(model, [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "db")[0] == 4
    assert f"{tmp_path / 'b.csv'}: the column 'size' is text, as in the database or another" in capsys.readouterr().err
    assert indexed(model, [tmp_path / "c.csv"], tmp_path / "db")[0] == 2
    assert {row["size"] for row in dump(tmp_path / "db")} == {"M", "42.0", "38", "40.0", "true", None}
    assert indexed(model, [tmp_path / "b.csv"], tmp_path / "db") == (0, 2, 0, 0)


def test_the_rate_is_that_of_all_images(
    model: Path,
    own: Path,
    tmp_path: Path,
    embedded: Embedded,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images of one batch are done at once, after a second for each."""
    monkeypatch.setattr(console, "get_time", lambda: float(embedded.images))
    assert unimetric("index", model, own, "--db", tmp_path / "db", *CPU) == 0
    assert " 1.0 images/s" in capsys.readouterr().err


def test_columns_that_no_database_holds_are_left_out(
    model: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every source of training can be indexed."""
    manifest = tmp_path / "m.csv"
    lines = [f"{number},{path},x,1,2,3,4,5," for number, path in enumerate(sorted(own.glob("shoes/*/*.png")))]
    manifest.write_text("\n".join([",path,label,id,sale.price,twice,twice,Price,price", *lines]))
    assert len(read_sources([str(manifest)])[0].items) == len(lines)
    assert indexed(model, [manifest], tmp_path / "db")[0] == len(lines)
    assert {(row.get("Price"), "id.1" in row, row.get("twice")) for row in dump(tmp_path / "db")} == {(5, False, None)}
    notes = capsys.readouterr().err
    for name, reason in {
        "id": "its name is taken by the database; rename it",
        "sale.price": "its name holds '.'; rename it",
        "twice": "its name is there twice",
        "price": "its name differs from 'Price' in case only; rename one of the two",
    }.items():
        assert f"the column {name!r} is skipped: {reason}" in notes


def test_interrupted_between_commits_it_goes_on(model: Path, own: Path, tmp_path: Path, embedded: Embedded) -> None:
    (own / "hats/c0/1.png").write_bytes(b"")
    indexed(model, [own], tmp_path / "whole", batch_size=4, commit_rows=8)
    embedded.stop_after = embedded.images + 9
    with pytest.raises(KeyboardInterrupt):
        indexed(model, [own], tmp_path / "db", batch_size=4, commit_rows=8)
    embedded.stop_after = 10**9
    assert len(dump(tmp_path / "db")) == 8
    assert indexed(model, [own], tmp_path / "db", batch_size=4, commit_rows=8) == (15, 8, 1, 0)
    assert dump(tmp_path / "db") == dump(tmp_path / "whole")


def test_another_model_is_refused(model: Path, own: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    db = tmp_path / "db"
    indexed(model, [own / "hats"], db)
    before = dump(db)
    with pytest.raises(ModelMismatchError, match="holds vectors of another model"):
        indexed(other, [own / "shoes"], db)
    with pytest.raises(ModelMismatchError, match="holds vectors of another model"):
        SearchIndex.open(db, embedder=Embedder.from_pretrained(other))
    with SearchIndex.open(db, model=other) as index, pytest.raises(UserError, match="another model"):
        index.search(own / "hats/c0/0.png")
    assert dump(db) == before
    # The same model in another place is the same model, and where it lies is written down anew.
    assert indexed(moved, [own / "hats"], db) == (0, 12, 0, 0)
    with SearchIndex.open(db) as index:
        assert index.model == str(moved)
    shutil.rmtree(moved)
    with SearchIndex.open(db) as index, pytest.raises(UserError, match="--model") as caught:
        index.search(own / "hats/c0/0.png")
    assert str(moved) in str(caught.value)
    with SearchIndex.open(db, model=model) as index:
        assert index.search(own / "hats/c0/0.png")[0][0].score > 0.999


def test_names(model: Path, own: Path, tmp_path: Path) -> None:
    db = tmp_path / "db"
    indexed(model, [own / "hats"], db, dataset="caps")
    indexed(model, [own], db, dataset="all")
    with SearchIndex.open(db) as index:
        assert index.datasets() == {"all/hats": 12, "all/shoes": 12, "caps": 12}
    assert (
        change_database(str(db), ChangeOptions(delete_dataset=["all/hats"], delete_path=[str(own / "shoes/c0")])) == 16
    )
    with pytest.raises(UserError, match="unknown dataset 'hats'"):
        change_database(str(db), ChangeOptions(delete_dataset=["hats"]))
    for name, sources in (("a=b", [own]), ("", [own]), ("a", [own, own])):
        with pytest.raises(UserError, match="--dataset is"):
            indexed(model, sources, db, dataset=name)


def test_a_name_in_another_unicode_form(model: Path, own: Path, tmp_path: Path) -> None:
    db, composed, decomposed = tmp_path / "db", "caf\u00e9", "cafe\u0301"
    indexed(model, [own / "hats"], db, dataset=composed)
    indexed(model, [own / "shoes"], db, dataset="shoes")
    with SearchIndex.open(db, device=FP32) as index:
        image = own / "shoes/c0/0.png"
        (found,) = index.search(image, 3, datasets=[decomposed])
        assert {match.dataset for match in found} == {composed}
        assert index.count(decomposed) == 12
    assert change_database(str(db), ChangeOptions(delete_dataset=[decomposed])) == 12


def damage_data(db: Path) -> None:
    for file in (db / "items.lance/data").iterdir():
        file.write_bytes(file.read_bytes()[:40])


def damage_manifest(db: Path) -> None:
    for file in (db / "items.lance/_versions").iterdir():
        file.write_bytes(b"x" * 30)


def remove_data(db: Path) -> None:
    shutil.rmtree(db / "items.lance/data")


def remove_items(db: Path) -> None:
    shutil.rmtree(db / "items.lance")


def damage_about(db: Path) -> None:
    for file in (db / "about.lance/data").iterdir():
        file.write_bytes(bytes(file.stat().st_size))


def remove_about(db: Path) -> None:
    shutil.rmtree(db / "about.lance")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_data, "is damaged"),
        (damage_manifest, "is damaged"),
        (remove_data, "is damaged"),
        (remove_items, "has no rows yet"),
        (damage_about, "is damaged"),
        (remove_about, "is not a search database"),
    ],
)
def test_damaged_databases(damage, words: str, catalogue: Path, embedder: Embedder, tmp_path: Path) -> None:
    db = Path(shutil.copytree(catalogue, tmp_path / "db"))
    damage(db)
    with pytest.raises(DatabaseError, match=words) as caught, SearchIndex.open(db, embedder=embedder) as index:
        index.search_vectors(np.ones(16, np.float32))
    assert str(db) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_commands(
    model: Path,
    own: Path,
    tmp_path: Path,
    embedded: Embedded,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    db, query = tmp_path / "db", own / "hats/c1/2.png"
    (own / "hats/c0/0.png").write_bytes(b"")
    (tmp_path / "metrics.json").write_text(json.dumps({"thresholds": thresholds()}))
    assert unimetric("index", model, own, "--db", db, "--metrics", tmp_path, *CPU) == 0
    said = capsys.readouterr().err
    assert f"skipped {own / 'hats/c0/0.png'}: empty file" in said
    assert "23 rows written, 0 unchanged; 1 files were skipped. 23 rows are in" in said
    assert "images/s" in said
    assert " 0.0 images/s" not in said  # the rate counts from the command's start

    assert unimetric("search", db, query, "-k", 3, "--where", "label = 'c1'", *CPU) == 0
    out = capsys.readouterr().out
    assert f"{query}: the most similar\n" in out
    assert "identical" in out
    assert unimetric("search", db, query, "--false_match_rate", 0.01, *CPU) == 0
    assert "the most similar (a match is from 0.9000, false-match rate 0.01)" in capsys.readouterr().out
    assert str(query) in out
    assert unimetric("search", db, query, own / "shoes/c0/0.png", "--dataset", "hats", "--json", *CPU) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["image"] == str(query)
    assert first["is_match"] is True
    assert (first["threshold"], first["false_match_rate"]) == (None, None)
    assert (first["matches"][0]["path"], len(first["matches"])) == (str(query), 10)
    assert {match["dataset"] for match in second["matches"]} == {"hats"}
    assert set(first["matches"][0]) == {
        *("id", "score", "dataset", "label", "path", "metadata", "is_match", "confidence", "strength", "copies"),
    }

    new_picture(own / "hats/c0/new.png")
    embedded.stop_after = embedded.images
    assert unimetric("index", model, own, "--db", db, *CPU) == 130
    assert "stopped, what was written is kept" in capsys.readouterr().err

    assert unimetric("index", "--db", db, "--delete_dataset", "shoes") == 0
    assert "12 rows were deleted" in capsys.readouterr().err
    assert unimetric("index", "--db", db, "--build_index", "auto") == 0
    assert "Every search is exact now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index", "MODEL", "IMAGES"], "--db is missing"),
        (["index", "--db", "OUT"], "MODEL is missing"),
        (["index", "MODEL", "--db", "OUT"], "nothing to index"),
        (["index", "MODEL", "--vectors", "BAD", "--db", "OUT", "--strict"], "--strict has no effect with --vectors"),
        (
            ["index", "MODEL", "--vectors", "BAD", "--db", "OUT", "--batch_size", "4"],
            "--batch_size has no effect with --vectors",
        ),
        (["upgrade", "DB", "--rollback", "--size", "4"], "--size has no effect with --rollback"),
        (["upgrade", "DB", "--rollback", "--live", "now"], "--live has no effect with --rollback"),
        (["index", "--db", "DB", "--optimise", "--size", "4"], "--size has no effect without MODEL"),
        (
            ["index", "--db", "DB", "--calibrate", "IMAGES", "--false_match_rate", "0.1"],
            "--false_match_rate has no",
        ),
        (["index", "--db", "DB", "--delete_dataset", "hats", "--delete_missing"], "--delete_missing has no effect"),
        (["index", "IMAGES", "IMAGES", "--db", "OUT"], "config.json does not exist"),
        (["index", "MODEL", "IMAGES/none", "--db", "OUT"], "no file or folder"),
        (["index", "MODEL", "BAD", "--db", "OUT"], "none of 1 images can be read"),
        (["index", "MODEL", "BAD", "--strict", "--db", "OUT"], "bad.png: damaged header"),
        (["index", "MODEL", "IMAGES", "--db", "IMAGES"], "is not a search database: it holds hats"),
        (["index", "MODEL", "IMAGES", "--db", "BAD/bad.png"], "is a file"),
        (["index", "MODEL", "IMAGES", "--db", "OUT", "--commit_rows", "0"], "--commit_rows is 0"),
        (["index", "MODEL", "IMAGES", "--db", "OUT", "--batch_size", "0"], "--batch_size is 0"),
        (["index", "MODEL", "IMAGES", "--db", ""], "name is empty"),
        (["index", "MODEL", "IMAGES", "--db", "OUT", "--metrics", "IMAGES"], "metrics.json"),
        (["index", "--db", "OUT", "--delete_dataset", "x"], "there is no search database"),
        (["index", "--db", "foo://x/db", "--optimise"], "foo://x/db has an unknown scheme"),
        (["search", "OUT", "IMAGES/hats/c0/0.png"], "there is no search database"),
        (["search", "IMAGES", "IMAGES/hats/c0/0.png"], "is not a search database"),
        (["search", "DB", "BAD/bad.png"], "bad.png: damaged header"),
        (["search", "DB", "IMAGES"], "a folder, not a file"),
        (["search", "DB", "IMAGES/hats/c0/0.png", "-k", "0"], "k is 0"),
        (["search", "DB", "IMAGES/hats/c0/0.png", "--where", "prize < 2"], "did you mean 'price'"),
        (["search", "DB", "IMAGES/hats/c0/0.png", "--dataset", "hat"], "did you mean 'hats'"),
        (["search", "DB", "IMAGES/hats/c0/0.png", "--false_match_rate", "0.5"], "false_match_rate is 0.5"),
        (["search", "DB"], "IMAGE is missing"),
    ],
)
def test_refusals(
    arguments: list[str],
    words: str,
    model: Path,
    images: Path,
    catalogue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "bad.png").write_bytes(b"\x89PNG")
    before = sorted(images.rglob("*"))
    for name, place in {"MODEL": model, "IMAGES": images, "OUT": tmp_path / "out", "BAD": bad, "DB": catalogue}.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert unimetric(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("unimetric: error: ")
    assert words in error
    assert sorted(images.rglob("*")) == before
