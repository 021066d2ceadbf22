"""Prepared images: what they are beside the sources' own, never stale, never half-written, and read by every worker."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toy_runs import make_images
from unimetric.data.cache import CacheKind, ImageCache, ImageReader, image_reader
from unimetric.data.catalog import Item
from unimetric.data.images import ImageError, decode_image
from unimetric.data.loading import training_loader
from unimetric.data.preparing import Prepared, prepare_cache
from unimetric.data.sampling import make_sampler
from unimetric.data.transforms import EvaluationTransform, TrainingTransform
from unimetric.errors import UserError

RAW = CacheKind(16, "raw")
JPEG = CacheKind(16, "jpeg")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return sorted(make_images(tmp_path / "images", classes=3, images=4).glob("*/*.png"))


def prepare(paths: list[Path], folder: Path, kind: CacheKind = RAW, strict: bool = False) -> Prepared:
    return prepare_cache(paths, folder, kind, threads=2, strict=strict)


def held(folder: Path, paths: list[Path]) -> int:
    return sum(ImageCache.open(folder).holds(path) for path in paths)


def pixels(image: Image.Image | None) -> np.ndarray:
    assert image is not None
    return np.asarray(image)


def test_raw_images_evaluate_exactly_as_their_sources(paths: list[Path], tmp_path: Path) -> None:
    """The stored shorter side is the one that the transform resizes to: nothing is left for it to do."""
    prepare(paths, tmp_path / "cache")
    cache = ImageCache.open(tmp_path / "cache")
    transform = EvaluationTransform(14, (0.5,) * 3, (0.5,) * 3)
    for path in paths:
        cached = cache.read(path)
        assert cached is not None
        assert min(cached.size) == 16
        assert transform(cached).equal(transform(decode_image(path)))


def test_small_images_are_stored_as_their_files_are(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache", CacheKind(64, "jpeg"))
    cache = ImageCache.open(tmp_path / "cache")
    for path in paths:
        np.testing.assert_array_equal(pixels(cache.read(path)), pixels(decode_image(path)))


def test_jpeg_images_are_near_their_sources_and_upright(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 60 * 40, dtype=np.uint8).reshape(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(path, exif=exif, quality=95)
    for kind in (JPEG, CacheKind(100, "jpeg")):
        folder = tmp_path / str(kind.side)
        prepare([path], folder, kind)
        cached = ImageCache.open(folder).read(path)
        assert cached is not None
        wanted = decode_image(path).resize(cached.size, Image.Resampling.BICUBIC)
        assert cached.width > cached.height
        assert np.abs(pixels(cached).astype(int) - pixels(wanted).astype(int)).mean() < 3


def test_what_is_unchanged_is_not_prepared_again(paths: list[Path], tmp_path: Path) -> None:
    first = prepare([*paths, paths[0]], tmp_path / "cache")
    assert (first.written, first.unchanged, first.images) == (12, 0, 12)
    assert first.bytes == sum(file.stat().st_size for file in (tmp_path / "cache").glob("??/*"))
    before = {file: file.read_bytes() for file in (tmp_path / "cache").glob("??/*")}
    assert prepare(paths, tmp_path / "cache").unchanged == 12
    assert {file: file.read_bytes() for file in (tmp_path / "cache").glob("??/*")} == before


def test_a_changed_source_is_noticed_even_with_its_old_size_and_time(paths: list[Path], tmp_path: Path) -> None:
    path = paths[0].with_suffix(".bmp")
    Image.new("RGB", (20, 20), "red").save(path)
    prepare([path, *paths], tmp_path / "cache")
    cache = ImageCache.open(tmp_path / "cache")
    before = path.stat()
    Image.new("RGB", (20, 20), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert cache.read(path) is None
    assert ImageReader(cache)(path).getpixel((0, 0)) == (0, 0, 255)
    (note,) = ImageReader(cache).notes([path, *paths])
    assert note.startswith("1 of 13 images")
    assert str(path) in note
    again = prepare([path, *paths], tmp_path / "cache")
    assert (again.written, again.unchanged, again.images) == (1, 12, 13)
    assert pixels(ImageCache.open(tmp_path / "cache").read(path))[0, 0].tolist() == [0, 0, 255]


def test_the_copy_of_a_touched_source_replaces_the_old_one(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache")
    os.utime(paths[0])
    assert ImageCache.open(tmp_path / "cache").read(paths[0]) is None
    again = prepare(paths[:1], tmp_path / "cache")
    assert (again.written, again.images) == (1, 12)
    assert ImageCache.open(tmp_path / "cache").read(paths[0]) is not None


def test_a_vanished_source_is_not_served(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache")
    paths[0].unlink()
    assert ImageCache.open(tmp_path / "cache").read(paths[0]) is None


def test_an_image_is_known_through_links(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache")
    (tmp_path / "link").symlink_to(paths[0].parent)
    assert ImageCache.open(tmp_path / "cache").read(tmp_path / "link" / paths[0].name) is not None


def test_unreadable_images_are_named_and_others_prepared(paths: list[Path], tmp_path: Path) -> None:
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:80])
    gone = tmp_path / "gone.png"
    prepared = prepare([*paths, gone, tmp_path], tmp_path / "cache")
    reasons = {error.path: error.reason for error in prepared.refused}
    assert reasons == {
        paths[0]: "empty file",
        paths[1]: "truncated",
        gone: "file not found",
        tmp_path: "a folder, not a file",
    }
    assert prepared.images == 10
    with pytest.raises(UserError, match=r"0\.png: empty file; --strict is set"):
        prepare(paths, tmp_path / "cache", strict=True)


def test_an_interrupted_preparation_keeps_what_it_did(paths: list[Path], tmp_path: Path) -> None:
    def stop(read: int) -> None:
        if read == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_cache(paths, tmp_path / "cache", RAW, threads=1, on_read=stop)
    begun = held(tmp_path / "cache", paths)
    assert 5 <= begun < 12
    assert prepare(paths, tmp_path / "cache").written == 12 - begun


KILLED = """
import os, sys
from pathlib import Path
from unimetric.data.cache import CacheKind
from unimetric.data.preparing import prepare_cache
rename = Path.replace
def half(self, target):
    if len(list(Path(sys.argv[2]).glob("??/[!.]*"))) == 4:
        os.truncate(self, self.stat().st_size // 2)
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.replace = half
prepare_cache(sorted(Path(sys.argv[1]).glob("*/*.png")), Path(sys.argv[2]), CacheKind(16, "raw"), threads=1)
"""


def test_a_killed_preparation_leaves_no_half_file_and_goes_on(paths: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(paths[0].parents[1]), str(cache)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -9
    assert list(cache.glob("??/.*"))
    assert held(cache, paths) == 4
    assert prepare(paths, cache).written == 8
    assert not list(cache.glob("??/.*"))
    assert all(min(pixels(ImageCache.open(cache).read(path)).shape[:2]) == 16 for path in paths)


def test_two_do_not_prepare_into_one_folder(paths: list[Path], tmp_path: Path) -> None:
    def prepare_beside(read: int) -> None:
        with pytest.raises(UserError, match="another process"):
            prepare(paths, tmp_path / "cache")

    assert prepare_cache(paths, tmp_path / "cache", RAW, threads=1, on_read=prepare_beside).written == 12


def test_threads_and_copies_in_other_processes_read_the_same(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache")
    cache = ImageCache.open(tmp_path / "cache")
    copied = pickle.loads(pickle.dumps(cache))
    with ThreadPoolExecutor(4) as pool:
        read = [pixels(image) for image in pool.map(cache.read, paths * 5)]
    for number, path in enumerate(paths * 5):
        np.testing.assert_array_equal(read[number], pixels(copied.read(path)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_from_the_cache(workers: int, paths: list[Path], tmp_path: Path) -> None:
    """At least as large a cache as the images: with and without it, the same batches."""
    prepare(paths, tmp_path / "cache", CacheKind(64, "raw"))
    items = [Item(path, path.parent.name, "a") for path in paths]
    numbers = [int(item.label[1:]) for item in items]

    def batches(read: ImageReader, count: int) -> list[torch.Tensor]:
        sampler = make_sampler("natural", {}, numbers, None, 4)
        sampler.start(0)
        transform = TrainingTransform(16)
        with training_loader(items, numbers, transform, sampler, seed=0, workers=count, read=read) as loader:
            return [batch.images for batch in loader]

    cached = batches(image_reader(str(tmp_path / "cache"), False, 16, "data.cache"), workers)
    assert all(one.equal(other) for one, other in zip(cached, batches(ImageReader(), 0), strict=True))


def test_caches_that_do_not_fit_are_refused(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"--data.cache is .*shorter side of 16 .*input of 16 is cut from 18.*--side 18"
    ):
        image_reader(str(tmp_path / "cache"), False, 16, "data.cache")
    with pytest.raises(UserError, match="holds images of 16 pixels in the format raw, not images of"):
        prepare(paths, tmp_path / "cache", JPEG)
    with pytest.raises(UserError, match="is not a folder: make one with: unimetric prepare"):
        image_reader(str(tmp_path / "absent"), False, 16, "data.cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no prepared images"):
        ImageCache.open(tmp_path / "empty")
    for content in ("", "x" * 1000, "[]", '{"side": 16}'):
        (tmp_path / "cache/cache.json").write_text(content)
        with pytest.raises(UserError, match=r"cache\.json is damaged: delete .* and prepare it again"):
            ImageCache.open(tmp_path / "cache")


def test_a_damaged_copy_is_named_with_its_cache(paths: list[Path], tmp_path: Path) -> None:
    prepare(paths, tmp_path / "cache")
    cache = ImageCache.open(tmp_path / "cache")
    copy = cache.copy_of(paths[0])
    copy.write_bytes(copy.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"0\.png: truncated in the cache .*cache; delete it"):
        cache.read(paths[0])


def test_reduced_decoding_keeps_enough_pixels_and_nearly_the_same_image(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:400, 0:600]
    waves = np.stack([np.sin(rows / 30), np.cos(columns / 50), np.sin((rows + columns) / 40)], axis=2)
    path = tmp_path / "waves.jpg"
    Image.fromarray(np.uint8(127 + 100 * waves)).save(path, quality=95)
    full = decode_image(path)
    for at_least, side in ((400, 400), (201, 400), (200, 200), (60, 100), (10, 50)):
        reduced = decode_image(path, at_least=at_least)
        assert min(reduced.size) == side
        difference = pixels(reduced.resize((60, 40))).astype(int) - pixels(full.resize((60, 40))).astype(int)
        assert np.abs(difference).mean() < 1.5
    png = tmp_path / "waves.png"
    full.save(png)
    assert decode_image(png, at_least=10).size == full.size
