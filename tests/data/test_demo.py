"""The demo data: deterministic, whole, unequal, and honest about what it needs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from unimetric.data.sources import demo
from unimetric.data.sources.demo import DOMAINS, build_demo
from unimetric.data.sources.demo.common import SIDE, Picture
from unimetric.data.sources.folder import read_folder
from unimetric.data.splits import split_datasets
from unimetric.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def small_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheapest domain alone, for tests of the building, not of the pictures."""
    monkeypatch.setattr(demo, "DOMAINS", {"digits": DOMAINS["digits"]})


def test_the_same_packages_give_the_same_pictures(root: Path, tmp_path: Path) -> None:
    again = build_demo(tmp_path)
    assert again.name == root.name
    assert json.loads((again / "fingerprint.json").read_text()) == json.loads((root / "fingerprint.json").read_text())


def test_the_fingerprint_covers_names_and_pixels(root: Path) -> None:
    record = json.loads((root / "fingerprint.json").read_text())
    for domain in DOMAINS:
        parts = []
        for path in (root / domain).glob("*/*.png"):
            with Image.open(path) as image:
                assert (image.mode, image.size) == ("RGB", (SIDE, SIDE)), path
                parts.append((path, hashlib.sha256(image.tobytes()).digest()))
        assert len(parts) == record["domains"][domain]["images"]
        order = [picture.label for picture in _in_order(domain)]
        positions = {label: order.index(label) for label in order}
        parts.sort(key=lambda part: (positions[part[0].parent.name], part[0].name))
        digest = hashlib.sha256()
        for path, pixels in parts:
            digest.update(f"{path.parent.name}/{path.name}".encode() + pixels)
        assert digest.hexdigest() == record["domains"][domain]["sha256"]


def _in_order(domain: str) -> list[Picture]:
    pictures: list[Picture] = list(DOMAINS[domain].pictures())
    return pictures


def test_no_picture_occurs_twice_in_a_domain(root: Path) -> None:
    for domain in DOMAINS:
        found = Counter(Image.open(path).tobytes() for path in (root / domain).glob("*/*.png"))
        assert max(found.values()) == 1, domain


def test_no_picture_is_empty(root: Path) -> None:
    for path in root.glob("*/*/*.png"):
        low, high = Image.open(path).convert("L").getextrema()
        assert high - low > 20, path


def test_sizes_are_unequal_and_both_halves_can_be_measured(root: Path) -> None:
    datasets = read_folder(root, None)
    assert [dataset.name for dataset in datasets] == sorted(DOMAINS)
    sizes = sorted(len(dataset.items) for dataset in datasets)
    assert sizes[-1] >= 3 * sizes[0]
    split = split_datasets(datasets)
    members: dict[tuple[str, str], int] = defaultdict(int)
    for item in split.query:
        members[item.dataset, item.label] += 1
    assert min(members.values()) >= 2
    assert not {(item.dataset, item.label) for item in split.train} & members.keys()


def test_whose_work_it_is_is_said_for_every_package(root: Path) -> None:
    text = (root / "LICENCES.md").read_text()
    for module in DOMAINS.values():
        for package in module.PACKAGES:
            # resvg-py only draws; nothing of it is in the pictures.
            assert package == "resvg-py" or package in text, package


@pytest.mark.usefixtures("small_domains")
def test_what_is_there_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_demo(tmp_path)
    monkeypatch.setattr(demo, "_build", lambda *_: pytest.fail("built again"))
    assert build_demo(tmp_path) == first


@pytest.mark.usefixtures("small_domains")
def test_a_missing_picture_is_noticed(tmp_path: Path) -> None:
    folder = build_demo(tmp_path)
    lost = next(folder.glob("*/*/*.png"))
    lost.unlink()
    assert build_demo(tmp_path) == folder
    assert lost.is_file()


@pytest.mark.usefixtures("small_domains")
def test_another_version_of_a_package_gets_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_demo(tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0.1")
    assert build_demo(tmp_path) != first


@pytest.mark.usefixtures("small_domains")
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        build_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "resvg-py":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=r"resvg-py: pip install 'unimetric\[demo\]'"):
        build_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []
