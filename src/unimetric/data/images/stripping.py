"""Image files without their metadata.

Decoders refuse files for defects that do not affect the pixels, such as a comment that is too long or a text with a
wrong checksum. Here a decoder gets only the parts of a file that determine the pixels and their orientation.
"""

import io
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import IO, Any

from unimetric.data.images.formats import content_format
from unimetric.data.images.tiff import Piece, needed_tags


def strip_metadata(file: IO[bytes], head: bytes) -> tuple[IO[bytes], bool]:
    """Return a stream of the file's content without metadata, and whether `tiff.needed_tags` inverts its grey.

    The stream is the file itself where there is nothing to remove. ``head`` has its first bytes, see `content_format`.

    Nothing is copied, however large the file is: the stream reads from it. Content of an unknown format and damaged
    structures are passed on as they are, for the decoder to refuse.
    """
    kind = content_format(head)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    pieces: Iterable[Piece]
    if kind == "TIFF":
        pieces, inverted = needed_tags(file, size)
    elif kind in _NEEDED_PIECES:
        pieces, inverted = _NEEDED_PIECES[kind](file, size), False
    else:
        return file, False
    stripped = _Pieces(file, list(pieces))
    file.seek(0)
    return file if stripped.holds_all(size) else io.BufferedReader(stripped, 1 << 16), inverted


class _Pieces(io.RawIOBase):
    """A file made of parts of another one and of bytes between them."""

    def __init__(self, file: IO[bytes], pieces: list[Piece]) -> None:
        self._file, self._pieces, self._place = file, pieces, 0
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._starts = list(accumulate(lengths, initial=0))

    def holds_all(self, size: int) -> bool:
        """Return True if nothing of a file of this size is left out or replaced."""
        return self._starts[-1] == size and all(isinstance(piece, tuple) for piece in self._pieces)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._starts[-1])[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        number = bisect_right(self._starts, self._place) - 1
        if number == len(self._pieces):
            return 0
        piece, skipped = self._pieces[number], self._place - self._starts[number]
        if isinstance(piece, bytes):
            data = piece[skipped : skipped + len(buffer)]
        else:
            self._file.seek(piece[0] + skipped)
            data = self._file.read(min(len(buffer), piece[1] - piece[0] - skipped))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _png(file: IO[bytes], size: int) -> Iterator[Piece]:
    """Keep the critical chunks, tRNS and eXIf: https://www.w3.org/TR/png-3/#5Chunk-layout."""
    place = 8
    yield 0, place
    while place + 8 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        end = place + length + 12
        if not (kind.isalpha() and kind[0] & 32) or kind in (b"tRNS", b"eXIf"):
            yield place, min(end, size)
        if kind == b"IEND":
            return
        place = end


_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)


def _jpeg(file: IO[bytes], size: int) -> Iterator[Piece]:
    """Keep everything except APPn segments before the first scan, of which only JFIF, the first Exif and Adobe stay."""
    place, exif = 2, False
    yield 0, place
    while True:
        file.seek(place)
        start = file.read(18)
        if not _MARKER.match(start):
            # Bytes between segments are passed over, as libjpeg does.
            block = start + file.read(1 << 12)
            found = _MARKER.search(block)
            if found is None and len(block) < 1 << 12:
                yield place, size
                return
            place += found.start() if found else len(block) - 1
            continue
        marker, data = start[1], start[4:]
        if 0xD0 <= marker <= 0xD8 or marker == 1:
            place += 2  # markers without a segment
            continue
        end = place + 2 + int.from_bytes(start[2:4], "big")
        if marker in (0xD9, 0xDA) or len(start) < 4 or end < place + 4 or end > size:
            yield place, size
            return
        is_exif = marker == 0xE1 and data.startswith(b"Exif\0\0")
        jfif = marker == 0xE0 and data.startswith(b"JFIF\0") and end - place >= 18
        adobe = marker == 0xEE and data.startswith(b"Adobe") and end - place >= 16
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or jfif or adobe or (is_exif and not exif):
            yield place, end
        exif |= is_exif
        place = end


def _gif(file: IO[bytes], size: int) -> Iterator[Piece]:
    """Keep the header, the last graphic control before the first image, and all from that image on."""
    flags = file.read(13)[10:11]
    place = 13 + (3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0)
    yield 0, min(place, size)
    control = (0, 0)
    while True:
        file.seek(place)
        introducer = file.read(2)
        if introducer[:1] != b"!":
            yield control
            yield min(place, size), size
            return
        end, length = place + 2, 1
        while length:
            file.seek(end)
            length = int.from_bytes(file.read(1), "big")
            end += 1 + length
        if introducer == b"!\xf9":
            control = place, min(end, size)
        place = end


def _webp(file: IO[bytes], size: int) -> Iterator[Piece]:
    """Keep the chunks of pixels, animation, alpha and Exif: RFC 9649."""
    kept: list[Piece] = []
    place, total = 12, 4
    while place + 8 <= size:
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        end = place + 8 + length + length % 2
        # A file that was cut off in its metadata has all of its pixels.
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF") or (kind == b"EXIF" and end <= size):
            kept.append((place, min(end, size)))
            total += end - place
        place = end
    yield b"RIFF" + struct.pack("<I", min(total, 2**32 - 2)) + b"WEBP"
    yield from kept


def _bmp(file: IO[bytes], size: int) -> Iterator[Piece]:
    """Keep all but the palette's number of colours: Pillow takes 8-bit images of black and white for 1-bit ones."""
    head = file.read(50).ljust(50, b"\0")
    offset, header = struct.unpack_from("<II", head, 10)
    if header >= 40 and head[28] in (4, 8) and offset != 14 + header:
        yield 0, min(46, size)
        yield bytes(4)
        yield min(50, size), size
    else:
        yield 0, size


_NEEDED_PIECES = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "WebP": _webp, "BMP": _bmp}
