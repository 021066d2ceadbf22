"""Measurements of single images for an audit, in one pass that can be stopped and resumed.

The results are memory-mapped arrays with one row per image, so that a million images do not have to fit in memory.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from unimetric.data.catalog import Item
from unimetric.data.images import ImageError, decode_image, image_file, split_box
from unimetric.data.near_copies import SIDE, small_grey
from unimetric.errors import UserError
from unimetric.files import explain_os_error, make_folder, write_json
from unimetric.models.embedder import Embedder
from unimetric.progress import progress_bar

HASH_BITS = 256

BLANK = 3.0
"""Spread of the grey values, from 0 to 255, below which a picture is blank."""

_CHUNK = 128


@dataclass(frozen=True)
class Measurements:
    """Measurements of N images, in the order of ``items``.

    Attributes:
        items: The images.
        folder: Folder of the arrays.
        key: Changes with the images and the model.
        reasons: For each image that cannot be read, its row and the reason.
        files: SHA-256 of each file, uint8 [N, 32].
        pixels: SHA-256 of the size and the decoded RGB pixels, uint8 [N, 32].
        hashes: Perceptual hashes of each picture and of its mirror image, uint8 [N, 2, 32].
        grey: Each picture as `SIDE` x `SIDE` grey values, stretched, uint8 [N, SIDE, SIDE].
        numbers: Width, height, spread of the grey values (0 to 128) and sharpness, float32 [N, 4].
        vectors: Unit vectors, float32 [N, E].
    """

    items: tuple[Item, ...]
    folder: Path
    key: str
    reasons: dict[int, str]
    files: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    hashes: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    numbers: NDArray[np.float32]
    vectors: NDArray[np.float32]

    @property
    def readable(self) -> NDArray[np.int64]:
        """Rows of the images that can be read, ascending."""
        return np.setdiff1d(np.arange(len(self.items)), np.array(list(self.reasons), dtype=np.int64))

    @property
    def shows_something(self) -> NDArray[np.int64]:
        """Rows of the readable images that are not blank, ascending."""
        readable = self.readable
        shown: NDArray[np.int64] = readable[self.numbers[readable, 2] >= BLANK]
        return shown


def measure(items: Sequence[Item], embedder: Embedder, model: str, folder: Path, precision: str) -> Measurements:
    """Decode, hash and embed every image once; a new call resumes one that was stopped.

    Args:
        items: The images.
        embedder: Turns pictures into vectors.
        model: A name that changes with the model, so that vectors of another one are not reused.
        folder: Folder of the arrays.
        precision: As in `Embedder.encode`.

    Raises:
        UserError: the folder cannot be written, or no image can be read.
    """
    make_folder(folder)
    key = _key(items, model, precision)
    progress_file = folder / "progress.json"
    state = _state(progress_file, key)
    expected = _arrays(folder, len(items), embedder.embedding_size)
    opened = {name: _opened(*array) for name, array in expected.items()} if state["done"] else {}
    arrays: dict[str, Any] = {name: array for name, array in opened.items() if array is not None}
    if len(arrays) < len(expected):
        state = {"done": 0, "reasons": {}}
        arrays = {name: _made(*array) for name, array in expected.items()}
    reasons: dict[int, str] = {int(row): reason for row, reason in state["reasons"].items()}
    with progress_bar() as progress, ThreadPoolExecutor(2) as pool:
        task = progress.add_task("Reading images", total=len(items), completed=state["done"], note="")
        for start in range(state["done"], len(items), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(items)))
            pictures = []
            for row, found in zip(rows, pool.map(_read, (items[row].path for row in rows)), strict=True):
                if isinstance(found, str):
                    reasons[row] = found
                else:
                    pictures.append((row, found[0]))
                    for name, value in found[1].items():
                        arrays[name][row] = value
            if pictures:
                vectors = embedder.encode([picture for _, picture in pictures], precision=precision)
                arrays["vectors"][[row for row, _ in pictures]] = vectors
            for array in arrays.values():
                array.flush()
            write_json(progress_file, {"key": key, "done": rows.stop, "reasons": reasons})
            progress.update(task, completed=rows.stop, note=f"{len(reasons)} unreadable" if reasons else "")
    if len(reasons) == len(items):
        first = next(iter(reasons.values()))
        raise UserError(f"none of {len(items)} images can be read; the first is {items[0].path}: {first}")
    return Measurements(tuple(items), folder, key, reasons, **arrays)


def _key(items: Sequence[Item], model: str, precision: str) -> str:
    digest = hashlib.sha256(f"{model}\n{precision}\n{SIDE}\n".encode())
    for item in items:
        try:
            status = image_file(item.path).stat()
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            stamp = "missing"
        digest.update(f"{item.path}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _state(path: Path, key: str) -> dict[str, Any]:
    fresh = {"key": key, "done": 0, "reasons": {}}
    if not path.is_file():
        return fresh
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        valid = state["key"] == key and isinstance(state["done"], int) and isinstance(state["reasons"], dict)
    except (ValueError, KeyError, TypeError):
        return fresh
    return state if valid else fresh


def _arrays(folder: Path, count: int, width: int) -> dict[str, tuple[Path, tuple[int, ...], type]]:
    """Return path, shape and type of every array."""
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "files": ((32,), np.uint8),
        "pixels": ((32,), np.uint8),
        "hashes": ((2, HASH_BITS // 8), np.uint8),
        "grey": ((SIDE, SIDE), np.uint8),
        "numbers": ((4,), np.float32),
        "vectors": ((width,), np.float32),
    }
    return {name: (folder / f"{name}.npy", (count, *shape), kind) for name, (shape, kind) in shapes.items()}


def _opened(path: Path, shape: tuple[int, ...], kind: type) -> NDArray[Any] | None:
    """Return the array of an earlier call, or None if it is missing or damaged."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if array.shape != shape or array.dtype != kind:
        return None
    # Opened for writing only now, because that extends a truncated file.
    writable: NDArray[Any] = np.load(path, mmap_mode="r+", allow_pickle=False)
    return writable


