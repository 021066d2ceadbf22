"""Exact and near copies: a perceptual hash and embeddings propose pairs, a comparison of pixels decides."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unimetric.cpu import available_cores
from unimetric.curation.measurements import HASH_BITS, Measurements
from unimetric.curation.whitening import whitened
from unimetric.data.alignment import Prepared, best_fits, shrunk
from unimetric.data.images import ImageError, decode_image, image_file
from unimetric.data.near_copies import RULE, NearCopy, near_copy
from unimetric.errors import UserError
from unimetric.evaluation.neighbours import nearest_neighbours
from unimetric.files import explain_os_error, write_text
from unimetric.progress import progress_bar

_HASH_DISTANCE = 60
"""Maximum number of the 256 bits in which a proposed copy may differ; unrelated pictures differ in 128 ± 8."""

_BLOCK = 64
"""Pairs that a thread compares between two writes of the file from which a stopped audit continues."""

_COARSE_SIDE = 32
"""Side of the pictures at which all proposed pairs are compared."""

_COARSE_FIT = 0.4
"""Minimum fit at that size for comparing a pair at a larger one; that of 263 copies in `benchmarks/audit.py` is 0.46
to 1, and that of four in five other proposals is less."""

_SIMILARITY = 0.3
"""Minimum cosine of the whitened vectors of a proposed copy; most cropped copies have 0.5 and more."""

_FEW = 1000
"""Up to this many images, the nearest are proposed however similar they are."""


@dataclass(frozen=True)
class Copy(NearCopy):
    """Two images of an audit that show one picture.

    Attributes:
        one: Row of an image.
        other: Row of the other.
        exact: The pixels are equal.
    """

    one: int
    other: int
    exact: bool = False


def exact_copies(measured: Measurements) -> list[Copy]:
    """Return a pair for every image whose decoded pixels equal those of an earlier image."""
    first: dict[bytes, int] = {}
    found = []
    for row in measured.shows_something.tolist():
        earlier = first.setdefault(measured.pixels[row].tobytes(), row)
        if earlier != row:
            same = bool((measured.files[earlier] == measured.files[row]).all())
            found.append(Copy(1.0, 0.0, "equal files" if same else "equal pixels", earlier, row, exact=True))
    return found


def near_copies(measured: Measurements, exact: Sequence[Copy]) -> list[Copy]:
    """Find re-encoded, resized, cropped, mirrored, recoloured, framed and watermarked copies.

    Of each group of exact copies, only one image is compared. The pairs compared so far are kept beside the
    measurements, so that a new call resumes one that was stopped.
    """
    repeated = {copy.other for copy in exact}
    rows = np.array([row for row in measured.shows_something.tolist() if row not in repeated], dtype=np.int64)
    pairs = sorted(set(_proposed(measured, rows)))
    path = measured.folder / "pairs.jsonl"
    decided = _decided_before(path, f"{measured.key} {RULE}")
    left = [pair for pair in pairs if pair not in decided]
    comparison = _Comparison(measured)
    cores = available_cores()
    with (
        explain_os_error(path, "write"),
        path.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(cores) as pool,
        progress_bar() as progress,
    ):
        task = progress.add_task("Comparing pictures", total=len(pairs), completed=len(pairs) - len(left), note="")
        blocks = [left[start : start + _BLOCK] for start in range(0, len(left), _BLOCK)]
        for start in range(0, len(blocks), cores):
            for found in pool.map(comparison.of, blocks[start : start + cores]):
                decided |= found
                file.write("".join(_line(*pair, copy) for pair, copy in found.items()))
                file.flush()
                progress.advance(task, len(found))
    return [copy for pair in pairs if (copy := decided[pair]) is not None]


def _line(one: int, other: int, copy: Copy | None) -> str:
    return json.dumps([one, other, *([] if copy is None else [copy.agreement, copy.colours, copy.how])]) + "\n"


def _decided_before(path: Path, key: str) -> dict[tuple[int, int], Copy | None]:
    """Return the pairs that an earlier call compared; a file of other measurements, or of another rule, is begun anew.

    A last line that was cut off is removed.
    """
    decided: dict[tuple[int, int], Copy | None] = {}
    with explain_os_error(path, "read"):
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    if not lines or lines[0] != f"{key}\n".encode():
        write_text(path, f"{key}\n")
        return decided
    size = len(lines[0])
    for line in lines[1:]:
        if not line.endswith(b"\n"):
            break
        one, other, *copy = json.loads(line)
        decided[one, other] = Copy(copy[0], copy[1], copy[2], one, other) if copy else None
        size += len(line)
    with explain_os_error(path, "write"):
        os.truncate(path, size)
    return decided


def _proposed(measured: Measurements, rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield pairs of images with close hashes, straight or mirrored, or with close whitened embeddings."""
    if len(rows) < 2:
        return
    straight, mirrored = (_signs(measured.hashes[rows, way]) for way in (0, 1))
    for hashes in (straight, mirrored):
        # The cosine of 256 signs is 1 less a 128th for each different bit.
        yield from _nearest(rows, hashes, straight, 1 - 2 * _HASH_DISTANCE / HASH_BITS)
    vectors = torch.from_numpy(whitened(measured.vectors, rows))
    yield from _nearest(rows, vectors, vectors, _SIMILARITY if len(rows) > _FEW else -2.0)


