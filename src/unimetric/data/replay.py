"""A replay set: a few train images of every class, kept small, so that a model can learn more without forgetting.

A folder with ``manifest.csv`` (an ordinary manifest), ``images/`` (JPEG files as small as the model reads them), and
``replay.json`` (all classes in the order of the model's proxies, the size of the images, bytes).
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.data.catalog import ClassIndex, Item
from unimetric.data.cropping import resize_shorter_side, resized_side
from unimetric.data.images import LONGEST_JPEG, ImageError, decode_image, encode_image
from unimetric.data.selection import select_train
from unimetric.data.sources.manifest import read_manifest
from unimetric.data.splits import Split
from unimetric.errors import UserError
from unimetric.files import csv_text, explain_os_error, make_folder, parse_json, write_json, write_text

FORMAT = 1
ABOUT, MANIFEST, IMAGES = "replay.json", "manifest.csv", "images"
QUALITY = 90


@dataclass(frozen=True)
class ReplaySet:
    """Content of a replay folder.

    Args:
        items: The images, as train items.
        classes: The (dataset, label) of every class that the model was trained on, in the order of its proxies.
        image_size: The input size in pixels that the images were made small for.
        images_per_class: At most.
        bytes: Size of the image files.
    """

    items: tuple[Item, ...]
    classes: tuple[tuple[str, str], ...]
    image_size: int
    images_per_class: int
    bytes: int

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of the datasets that the model was trained on, sorted."""
        return tuple(sorted({dataset for dataset, _ in self.classes}))


def choose_replay(train: Sequence[Item], images_per_class: int, seed: int) -> tuple[Item, ...]:
    """Choose images of each class; the choice does not depend on other classes, and fewer are a subset of more."""
    split = Split(train=tuple(train), validation=(), query=(), gallery=())
    return select_train(split, few_shot=images_per_class, seed=seed).train


def write_replay(
    folder: Path, train: Sequence[Item], image_size: int, images_per_class: int, seed: int
) -> tuple[ReplaySet, list[str]]:
    """Choose images, reduce them and write them; an existing replay set is replaced.

    Images are resized as for evaluation (the shorter side is 256/224 of the input size), but never enlarged, and
    written as JPEG; images of another replay set are copied as they are. With the set comes a remark for each image
    that could not be read and was skipped.

    Raises:
        UserError: No image can be read, a full disk, or no permission.
    """
    chosen = choose_replay(train, images_per_class, seed)
    make_folder(folder.parent)
    notes: list[str] = []
    with (
        explain_os_error(folder, "write"),
        tempfile.TemporaryDirectory(prefix=".replay-", dir=folder.parent) as staging,
    ):
        # A subfolder, because moving keeps the mode, and the staging folder is readable by its owner only.
        staged = make_folder(Path(staging) / "replay")
        (staged / IMAGES).mkdir()
        rows: list[tuple[str, str, str, str]] = []
        for item in chosen:
            name = f"{IMAGES}/{len(rows):06d}.jpg"
            try:
                _keep(item.path, staged / name, image_size)
            except ImageError as error:
                notes.append(f"replay: {item.path} is skipped: {error.reason}")
                continue
            rows.append((name, item.label, item.dataset, "train"))
        if not rows:
            raise UserError(f"none of {len(chosen)} images for the replay set can be read; the first is {notes[0]}")
        write_text(staged / MANIFEST, csv_text([("path", "label", "dataset", "split"), *rows]))
        about = {
            "format": FORMAT,
            "classes": ClassIndex.of(train).classes,
            "image_size": image_size,
            "images_per_class": images_per_class,
            "seed": seed,
            "images": len(rows),
            "bytes": sum(path.stat().st_size for path in (staged / IMAGES).iterdir()),
        }
        write_json(staged / ABOUT, about)
        if folder.exists():
            shutil.rmtree(folder)
        staged.replace(folder)
    return read_replay(folder), notes


def has_replay(folder: Path) -> bool:
    """Return True if the folder holds a replay set."""
    return (folder / ABOUT).is_file()


def read_replay(folder: Path) -> ReplaySet:
    """Read a replay folder; a `UserError` if it is missing or damaged."""
    path = folder / ABOUT
    if not path.is_file():
        raise UserError(f"{folder} holds no replay set: it has no {ABOUT}")
    try:
        with explain_os_error(path, "read"):
            about: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        classes = tuple((str(dataset), str(label)) for dataset, label in about["classes"])
        sizes = [about[name] for name in ("format", "image_size", "images_per_class", "bytes")]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): write the replay set again from the old images") from error
    if sizes[0] != FORMAT or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"{path} is damaged or of another version: write the replay set again from the old images")
    items = tuple(item for dataset in read_manifest(folder / MANIFEST) for item in dataset.items)
    if unknown := next((item for item in items if (item.dataset, item.label) not in set(classes)), None):
        raise UserError(
            f"{folder / MANIFEST} has a class {unknown.label!r} of {unknown.dataset!r} that {ABOUT} lacks: "
            "write the replay set again from the old images"
        )
    return ReplaySet(items, classes, *sizes[1:])


def _keep(source: Path, target: Path, image_size: int) -> None:
    if source.suffix == ".jpg" and has_replay(source.parent.parent):
        shutil.copyfile(source, target)
        return
    image = decode_image(source)
    side = resized_side(image_size)
    if min(image.size) > side:
        image = resize_shorter_side(image, side)
    # JPEG has a longest side; training crops of such a sliver are nearly all from its inside.
    left, top = (max(0, length - LONGEST_JPEG) // 2 for length in image.size)
    cut = image.crop((left, top, image.width - left, image.height - top))
    target.write_bytes(encode_image(cut, "JPEG", quality=QUALITY))
