"""Write a cache of images that were resized once, see `ImageCache`; a stopped run continues where it was."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unimetric.data.cache import ABOUT, COPIES, CacheKind, ImageCache
from unimetric.data.catalog import identities
from unimetric.data.cropping import resize_shorter_side
from unimetric.data.images import LONGEST_JPEG, ImageError, decode_image, encode_image, file_reason, split_box
from unimetric.data.pool import in_order
from unimetric.errors import UserError
from unimetric.files import explain_os_error, make_folder, write_json

_QUALITY = 95
_AT_ONCE = 1000
"""Files that are flushed together before they take their names; a kill loses no more."""


@dataclass(frozen=True)
class Prepared:
    """Result of a preparation.

    Attributes:
        written: Images that are new in the cache or were changed.
        unchanged: Images that it held already.
        refused: Images that cannot be read; each has its path and the reason.
        images: Images that the cache holds now.
        bytes: Size of its files now.
        source_bytes: Size of the given image files that can be read.
    """

    written: int
    unchanged: int
    refused: tuple[ImageError, ...]
    images: int
    bytes: int
    source_bytes: int


def prepare_cache(
    paths: Sequence[Path],
    folder: Path,
    kind: CacheKind,
    *,
    threads: int,
    strict: bool = False,
    on_read: Callable[[int], None] = lambda read: None,
) -> Prepared:
    """Bring a cache, new or old, up to date with images; those that it holds unchanged are not decoded again.

    As ``jpeg``, images that have to be reduced are stored with quality 95, the others as their files are; as ``raw``,
    pixels, exactly as resized. One file that is reached by several paths is prepared once. With ``strict``, the first
    image that cannot be read stops the work, and finished images are kept. ``on_read`` is called with the number of
    images done.

    Raises:
        UserError: The folder cannot be written, holds images of another kind, or is being written by another
            process; or an image cannot be read and ``strict`` is set.
    """
    make_folder(folder)
    with explain_os_error(folder, "write to"):
        try:
            with FileLock(folder / ".lock", timeout=0):
                return _prepare_locked(paths, _opened(folder, kind), threads, strict, on_read)
        except Timeout as error:
            raise UserError(
                f"{folder} is being written by another process: wait for it, or choose another --out"
            ) from error


def _opened(folder: Path, kind: CacheKind) -> ImageCache:
    if not (folder / ABOUT).exists():
        write_json(folder / ABOUT, asdict(kind))
    cache = ImageCache.open(folder)
    if cache.kind != kind:
        raise UserError(f"{folder} holds {cache.kind}, not {kind}: choose another --out, or delete it first")
    return cache


def _prepare_locked(
    paths: Sequence[Path], cache: ImageCache, threads: int, strict: bool, on_read: Callable[[int], None]
) -> Prepared:
    for leftover in cache.folder.glob("??/.*"):
        leftover.unlink(missing_ok=True)
    fresh: list[Path] = []
    distinct = list(dict(zip(identities([path.absolute() for path in paths]), paths, strict=True)).values())
    refused: list[ImageError] = []
    kept: set[Path] = set()
    written = source_bytes = 0
    outcomes = in_order(lambda path: _prepare(path, cache), distinct, threads=threads, ahead=4 * threads)
    try:
        for done, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, ImageError):
                if strict:
                    raise UserError(f"{outcome}; --strict is set: remove or replace the file") from outcome
                refused.append(outcome)
            else:
                copy, new, size = outcome
                kept.add(copy)
                fresh += [copy] if new else []
                written += new
                source_bytes += size
            if len(fresh) >= _AT_ONCE:
                _publish(fresh)
            on_read(done)
    finally:
        _publish(fresh)
    copies = _without_outdated(list(cache.folder.glob(COPIES)), kept)
    held = sum(copy.stat().st_size for copy in copies)
    return Prepared(written, len(kept) - written, tuple(refused), len(copies), held, source_bytes)


def _publish(copies: list[Path]) -> None:
    """Flush written files, give them their names, and empty the list."""
    if copies and hasattr(os, "sync"):
        os.sync()  # one flush for all
    for copy in copies:
        _temporary(copy).replace(copy)
    copies.clear()


def _temporary(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}")


def _without_outdated(copies: list[Path], current: set[Path]) -> list[Path]:
    """Delete copies of earlier versions of the sources whose current copies are given; return all others."""
    sources = {copy.name.split("-")[0] for copy in current}
    outdated = {copy for copy in copies if copy not in current and copy.name.split("-")[0] in sources}
    for copy in outdated:
        copy.unlink(missing_ok=True)
    return [copy for copy in copies if copy not in outdated]


def _prepare(path: Path, cache: ImageCache) -> tuple[Path, bool, int] | ImageError:
    """Return an image's copy, True if it was written just now, and the bytes of its file; or its error."""
    try:
        # Named before the content is read: a change in between is noticed by the next reader.
        (file, box), copy = split_box(path), cache.copy_of(path)
        size = file.stat().st_size
        if copy.exists():
            return copy, False, size
        image = decode_image(path)
    except ImageError as error:
        return error
    except (OSError, ValueError) as error:
        return ImageError(file_reason(error), path)
    kind, small = cache.kind, min(image.size) <= cache.kind.side
    reduced = image if small else resize_shorter_side(image, kind.side)
    # A file larger than its pixels holds something else: more frames, or noise.
    as_it_is = box is None and kind.format == "jpeg" and small and size <= 3 * image.width * image.height
    temporary = _temporary(copy)
    temporary.parent.mkdir(exist_ok=True)
    if as_it_is:
        content = path.read_bytes()
    elif kind.format == "jpeg" and not small and max(reduced.size) <= LONGEST_JPEG:
        content = encode_image(reduced, "JPEG", quality=_QUALITY)
    else:
        content = encode_image(reduced, "PPM")
    temporary.write_bytes(content)
    return copy, True, size
