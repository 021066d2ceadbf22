"""A training step, an embedding call and a search on a machine where other processes are busy.

OpenMP threads wait for each other at the end of every parallel region. One that spins meanwhile keeps a core from the
thread that it waits for, once there are more busy threads than cores. Each setting below has a process of its own, and
all take turns, so that a slow moment of the machine hits all alike. Loads are processes in an endless loop.

    python benchmarks/busy.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
TASKS = ("training step", "embedding", "search", "ONNX Runtime, spinning", "ONNX Runtime, sleeping")
IMAGES, SIDE = 8, 224


def main() -> None:
    """Measure every setting under every load, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy loops")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--note", default="", help="what else the machine was doing, for the result")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        serve(arguments.child)
        return
    medians: dict[str, dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder)
        children = {name: stack.enter_context(child(folder, variables)) for name, variables in SETTINGS.items()}
        for process in children.values():
            for task in arguments.tasks:
                ask(process, task)
        for load in arguments.loads:
            with busy(load):
                seconds: dict[tuple[str, str], list[float]] = {}
                for _ in range(arguments.repetitions):
                    for task in arguments.tasks:
                        for name, process in children.items():
                            seconds.setdefault((task, name), []).append(ask(process, task))
            for (task, name), values in seconds.items():
                medians.setdefault(task, {}).setdefault(name, {})[str(load)] = statistics.median(values)
                print(f"{load} busy loops, {task}, {name}: {1000 * statistics.median(values):.0f} ms", flush=True)
    table = as_table(medians, arguments.loads)
    print(table)
    from machine import write_result

    path = write_result("busy", {"note": arguments.note, "median_seconds": medians})
    note = f"{arguments.note}\n\n" if arguments.note else ""
    path.with_suffix(".md").write_text(f"# Beside other processes\n\nMedian milliseconds.\n\n{note}{table}\n")
    print(path)


def as_table(medians: dict[str, dict[str, dict[str, float]]], loads: list[int]) -> str:
    """A Markdown table in milliseconds: a row for each task and setting, a column for each load."""
    lines = [
        f"| task | setting | {' | '.join(f'{load} busy loops' for load in loads)} |",
        "|---" * (len(loads) + 2) + "|",
    ]
    for task, settings in medians.items():
        for name, times in settings.items():
            cells = " | ".join(f"{1000 * times[str(load)]:.0f}" for load in loads)
            lines.append(f"| {task} | {name} | {cells} |")
    return "\n".join(lines)


@contextmanager
def child(folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the tasks it is asked for, with OpenMP's variables as given."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", str(folder)],
        env=environment | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], task: str) -> float:
    """Seconds that a task took in a process."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{task}\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("seconds "):
            return float(line.removeprefix("seconds "))
    raise SystemExit(f"{task}: the process ended with {process.wait()}")


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Processes that use a core each."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def prepare(folder: Path) -> None:
    """Write a model, its ONNX file and a database."""
    import numpy as np
    from PIL import Image

    from unimetric.models.backbone import make_backbone
    from unimetric.models.embedder import Embedder
    from unimetric.search.index import SearchIndex
    from unimetric.search.items import NewItem

    random = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    embedder = Embedder(make_backbone("dinov2-small", image_size=SIDE), "puma").eval()
    embedder.save_pretrained(folder / "model")
    with SearchIndex.create(folder / "db", folder / "model", embedder=embedder) as index:
        index.add(NewItem(folder / f"{number}.png", "noise", str(number)) for number in range(IMAGES))
    export = [sys.executable, "-m", "unimetric", "export", str(folder / "model"), "--out", str(folder / "model.onnx")]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)


def serve(folder: Path) -> None:
    """Run the tasks named on the standard input and answer with their times."""
    # Before unimetric, which would set a wait policy.
    import torch  # noqa: F401

    tasks = make_tasks(folder)
    for line in sys.stdin:
        start = time.perf_counter()
        tasks[line.strip()]()
        print(f"seconds {time.perf_counter() - start}", flush=True)


def make_tasks(folder: Path) -> dict[str, Callable[[], object]]:
    """The tasks by name."""
    import numpy as np
    from PIL import Image

    from train_step import Step
    from unimetric.search.index import SearchIndex

    images = [Image.open(folder / f"{number}.png").convert("RGB") for number in range(IMAGES)]
    index = SearchIndex.open(folder / "db")
    embedder = index.embedder
    settings: Any = argparse.Namespace(image_size=112)
    step = Step("puma", settings, batch=IMAGES, classes=235, bf16=False)
    pixels = np.zeros((IMAGES, 3, SIDE, SIDE), np.float32)
    spinning, sleeping = (onnx_session(folder / "model.onnx", spin) for spin in ("1", "0"))
    return {
        "training step": step,
        "embedding": lambda: embedder.encode(images),
        "search": lambda: index.search(images[0], 10),
        "ONNX Runtime, spinning": lambda: spinning.run(None, {"images": pixels}),
        "ONNX Runtime, sleeping": lambda: sleeping.run(None, {"images": pixels}),
    }


def onnx_session(path: Path, spin: str) -> Any:
    """A session of ONNX Runtime with threads of its own, which OpenMP's variables do not reach."""
    import onnxruntime

    from unimetric.cpu import available_cores

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", available_cores()))
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
