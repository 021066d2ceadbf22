"""More than 300 files as they should not be, made by code, and what has to become of each."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tiff", "BMP": "bmp"}
NAMES = ["größe.jpg", "日本.png", "new\nline.jpg", "-rf.jpg", "quote'\".jpg", "x" * 200 + ".jpg", " .jpg", "%s.jpg"]


@dataclass
class Corpus:
    """Files by what has to become of them."""

    good: list[Path] = field(default_factory=list)
    """To be used."""
    bad: list[Path] = field(default_factory=list)
    """To be refused."""
    damaged: list[Path] = field(default_factory=list)
    """Used or refused, as the decoder can make something of them or not."""
    no_files: list[Path] = field(default_factory=list)
    """Pipes, sockets, devices, links to nothing, to folders, and in a circle; and names that are no text, escaped."""

    @property
    def files(self) -> list[Path]:
        return [*self.good, *self.bad, *self.damaged]


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise on a slope."""
    noise = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3))
    slope = np.linspace(0, 190, size[0])[None, :, None]
    return Image.fromarray((slope + noise).astype(np.uint8))


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def build(folder: Path) -> Corpus:
    """Write all of it into a folder, which is made."""
    folder.mkdir(parents=True)
    corpus = Corpus()
    for kind, ending in KINDS.items():
        _damage(corpus, folder, encoded(kind), ending)
    _odd_images(corpus, folder)
    _odd_names(corpus, folder)
    _no_images(corpus, folder)
    _no_files(corpus, folder)
    return corpus


def _put(files: list[Path], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    files.append(path)


def _damage(corpus: Corpus, folder: Path, content: bytes, ending: str) -> None:
    _put(corpus.good, folder / f"whole.{ending}", content)
    for other in set(KINDS.values()) - {ending}:
        _put(corpus.good, folder / f"really-{ending}.{other}", content)
    _put(corpus.bad, folder / f"cut-00.{ending}", b"")
    for percent in range(5, 100, 5):
        _put(corpus.damaged, folder / f"cut-{percent:02}.{ending}", content[: len(content) * percent // 100])
    random = np.random.default_rng(1)
    for number in range(20):
        flipped = bytearray(content)
        for _ in range(3):
            flipped[random.integers(len(flipped))] ^= 1 << int(random.integers(8))
        _put(corpus.damaged, folder / f"flipped-{number:02}.{ending}", bytes(flipped))


def _odd_images(corpus: Corpus, folder: Path) -> None:
    good, frames = corpus.good, [picture(2), picture(3)]
    _put(good, folder / "one.png", encoded("PNG", Image.new("RGB", (1, 1), (9, 9, 9))))
    _put(good, folder / "long.png", encoded("PNG", picture(size=(3000, 2))))
    deep = Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))
    _put(good, folder / "sixteen-bit.png", encoded("PNG", deep))
    _put(good, folder / "cmyk.jpg", encoded("JPEG", picture().convert("CMYK")))
    _put(good, folder / "grey-and-transparent.png", encoded("PNG", picture().convert("LA")))
    _put(good, folder / "palette.png", encoded("PNG", picture().convert("P"), transparency=3))
    for kind in ("GIF", "WEBP", "PNG"):
        moving = encoded(kind, save_all=True, append_images=frames)
        _put(good, folder / f"moving.{KINDS[kind]}", moving)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        _put(good, folder / f"turned-{orientation}.jpg", encoded("JPEG", exif=exif))


def _odd_names(corpus: Corpus, folder: Path) -> None:
    for name in NAMES:
        _put(corpus.good, folder / name, encoded("JPEG"))


def _no_images(corpus: Corpus, folder: Path) -> None:
    _put(corpus.bad, folder / "bomb.png", _bomb(60_000, 60_000))
    _put(corpus.bad, folder / "text.jpg", b"not an image")
    _put(corpus.bad, folder / "drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    _put(corpus.bad, folder / "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    _put(corpus.bad, folder / "archive.jpg", b"PK\x03\x04" + bytes(100))
    _put(corpus.bad, folder / "noughts.png", bytes(1000))


def _no_files(corpus: Corpus, folder: Path) -> None:
    names = ("pipe.jpg", "socket.jpg", "zeros.jpg", "nowhere.jpg", "folder.jpg", "circle.jpg", "circle")
    corpus.no_files += [folder / name for name in names]
    os.mkfifo(folder / "pipe.jpg")
    # A socket's path may be no longer than some 100 bytes.
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
    os.fchdir(here)
    os.close(here)
    (folder / "zeros.jpg").symlink_to("/dev/zero")
    (folder / "nowhere.jpg").symlink_to("not-there.jpg")
    (folder / "folder.jpg").symlink_to(folder)
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "circle").symlink_to(folder)
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded("JPEG"))
    corpus.no_files.append(folder / r"caf\udce9.jpg")


def _bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