def _signs(packed: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(packed, axis=1)).float().mul_(2).sub_(1)


def _nearest(
    rows: NDArray[np.int64], queries: torch.Tensor, gallery: torch.Tensor, least: float
) -> Iterator[tuple[int, int]]:
    """Yield pairs of each image with its three nearest ones, where their cosine is at least ``least``."""
    ids = list(range(len(rows)))
    similarities, found = nearest_neighbours(queries, gallery, 3, query_ids=ids, gallery_ids=ids)
    for one, column in torch.nonzero(similarities >= least).tolist():
        yield _pair(rows[one], rows[found[one, column]])


def _pair(one: np.int64, other: np.int64) -> tuple[int, int]:
    return min(int(one), int(other)), max(int(one), int(other))


@dataclass(frozen=True)
class _Comparison:
    """Comparison of pairs: all at a small size, the promising ones at a larger one."""

    measured: Measurements

    def of(self, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Copy | None]:
        """Compare pairs of rows."""
        found: dict[tuple[int, int], Copy | None] = dict.fromkeys(pairs)
        rows, places = _places(pairs)
        small = Prepared.of(shrunk(self.measured.grey[rows], _COARSE_SIDE))
        fits = best_fits(*(small.at(column) for column in places.T))
        promising = [pair for pair, fit in zip(pairs, fits.tolist(), strict=True) if fit >= _COARSE_FIT]
        if promising:
            rows, places = _places(promising)
            prepared = Prepared.of(self.measured.grey[rows])
            for pair, (one, other) in zip(promising, places.tolist(), strict=True):
                found[pair] = self._copy(pair, prepared.at(one), prepared.at(other))
        return found

    def _copy(self, rows: tuple[int, int], one: Prepared, other: Prepared) -> Copy | None:
        found = near_copy(one, other, lambda: (self._picture(rows[0]), self._picture(rows[1])))
        return None if found is None else Copy(found.agreement, found.colours, found.how, *rows)

    def _picture(self, row: int) -> Image.Image:
        try:
            return decode_image(self.measured.items[row].path)
        except ImageError as error:
            raise UserError(
                f"{error}, but could be read before: it was changed meanwhile; run the audit again"
            ) from error


def _places(pairs: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of pairs, each once, and the places [N, 2] of the pairs' rows among them."""
    rows, places = np.unique(np.array(pairs), return_inverse=True)
    return rows, places.reshape(-1, 2)


def grouped(copies: Sequence[Copy], count: int) -> NDArray[np.int64]:
    """Return the number of the group of each of ``count`` images, [N]: those that copies join have the same."""
    pairs = np.array([(copy.one, copy.other) for copy in copies], dtype=np.int64).reshape(-1, 2)
    joined = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: NDArray[np.int64] = connected_components(joined, directed=False)[1].astype(np.int64)
    return numbers


def members(groups: NDArray[np.int64]) -> list[list[int]]:
    """Return the rows of each group of at least two images, ascending."""
    several = np.flatnonzero(np.bincount(groups)[groups] > 1) if len(groups) else groups
    rows: dict[int, list[int]] = defaultdict(list)
    for row in several.tolist():
        rows[int(groups[row])].append(row)
    return list(rows.values())


def best_of(measured: Measurements, rows: Sequence[int]) -> int:
    """Return the row of the original among copies: most pixels, then the largest file, then the first path."""

    def rank(row: int) -> tuple[float, int, str]:
        width, height = measured.numbers[row, :2]
        path = measured.items[row].path
        return -float(width * height), -file.stat().st_size if (file := image_file(path)).is_file() else 0, str(path)

    return min(rows, key=rank)
