from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from unimetric.config import DataConfig, RunConfig
from unimetric.data.sources import SOURCES, read_source, read_source_metadata, read_sources
from unimetric.errors import UserError
from unimetric.training.setup import load_split


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def make(root: str) -> str:
    for label in ("a", "b"):
        (Path(root) / label).mkdir(parents=True)
        (Path(root) / label / "1.jpg").touch()
    return root


def names(text: str) -> list[str]:
    return [dataset.name for dataset in read_source(text)]


def test_the_format_follows_from_the_path() -> None:
    make("birds")
    Path("cars.CSV").write_text("path,label\nbirds/a/1.jpg,x\n")
    assert names("birds") == names("birds/") == names("~/birds") == names("folder:birds") == ["birds"]
    assert names("cars.CSV") == names("manifest:cars.CSV") == names("manifest:~/cars.CSV") == ["cars"]
    assert read_source("birds")[0].items[0].path == Path("birds/a/1.jpg")


def test_names() -> None:
    make("birds")
    make("x=1/set")
    Path("cars.csv").write_text("path,label\nbirds/a/1.jpg,x\n")
    assert names("mine=birds") == names("mine=folder:birds") == ["mine"]
    assert names("mine=cars.csv") == ["mine"]
    assert names("été 1=birds") == ["été 1"]
    assert names("mine=x=1/set") == names("mine=folder:x=1/set") == ["mine"]
    assert names("folder:x=1/set") == ["set"]


def test_names_of_datasets_have_one_unicode_form() -> None:
    """macOS stores names of files with letters and accents apart."""
    written, name = "Vo\u0308gel ", "V\u00f6gel"
    make(written)
    Path(f"{written}.csv").write_text(f"path,label,price\n{written}/a/1.jpg,x,3\n")
    make(f"all/{written}")
    make("all/x")
    assert names(written) == names(f"{written}.csv") == names(f" {written}=folder:all/x") == [name]
    assert names("all") == [name, "x"]
    (dataset,) = read_source(written)
    assert {item.dataset for item in dataset.items} == {name}
    metadata = read_source_metadata(f"{written}.csv")
    assert {dataset for dataset, _ in metadata.cells} == {name}
    with pytest.raises(UserError, match="empty name"):
        names("\u00a0=all")


def test_options_name_a_dataset_in_any_unicode_form() -> None:
    """A name that is copied from a listing of files has letters and accents apart."""
    for name in ("Vo\u0308gel", "x"):
        make(name)
    for written in ("Vo\u0308gel", "V\u00f6gel"):
        options = DataConfig(
            sources=["Vo\u0308gel", "x"], train_datasets=[written], test_datasets=[written], train_images={written: 1}
        )
        split = load_split(RunConfig(data=options))
        assert {item.dataset for item in (*split.train, *split.query)} == {"V\u00f6gel"}


def test_addresses_of_the_web_are_called_so() -> None:
    with pytest.raises(UserError, match="images at https:// are not downloaded"):
        read_source("https://example.org/photos.csv")


def test_a_path_that_exists_wins_over_the_grammar() -> None:
    for path in ("mine=birds", "folder:birds", "odd:birds", "x=folder:y"):
        make(path)
        assert names(path) == [path]
    assert names("n=odd:birds") == ["n"]
    assert names("n=folder:odd:birds") == ["n"]


def test_windows_drives_are_no_formats() -> None:
    with pytest.raises(UserError, match=r"there is no file or folder C:\\data"):
        read_source("C:\\data")
    with pytest.raises(UserError, match=r"there is no file or folder C:/data"):
        read_source("mine=C:/data")
    make("C:/data")
    assert names("folder:C:/data") == names("C:/data") == ["data"]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """A stand-in for the demo; gives the folders that it was asked for."""
    asked: list[Path | None] = []

    def build_demo(folder: Path | None = None, *, rebuild: bool = False) -> Path:
        asked.append(folder)
        for dataset in ("icons", "digits"):
            if not Path("built", dataset).exists():
                make(f"built/{dataset}")
        return Path("built")

    module = types.ModuleType("unimetric.data.sources.demo")
    module.build_demo = build_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unimetric.data.sources.demo", module)
    return asked


def test_demo(demo: list[Path | None]) -> None:
    assert names("demo") == names("demo:") == ["digits", "icons"]
    assert names("d=demo") == ["d/digits", "d/icons"]
    assert demo == [None, None, None]
    names("demo:~/there")
    assert demo[-1] == Path("~/there").expanduser()


def test_the_bare_word_demo_is_never_a_folder(demo: list[Path | None]) -> None:
    make("demo")
    assert names("demo") == ["digits", "icons"]
    assert names("./demo") == ["demo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no path"),
        ("mine=", "names no path"),
        ("folder:", "names no path"),
        ("=birds", "empty name before '='"),
        ("folds:birds", "unknown format 'folds'.*did you mean 'folder'.*valid: .*demo, .*folder, .*manifest"),
        ("xyz://bucket/x", "unknown format 'xyz'"),
        ("absent", "there is no file or folder absent; check the path"),
        ("mine=absent", "there is no file or folder absent"),
        ("folder:absent", "there is no folder absent"),
        ("absent.csv", "there is no file absent.csv"),
        ("list.xlsx", "cannot read list.xlsx: save it as a table .csv or .tsv or .parquet or .pq"),
        ("list.txt", "cannot read list.txt: save it as a table .csv or .tsv or .parquet or .pq"),
        ("notes.md", "cannot determine the format of notes.md.*write FORMAT:PATH with one of folder, manifest"),
        ("~nobody-of-this-name/x", "there is no such home folder"),
        ("nul\0", "there is no file or folder"),
    ],
)
def test_bad_sources(text: str, message: str) -> None:
    for name in ("notes.md", "list.txt", "list.xlsx"):
        Path(name).touch()
    with pytest.raises(UserError, match=message):
        read_source(text)


def test_several_sources() -> None:
    make("x/birds")
    make("y/birds")
    assert [dataset.name for dataset in read_sources(["x/birds", "other=y/birds"])] == ["birds", "other"]
    with pytest.raises(UserError, match=r"'x/birds' and 'y/birds' both hold a dataset 'birds'; .*NAME=PATH"):
        read_sources(["x/birds", "y/birds"])
    with pytest.raises(UserError, match=r"no source is given; name a folder of class folders, a .csv .*, or demo$"):
        read_sources([])


def test_every_format_says_so_when_its_path_is_missing() -> None:
    for name in SOURCES.keys() - {"demo"}:
        with pytest.raises(UserError, match="absent"):
            read_source(f"{name}:absent")


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, for root may read everything."""

    def refuse(self: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match="cannot read secret/birds: no permission"):
        read_source("secret/birds")
    with pytest.raises(UserError, match="cannot read the folder secret/birds: no permission"):
        read_source("folder:secret/birds")
