"""Seconds from a command to its end: ``unimetric --help``, and the first answer of ``unimetric search``.

The help is compared with the import of jsonargparse alone, by time and by the number of imported modules; the goal is a
ratio of at most 2. The first answer is measured by the file that ``unimetric export`` wrote and by torch, and compared
with the import of torch and timm. Without arguments only the help is measured, and no result is written.

    python benchmarks/startup.py
    unimetric export RUN
    python benchmarks/startup.py DATABASE IMAGE RUN
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

from machine import interleaved_medians, write_result

TARGETS = {"help": 0.3, "search by an exported file": 3.0, "search by torch": 3.0}
REFERENCES = {
    "help": "jsonargparse",
    "help of train": "jsonargparse",
    "search by an exported file": "torch and timm",
    "search by torch": "torch and timm",
}


def main() -> None:
    """Measure each command in turn, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", nargs="?")
    parser.add_argument("image", nargs="?")
    parser.add_argument("run", nargs="?", help="The database's model, with the file that unimetric export wrote.")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    commands = {
        "python": ["-c", "pass"],
        "jsonargparse": ["-c", "import jsonargparse"],
        "help": ["-m", "unimetric", "--help"],
        "help of train": ["-m", "unimetric", "train", "--help"],
    }
    if arguments.run is not None:
        search = ["-m", "unimetric", "search", arguments.database, arguments.image, "-k", "3", "--model", arguments.run]
        commands |= {
            "torch and timm": ["-c", "import torch, timm"],
            "search by an exported file": [*search, "--engine", "onnx"],
            "search by torch": [*search, "--engine", "torch"],
        }
    measured = {name: partial(run, command) for name, command in commands.items()}
    seconds = interleaved_medians(measured, arguments.repetitions)
    ratios = {name: seconds[name] / seconds[other] for name, other in REFERENCES.items() if name in seconds}
    for name, ratio in ratios.items():
        target = f" (target at most {TARGETS[name]} s)" if name in TARGETS else ""
        other = REFERENCES[name]
        print(f"{name}: {seconds[name]:.2f} s{target}, {ratio:.2f} times {other} ({seconds[other]:.2f} s)")
    modules = {name: imported(name == "help") for name in ("jsonargparse", "help")}
    print(
        f"modules: {modules['help']} for the help, {modules['help'] / modules['jsonargparse']:.2f} times jsonargparse's"
    )
    if arguments.run is not None:
        values = {"targets": TARGETS, "seconds": seconds, "ratios": ratios, "modules": modules}
        print(write_result("startup", values))


def imported(help_page: bool) -> int:
    """Number of modules after ``unimetric --help``, or after importing jsonargparse alone."""
    work = "from unimetric.cli import main; main(['--help'])" if help_page else "import jsonargparse"
    code = f"import sys; {work}; print(len(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stderr)


def run(command: list[str]) -> None:
    """Run a command of this Python to its end, without its output."""
    subprocess.run([sys.executable, *command], check=True, capture_output=True)


if __name__ == "__main__":
    main()
