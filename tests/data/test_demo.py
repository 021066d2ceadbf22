"""The demo data: deterministic, whole, unequal in size, and honest about what it is made of."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unimetric.data.images import encode_image
from unimetric.data.sources import read_source
from unimetric.data.sources.demo import DOMAINS, build, build_demo, glyphs, icons, packages, photographs
from unimetric.data.sources.demo.drawing import Drawing, generator, place
from unimetric.data.splits import split_datasets
from unimetric.errors import UserError


def refuse(*_: object, **__: object) -> None:
    pytest.fail("not to be called")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole demo data, built without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return build_demo(tmp_path_factory.mktemp("demo"))


Painters = dict[str, Callable[[], Iterator[Drawing]]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Painters:
    """Three pictures of every domain, for tests of the building, not of the pictures; tests may change them."""

    def first(paint: Callable[[], Iterator[Drawing]]) -> Callable[[], Iterator[Drawing]]:
        return lambda: islice(paint(), 3)

    painters = {domain: first(paint) for domain, paint in build.PAINTERS.items()}
    monkeypatch.setattr(build, "PAINTERS", painters)
    return painters


def pictures(folder: Path) -> list[Path]:
    return [path for domain in DOMAINS for path in sorted((folder / domain).glob("*/*"))]


def record(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    found: dict[str, dict[str, dict[str, object]]] = json.loads((folder / "fingerprint.json").read_text())
    return found


@pytest.mark.soak
def test_same_packages_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = build_demo(tmp_path)
    assert again.name == root.name
    assert record(again) == record(root)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (again / file).read_bytes() == (root / file).read_bytes(), file


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_picture_is_the_same_whenever_it_is_drawn(root: Path, domain: str) -> None:
    numbers: Counter[str] = Counter()
    for position, drawing in enumerate(build.PAINTERS[domain]()):
        numbers[drawing.label] += 1
        if position % 16 == 0:
            stem = f"{numbers[drawing.label]:02d}-{drawing.origin}"
            (file,) = (root / domain / drawing.label).glob(f"{stem}.*")
            kind, options = ("PNG", {}) if file.suffix == ".png" else ("JPEG", {"quality": drawing.jpeg_quality})
            assert file.read_bytes() == encode_image(drawing.draw(), kind, **options), file


def test_fingerprint_is_of_paths_and_pixels(root: Path) -> None:
    for domain in DOMAINS:
        digest = hashlib.sha256()
        files = {f"{path.parent.name}/{path.name}": path for path in (root / domain).glob("*/*")}
        for name in sorted(files):
            pixels = np.asarray(Image.open(files[name]))
            digest.update(f"{name}\0{pixels.shape[1]}\0{pixels.shape[0]}\0".encode() + pixels.tobytes())
        classes = {name.partition("/")[0] for name in files}
        assert record(root)["domains"][domain] == {
            "classes": len(classes),
            "images": len(files),
            "sha256": digest.hexdigest(),
        }


def test_every_picture_shows_something(root: Path) -> None:
    for path in pictures(root):
        with Image.open(path) as file:
            assert file.mode == "RGB"
            assert min(file.size) >= 128
            assert np.asarray(file.convert("L"), dtype=float).std() > 4, path


def test_no_picture_occurs_twice(root: Path) -> None:
    seen: dict[bytes, Path] = {}
    for path in pictures(root):
        with Image.open(path) as file:
            first = seen.setdefault(hashlib.sha256(file.tobytes()).digest(), path)
        assert first == path, f"{path} repeats {first}"


def test_domains_are_unequal_and_small_enough_for_a_laptop(root: Path) -> None:
    sizes = {dataset.name: len(dataset.items) for dataset in read_source(str(root))}
    assert tuple(sizes) == DOMAINS
    assert max(sizes.values()) >= 3 * min(sizes.values())
    assert 1500 <= sum(sizes.values()) <= 2600


def test_halves_share_no_class_and_can_be_measured(root: Path) -> None:
    split = split_datasets(read_source(str(root)))
    train = {(item.dataset, item.label) for item in split.train}
    tested = Counter((item.dataset, item.label) for item in split.query)
    assert not train & tested.keys()
    assert min(tested.values()) >= 2
    assert {dataset for dataset, _ in train} == {dataset for dataset, _ in tested} == set(DOMAINS)


@pytest.mark.parametrize("kind", ["latin", "greek", "cyrillic", "sign|mark|ampersand|at"])
def test_both_halves_of_the_glyphs_hold_every_kind(kind: str) -> None:
    names = sorted(glyphs.class_name(character) for character in glyphs.LATIN + glyphs.OTHERS)
    assert len(set(names)) == len(names)
    middle = (len(names) + 1) // 2
    for half in (names[:middle], names[middle:]):
        assert sum(bool(re.search(rf"(^|-)({kind})(-|$)", name)) for name in half) >= 2


def test_no_photograph_lies_in_both_halves() -> None:
    labels = sorted({drawing.label for drawing in photographs.photograph_drawings()})
    middle = (len(labels) + 1) // 2
    first, second = ({label.rpartition("-")[0] for label in half} for half in (labels[:middle], labels[middle:]))
    assert not first & second


@pytest.mark.parametrize("photograph", photographs.PHOTOGRAPHS, ids=lambda photograph: photograph.name)
def test_regions_lie_in_the_photograph_and_do_not_overlap(photograph: photographs.Photograph) -> None:
    with Image.open(packages.package_file(photograph.package, photograph.path)) as file:
        cover = np.zeros(file.size, dtype=int)
        for left, top, side in photograph.regions(file.size):
            assert 0 <= left <= file.width - side
            assert 0 <= top <= file.height - side
            cover[left : left + side, top : top + side] += 1
    assert cover.max() == 1


@given(st.integers(0, 2**32))
def test_no_view_leaves_its_region(seed: int) -> None:
    corners = photographs._corners(np.random.default_rng(seed), 100)
    assert corners.min() >= 0
    assert corners.max() <= 100


@given(st.integers(0, 2**32))
def test_a_view_maps_its_corners_to_the_quadrilateral(seed: int) -> None:
    corners = photographs._corners(np.random.default_rng(seed), 100)
    a, b, c, d, e, f, g, h = photographs._perspective(corners)
    last = photographs.VIEW
    for (x, y), corner in zip([(0, 0), (last, 0), (last, last), (0, last)], corners, strict=True):
        depth = g * x + h * y + 1
        assert np.allclose([(a * x + b * y + c) / depth, (d * x + e * y + f) / depth], corner)


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 200))
def test_the_centre_crop_keeps_the_whole_shape(seed: int, width: int, height: int) -> None:
    shape = Image.new("L", (200, 200))
    shape.paste(255, (0, 0, width, height))
    picture = np.asarray(place(shape, np.random.default_rng(seed), turn=20.0))
    edge = 8
    ground = picture[0, 0]
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[edge:-edge, edge:-edge] = True
    assert (picture[~inside] == ground).all()
    assert (picture[inside] != ground).any()


def test_random_numbers_depend_on_the_picture_alone() -> None:
    assert generator("icons", "cat", "mdi").uniform() == generator("icons", "cat", "mdi").uniform()
    assert generator("icons", "cat", "mdi").uniform() != generator("icons", "catmdi", "").uniform()


def test_computer_modern_has_the_letters_where_unicode_has_them() -> None:
    from fontTools.ttLib import TTFont

    for font in glyphs._LATIN_ONLY_FONTS:
        names = TTFont(glyphs._path(font)).getBestCmap()
        assert "".join(names[ord(letter)] for letter in glyphs.LATIN) == glyphs.LATIN


def test_every_font_has_the_characters_that_are_drawn_in_it() -> None:
    from fontTools.ttLib import TTFont

    for font in glyphs._FONTS:
        assert TTFont(glyphs._path(font)).getBestCmap().keys() >= {ord(c) for c in glyphs.LATIN + glyphs.OTHERS}


def test_an_icon_that_few_packs_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icons, "CLASSES", ("shrimp", "no-such-thing"))
    monkeypatch.setattr(icons, "_FEWEST", 1)
    with pytest.raises(UserError, match="draw 'no-such-thing' in 0 ways only, 1 are needed; run: pip install"):
        list(icons.icon_drawings())


def test_a_drawing_that_repeats_another_is_left_out() -> None:
    square, dot = Image.new("L", (100, 100)), Image.new("L", (100, 100))
    square.paste(255, (10, 10, 90, 90))
    dot.paste(255, (10, 10, 90, 20))
    masks = [("a", square), ("b", square.copy()), ("empty", Image.new("L", (100, 100))), ("c", dot)]
    assert [origin for origin, _ in icons._distinct(iter(masks))] == ["a", "c"]


def test_licences_name_everything_and_quote_what_is_shipped(root: Path) -> None:
    text = (root / "LICENSES.md").read_text(encoding="utf-8")
    for photograph in photographs.PHOTOGRAPHS:
        assert f"| `{photograph.name}-*` | {photograph.package}: `{photograph.path}` | {photograph.credit} |" in text
    for copyright_line in (
        "Copyright (c) Tailwind Labs",
        "Copyright (c) Lucide Contributors",
        "Copyright (c) Google LLC",
        "Copyright (c) Pictogrammers",
        "Copyright (c) Phosphor Icons",
        "Font Awesome Free icons by @fontawesome",
        "Copyright (c) 2003 by Bitstream, Inc.",
        "Copyright (c) 2001-2010 by the STI Pub Companies",
    ):
        assert copyright_line in text


def test_what_is_there_is_not_built_again(root: Path) -> None:
    before = root.stat()
    assert build_demo(root.parent) == root
    assert (root.stat().st_ino, root.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_there_is_found_without_heavy_imports(root: Path) -> None:
    heavy = ("torch", "resvg_py", "fontTools", "matplotlib", "skimage", "sklearn")
    code = (
        "import sys; from pathlib import Path; from unimetric.data.sources.demo import build_demo;"
        f"build_demo(Path(sys.argv[1])); print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, root.parent], capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


@pytest.mark.usefixtures("small")
def test_the_default_place_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    assert build_demo().parent == tmp_path / "cache"


def lose_picture(folder: Path) -> None:
    pictures(folder)[-1].unlink()


def lose_fingerprint(folder: Path) -> None:
    (folder / "fingerprint.json").unlink()


def spoil_fingerprint(folder: Path) -> None:
    (folder / "fingerprint.json").write_text('{"format": 1, "domains": []}')


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [lose_picture, lose_fingerprint, spoil_fingerprint])
def test_damaged_data_are_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = build_demo(tmp_path)
    before = record(folder)
    damage(folder)
    assert build_demo(tmp_path) == folder
    assert record(folder) == before
    assert len(pictures(folder)) == 3 * len(DOMAINS)
    assert list(tmp_path.glob("*demo-data-*")) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_what_was_there(
    tmp_path: Path, small: Painters, error: type[BaseException]
) -> None:
    paint = small["photographs"]

    def stop() -> Iterator[Drawing]:
        yield from paint()
        raise error

    small["photographs"] = stop
    with pytest.raises(error):
        build_demo(tmp_path)
    assert list(tmp_path.glob("*demo-data-*")) == []
    small["photographs"] = paint
    folder = build_demo(tmp_path)
    lose_fingerprint(folder)
    small["photographs"] = stop
    with pytest.raises(error):
        build_demo(tmp_path)
    assert list(tmp_path.glob("*demo-data-*")) == [folder]
    assert len(pictures(folder)) == 3 * len(DOMAINS)


def test_of_two_builds_at_once_one_does_the_work(tmp_path: Path, small: Painters) -> None:
    paint, begun = small["digits"], threading.Event()

    def paint_once() -> Iterator[Drawing]:
        small["digits"] = refuse
        begun.set()
        yield from paint()

    small["digits"] = paint_once
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build_demo, tmp_path)
        begun.wait(60)
        assert build_demo(tmp_path) == first.result()
    assert build.is_complete(first.result())


@pytest.mark.usefixtures("small")
def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".demo-data-old").mkdir()
    (tmp_path / ".demo-data-old" / "half.png").write_bytes(b"")
    folder = build_demo(tmp_path)
    assert list(tmp_path.glob("*demo-data-*")) == [folder]


def test_other_versions_get_another_folder(
    root: Path, small: Painters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "version", lambda package: "1")
    assert build_demo(tmp_path).name != root.name


def test_missing_packages_are_all_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("resvg-py", "justmyresource-mdi"):
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(packages, "version", version)
    with pytest.raises(UserError) as caught:
        build_demo(tmp_path)
    assert str(caught.value) == (
        "the demo data needs packages that are not installed: justmyresource-mdi, resvg-py; "
        "run: pip install '.[demo]' in the checkout of unimetric"
    )
    assert list(tmp_path.glob("*demo-data-*")) == []


def test_a_package_without_the_file_is_named() -> None:
    with pytest.raises(UserError, match=r"package matplotlib lacks no/such\.ttf.*; run: pip install"):
        packages.package_file("matplotlib", "no/such.ttf")


def test_a_file_in_the_way_is_said_in_one_line(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    place.write_text("")
    with pytest.raises(UserError, match=r"cannot create the folder .*cache: a file of that name exists"):
        build_demo(place)


def test_fonts_are_those_of_every_matplotlib_that_may_be_installed() -> None:
    """The versions for Python 3.10 (3.9, 3.10) have no Computer Modern italic, and none has more than these."""
    dejavu = {f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")}
    dejavu |= {f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")}
    dejavu |= {f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")}
    stix = {f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")}
    computer_modern = {"cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10", "cmtt10"}
    drawn = {drawing.origin for drawing in glyphs.glyph_drawings()}
    assert drawn
    assert drawn <= {font.lower() for font in dejavu | stix | computer_modern}