def _made(path: Path, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
    with explain_os_error(path, "write"):
        array: NDArray[Any] = np.lib.format.open_memmap(path, "w+", kind, shape)
    return array


def _read(path: Path) -> tuple[Image.Image, dict[str, Any]] | str:
    """Return the decoded picture and its measurements, or the reason why it cannot be read."""
    try:
        file, box = split_box(path)
        content = file.read_bytes()
        picture = decode_image(path)
    except ImageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or "cannot be read"
    size = f"{picture.width} {picture.height} ".encode()
    grey = picture.convert("L")
    small = small_grey(grey)
    return picture, {
        "files": np.frombuffer(hashlib.sha256(content + repr(box or "").encode()).digest(), np.uint8),
        "pixels": np.frombuffer(hashlib.sha256(size + picture.tobytes()).digest(), np.uint8),
        "hashes": np.stack([perceptual_hash(grey), perceptual_hash(ImageOps.mirror(grey))]),
        "grey": small,
        "numbers": np.array([*picture.size, small.std(), _sharpness(grey)], np.float32),
    }


def perceptual_hash(grey: Image.Image) -> NDArray[np.uint8]:
    """Return the 256 bits of imagehash's DCT hash as uint8 [32].

    Raises:
        UserError: the package is not installed.
    """
    try:
        from imagehash import phash
    except ImportError as error:
        raise UserError("audit needs the package imagehash: pip install 'unimetric[audit]'") from error
    return np.packbits(phash(grey, hash_size=16).hash.ravel())


def _sharpness(grey: Image.Image) -> float:
    """Return the mean absolute Laplacian over the spread of the grey values, at 256 pixels; 0 for a flat picture."""
    scaled = ImageOps.contain(grey, (256, 256))
    edges = np.asarray(scaled.filter(ImageFilter.FIND_EDGES), np.float32)[2:-2, 2:-2]
    spread = float(np.asarray(scaled, np.float32).std())
    return float(edges.mean()) / spread if spread > 1 and edges.size else 0.0
