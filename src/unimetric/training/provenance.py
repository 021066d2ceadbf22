"""Provenance of measured numbers: code, weights, images; and their cost in time and memory."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import unimetric
from unimetric.config import RunConfig
from unimetric.data.catalog import Item
from unimetric.data.images import image_file
from unimetric.data.splits import Split


@dataclass(frozen=True)
class Clock:
    """Wall and processor time at the start of some work, in seconds."""

    wall: float
    processor: float

    @classmethod
    def start(cls) -> "Clock":
        """A clock that starts now; the source files are read now, too, because they may change while it runs."""
        code_version()
        return cls(time.perf_counter(), _processor_seconds())

    def cost(self, device: torch.device, earlier_peaks: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
        """Return the time since the start, and the peak memory in bytes, that of earlier processes included."""
        kind, peak = _peak_memory(device)
        return {
            "wall_seconds": round(time.perf_counter() - self.wall, 2),
            "processor_seconds": round(_processor_seconds() - self.processor, 2),
            "peak_memory_bytes": None if peak is None else max(peak, earlier_peaks.get(kind, 0)),
            "peak_memory_of": kind,
        }


def _processor_seconds() -> float:
    """Return the time of this process and of its ended children, the workers that decode images."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def update_peaks(peaks: dict[str, int], device: torch.device) -> None:
    """Raise the peak of the device's kind of memory to that of this process."""
    kind, peak = _peak_memory(device)
    if peak is not None:
        peaks[kind] = max(peak, peaks.get(kind, 0))


def _peak_memory(device: torch.device) -> tuple[str, int | None]:
    """Return the kind of memory, and the peak of this process in bytes.

    On a CUDA device, torch's allocated memory; elsewhere the resident memory of the process, without the
    processes that decode images. None if the system does not report it.
    """
    if device.type == "cuda":
        return "GPU, allocated", torch.cuda.max_memory_allocated(device)
    return "process, resident", _peak_resident_bytes()


def _peak_resident_bytes() -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux's ru_maxrss also counts what the parent held when it started this process.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def code_version() -> dict[str, str]:
    """The package's version, and a SHA-256 over its Python files: their paths in the package and their content."""
    root = Path(unimetric.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return {"version": unimetric.__version__, "sha256": digest.hexdigest()}


def data_fingerprint(sides: Iterable[tuple[str, Iterable[Item]]]) -> str:
    """A SHA-256 over the images of named sides: each one's side, dataset, label, file name and size in bytes.

    It does not depend on the order of the images or their folders; pixels are not read.
    """
    lines = sorted(
        json.dumps([side, item.dataset, item.label, item.path.name, _size(item.path)])
        for side, items in sides
        for item in items
    )
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _size(path: Path) -> int:
    """Return the file's size; -1 if it is unknown, which is reported when the image is read."""
    try:
        return image_file(path).stat().st_size
    except OSError:
        return -1


def provenance(config: RunConfig, split: Split, weights_fingerprint: str, cost: dict[str, Any]) -> Any:
    """Return provenance and cost of the numbers, for ``metrics.json``.

    ``provenance``: version and SHA-256 of the code, fingerprints of the backbone's weights, of all images that were
    used, and of those measured on. ``cost``: as given. ``configuration``: every option.
    """
    measured = measured_sides(config, split)
    return {
        "provenance": {
            "code": code_version(),
            "weights_fingerprint": weights_fingerprint,
            "data_fingerprint": data_fingerprint([("train", split.train), *measured.items()]),
            "measured_fingerprint": data_fingerprint(measured.items()),
        },
        "cost": cost,
        "configuration": asdict(config),
    }


def measured_sides(config: RunConfig, split: Split) -> dict[str, tuple[Item, ...]]:
    """The images to measure on, as ``query`` and ``gallery``: test classes or, if so configured, validation classes."""
    if config.evaluation.classes == "validation":
        return {"query": split.validation, "gallery": split.validation}
    return {"query": split.query, "gallery": split.gallery}


def describe_processor() -> str:
    """Return the processor's name, or its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
