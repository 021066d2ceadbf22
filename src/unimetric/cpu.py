"""CPU cores that this process may use, the way its OpenMP threads wait for each other, and its garbage collection.

OpenMP is configured by environment variables that it reads once, when torch is loaded, so the package does it as the
first thing on import. Processes that are started later inherit the variables.
"""

import gc
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""A user who has set one of these has chosen how threads wait."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def configure_openmp() -> None:
    """Let OpenMP threads sleep at barriers instead of spinning, and use no more threads than the CPU quota allows.

    A thread that spins keeps the core that another process needs, and both wait: see docs/performance.md.
    Variables that the user has set are kept. Without effect on a torch that is imported already.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
    # OpenMP respects the affinity mask by itself, but no quota.
    if available_cores() < _affinity() and not any(name in os.environ for name in THREAD_VARIABLES):
        os.environ["OMP_NUM_THREADS"] = str(available_cores())


def available_cores(root: Path = Path("/")) -> int:
    """Number of cores this process may use: its affinity mask, or its control group's CPU quota if that is less.

    Args:
        root: Folder that holds ``proc`` and ``sys``.

    Returns:
        At least 1; a quota of 1.5 cores is rounded up to 2.
    """
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([_affinity(), *quotas]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas in cores of this process's control group and all groups around it (cgroup v1 and v2)."""
    mounts = root / "sys/fs/cgroup"
    for controllers, path in re.findall(r"^\d+:([^:\n]*):/(.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE):
        if not controllers:
            hierarchies = [mounts, mounts / "unified"]
        elif "cpu" in controllers.split(","):
            hierarchies = [mounts / controllers, mounts / "cpu"]
        else:
            continue
        group = Path(path)
        # In a container the path may be that on the host, and only the hierarchy's root exists.
        for folder in (hierarchy / part for hierarchy in hierarchies for part in (group, *group.parents)):
            version_1 = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
            # "max" and -1 mean no limit.
            for limit in (_read(folder / "cpu.max"), version_1):
                if found := re.fullmatch(r"([1-9]\d*)\s+([1-9]\d*)\s*", limit):
                    yield int(found[1]) / int(found[2])


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection while long-lived objects are made, as by imports and scans: it doubles their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the file does not exist on this system, or may not be read
        return ""
