"""Description of the machine, timing, and result files of benchmarks."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and the versions that matter."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def interleaved_medians(measured: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each function, called in turn, so that a slow moment of the machine hits all alike.

    The first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(repetitions + 1):
        for name, function in measured.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write a result with command, machine and date into the folder ``results`` beside this file.

    The environment variable ``BENCHMARK_RESULTS`` names another folder: short runs do not replace what was measured.
    """
    folder = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    # Where a folder lies is nobody's business; what it is called may be.
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    content = {"command": command, "date": date.today().isoformat(), "machine": describe_machine(), **result}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
