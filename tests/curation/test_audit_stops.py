"""An audit that was killed goes on where it was, and finds the same; damaged files are measured again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audit_pictures import Colours, compressed, picture
from unimetric.curation.copies import near_copies
from unimetric.curation.measurements import measure
from unimetric.data.catalog import Item

ARRAYS = ("files", "pixels", "hashes", "grey", "numbers", "vectors")

KILLED = """
import os, signal, sys
from pathlib import Path
from audit_pictures import Colours
from unimetric.curation import measurements
from unimetric.data.catalog import Item

class Killed(Colours):
    left = 1
    def encode(self, images, *, precision="auto"):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().encode(images, precision=precision)

folder, work = map(Path, sys.argv[1:])
items = [Item(path, "a", "set") for path in sorted(folder.iterdir())]
measurements.measure(items, Killed(), "colours", work, "auto")
"""


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """More pictures than are measured between two writes, with three copies, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(130):
        picture(seed, 48, 40).save(folder / f"{seed:03}.png")
    for seed in (3, 70, 129):
        compressed(picture(seed, 48, 40)).save(folder / f"{seed:03}-copy.png")
    (folder / "999.png").write_bytes(b"no image")
    return [Item(path, "a", "set") for path in sorted(folder.iterdir())]


def test_a_killed_audit_goes_on(items: list[Item], tmp_path: Path) -> None:
    whole = measure(items, Colours(), "colours", tmp_path / "whole", "auto")
    command = [sys.executable, "-c", KILLED, str(items[0].path.parent), str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    seen = []

    class Counting(Colours):
        def encode(self, images: list, *, precision: str = "auto") -> np.ndarray:
            seen.extend(images)
            return super().encode(images, precision=precision)

    again = measure(items, Counting(), "colours", tmp_path / "work", "auto")
    assert 0 < len(seen) < len(items)
    assert again.reasons == whole.reasons
    assert [*again.reasons] == [len(items) - 1]
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert near_copies(again, []) == near_copies(whole, [])


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.51, 0.99])
def test_the_comparison_goes_on_after_any_byte(items: list[Item], kept: float, tmp_path: Path) -> None:
    measured = measure(items[:40], Colours(), "colours", tmp_path, "auto")
    found = near_copies(measured, [])
    assert [(copy.one, copy.other) for copy in found] == [(3, 4)]
    complete = (tmp_path / "pairs.jsonl").read_bytes()
    (tmp_path / "pairs.jsonl").write_bytes(complete[: int(kept * len(complete))])
    assert near_copies(measured, []) == found
    assert sorted((tmp_path / "pairs.jsonl").read_bytes().splitlines()) == sorted(complete.splitlines())


def test_pairs_compared_by_another_rule_are_compared_again(items: list[Item], tmp_path: Path) -> None:
    measured = measure(items[:40], Colours(), "colours", tmp_path, "auto")
    found = near_copies(measured, [])
    key = (tmp_path / "pairs.jsonl").read_text().splitlines()[0]
    (tmp_path / "pairs.jsonl").write_text(f"{key}\n[3, 4]\n")
    assert near_copies(measured, []) == []  # it is kept as no copy
    (tmp_path / "pairs.jsonl").write_text(f"{key}0\n[3, 4]\n")
    assert near_copies(measured, []) == found


def test_finished_comparisons_are_not_repeated(items: list[Item], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    own = [Item(folder / item.path.name, "a", "set") for item in items[:10]]
    for one, other in zip(items, own, strict=False):
        other.path.write_bytes(one.path.read_bytes())
    measured = measure(own, Colours(), "colours", tmp_path / "work", "auto")
    found = near_copies(measured, [])
    assert len(found) == 1
    for item in own:
        item.path.unlink()
    assert near_copies(measured, []) == found


@pytest.mark.parametrize("name", ["grey", "vectors"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_array_is_measured_again(items: list[Item], name: str, damage: str, tmp_path: Path) -> None:
    whole = measure(items[:6], Colours(), "colours", tmp_path, "auto")
    expected = np.array(getattr(whole, name))
    path = tmp_path / f"{name}.npy"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    again = measure(items[:6], Colours(), "colours", tmp_path, "auto")
    np.testing.assert_array_equal(getattr(again, name), expected)
