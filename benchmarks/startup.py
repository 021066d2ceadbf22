"""Seconds from a command to its end: ``unimetric --help``, and the first answer of ``unimetric search``.

The answer twice: by the file that ``unimetric export`` wrote, and by torch. Beside them, in the same run, what no such
program can save: Python's own start, and the import of torch and timm. Targets: 0.3 s for the help, 3 s for the answer.

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
REFERENCES = {"help": "python", "search by an exported file": "torch and timm", "search by torch": "torch and timm"}


def main() -> None:
    """Measure each command in turn, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("image")
    parser.add_argument("run", help="The database's model, with the file that unimetric export wrote.")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    search = ["-m", "unimetric", "search", arguments.database, arguments.image, "-k", "3", "--model", arguments.run]
    commands = {
        "python": ["-c", "pass"],
        "help": ["-m", "unimetric", "--help"],
        "torch and timm": ["-c", "import torch, timm"],
        "search by an exported file": [*search, "--engine", "onnx"],
        "search by torch": [*search, "--engine", "torch"],
    }
    measured = {name: partial(run, command) for name, command in commands.items()}
    seconds = interleaved_medians(measured, arguments.repetitions)
    ratios = {name: seconds[name] / seconds[reference] for name, reference in REFERENCES.items()}
    for name, target in TARGETS.items():
        print(
            f"{name}: {seconds[name]:.2f} s (target at most {target} s), {ratios[name]:.2f} times {REFERENCES[name]} "
            f"({seconds[REFERENCES[name]]:.2f} s)"
        )
    print(write_result("startup", {"targets": TARGETS, "seconds": seconds, "ratios": ratios}))


def run(command: list[str]) -> None:
    """Run a command of this Python to its end, without its output."""
    subprocess.run([sys.executable, *command], check=True, capture_output=True)


if __name__ == "__main__":
    main()
