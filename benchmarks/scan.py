"""Seconds of `read_folder` on a folder of 150,000 images, against listing it; target: at most twice as long.

Listing is a walk by `os.scandir` that asks of every entry whether it is a folder and keeps the path of every file as
text: the least that anybody who wants the files has to do. For comparison, the same with `os.walk` and with
`pathlib.Path.rglob`. The files are empty, and the system has their names in memory.

    python benchmarks/scan.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from machine import interleaved_medians, write_result
from unimetric.data.sources.folder import read_folder

TARGET = 2.0


def main() -> None:
    """Make the folder, measure, print a line for each way of listing, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=150_000)
    parser.add_argument("--classes", type=int, default=1_500)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder), arguments.images, arguments.classes)
        load = os.getloadavg()[0]
        seconds = interleaved_medians(
            {
                "read_folder": lambda: read_folder(Path(folder)),
                "scandir": lambda: walk_scandir(folder),
                "walk": lambda: walk_os(folder),
                "rglob": lambda: list(Path(folder).rglob("*")),
            },
            arguments.repetitions,
        )
    ratios = {name: seconds["read_folder"] / value for name, value in seconds.items() if name != "read_folder"}
    for name, ratio in ratios.items():
        wanted = f" (target at most {TARGET})" if name == "scandir" else ""
        print(f"read_folder {seconds['read_folder']:.3f} s, {name} {seconds[name]:.3f} s, ratio {ratio:.2f}{wanted}")
    settings = {"images": arguments.images, "classes": arguments.classes, "repetitions": arguments.repetitions}
    result = {"target": TARGET, "settings": settings, "load_before": load, "seconds": seconds, "ratios": ratios}
    print(write_result("scan", result))


def make_tree(root: Path, images: int, classes: int) -> None:
    """Empty files, as evenly over the class folders as may be."""
    for label in range(classes):
        (root / f"class_{label:05}").mkdir()
    for number in range(images):
        (root / f"class_{number % classes:05}" / f"image_{number:07}.jpg").touch()


def walk_scandir(folder: str) -> list[str]:
    """The path of every file below a folder."""
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                files += walk_scandir(entry.path)
            else:
                files.append(entry.path)
    return files


def walk_os(folder: str) -> list[str]:
    """The same, by `os.walk`."""
    return [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names]  # noqa: PTH118


if __name__ == "__main__":
    main()
