"""Files of equal content on two sides of a split."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unimetric.data.images import Box, image_file, split_box
from unimetric.data.splits import Split
from unimetric.errors import escaped
from unimetric.files import sha256_of_file
from unimetric.progress import console, track

_TAIL = 4096
"""Bytes at the end of a file that are compared first, because many images have the same beginning."""
_MANY = 1000
"""For more files than these, progress is shown."""


@dataclass(frozen=True)
class Copies:
    """Files of equal content, and files that could not be read to compare them, with the reason."""

    pairs: tuple[tuple[Path, Path], ...]
    """For each file of the second side with a copy on the first: its first copy, and the file."""
    unreadable: dict[Path, str]


def find_copies(first: Iterable[Path], second: Iterable[Path], *, same_path: bool = False) -> Copies:
    """Find the files of the second side, each there once, of which the first has a byte-identical copy.

    Only files that agree in size and in their last bytes are read as a whole. Empty files are unreadable, not copies. A
    path that is on both sides is its own copy only with ``same_path``.
    """
    left, right = dict.fromkeys(first), list(second)
    unreadable: dict[Path, str] = {}
    alike = [list(left | dict.fromkeys(right))]
    on_right = set(right)
    for key in (_size, _tail, _content):
        alike = [
            group
            for group in _split_by(key, alike, unreadable)
            if any(path in left for path in group)
            and any(path in on_right for path in group)
            and (len(group) > 1 or same_path)
        ]
    # Two are enough: one may be the path itself.
    copies = {path: [p for p in group if p in left][:2] for group in alike for path in group if path in on_right}
    pairs = []
    for path in right:
        found = [copy for copy in copies.get(path, []) if same_path or copy != path]
        pairs += [(found[0], path)] if found else []
    return Copies(tuple(pairs), unreadable)


def copy_notes(split: Split) -> list[str]:
    """Return remarks on byte-identical copies between train and test images, and between queries and gallery."""
    notes = []
    trained = [item.path for item in (*split.train, *split.validation)]
    tested = dict.fromkeys(item.path for item in (*split.query, *split.gallery))
    if pairs := find_copies(trained, tested, same_path=True).pairs:
        notes.append(f"{_some(pairs, 'test')} of train images: results on them are not those of unseen images")
    queries = dict.fromkeys(item.path for item in split.query)
    if pairs := find_copies([item.path for item in split.gallery], queries).pairs:
        notes.append(f"{_some(pairs, 'query')} of other images in the gallery, which are found without any learning")
    return notes


def _some(pairs: Sequence[tuple[Path, Path]], kind: str) -> str:
    copy, path = pairs[0]
    are = "image is a copy" if len(pairs) == 1 else "images are copies"
    return f"{len(pairs)} {kind} {are} (the first: {escaped(path)} of {escaped(copy)})"


def _split_by(
    key: Callable[[Path], Hashable], groups: Sequence[Sequence[Path]], unreadable: dict[Path, str]
) -> list[list[Path]]:
    """Divide groups of paths by a key of their files, skipping files that cannot be read."""
    paths = [path for group in groups for path in group]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results: Iterable[tuple[Hashable, str]] = pool.map(partial(_try, key), paths)
        if len(paths) > _MANY and console.is_terminal:
            results = track(results, "Comparing files", total=len(paths))
        found = dict(zip(paths, results, strict=True))
    unreadable |= {path: reason for path, (_, reason) in found.items() if reason}
    divided: list[list[Path]] = []
    for group in groups:
        parts: defaultdict[Hashable, list[Path]] = defaultdict(list)
        for path in group:
            if path not in unreadable:
                parts[found[path][0]].append(path)
        divided += parts.values()
    return divided


def _try(key: Callable[[Path], Hashable], path: Path) -> tuple[Hashable, str]:
    """Return the key of a file, and the reason where it cannot be read."""
    try:
        value = key(path)
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    return value, "" if value else "empty file"


def _content(path: Path) -> tuple[str, Box | None]:
    file, box = split_box(path)
    return sha256_of_file(file), box


def _size(path: Path) -> int:
    return image_file(path).stat().st_size


def _tail(path: Path) -> bytes:
    with image_file(path).open("rb") as file:
        file.seek(-min(_TAIL, _size(path)), os.SEEK_END)
        return file.read()
