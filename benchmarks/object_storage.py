"""Cost of object storage beside the local disk, and of Milvus's local file beside LanceDB's, as ratios.

In turns within one run: writing rows in commits of 1,024, opening, exact searches one at a time, and reading the rows
of one dataset, in three databases of the same random vectors: LanceDB on the disk, LanceDB on an S3 server (moto's,
over HTTP on this machine, in a process of its own: without the latency of a network), and a local Milvus file. And the
reading of small objects one by one and sixteen at a time, beside files.

    python benchmarks/object_storage.py
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from machine import write_result
from unimetric.search.conditions import equals
from unimetric.search.stores import create_store, open_store
from unimetric.search.stores.base import FORMAT, Store
from unimetric.storage import objects

SIZE = 128
OBJECTS, OBJECT_BYTES = 64, 100_000


def main() -> None:
    """Measure all, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start_server()
        try:
            make_bucket()
            measured = measure(Path(folder), arguments)
        finally:
            server.terminate()
            server.wait()
    ratios = {
        engine: {what: seconds / measured["disk"][what] for what, seconds in values.items()}
        for engine, values in measured.items()
    }
    for what in measured["disk"]:
        cells = [
            f"{engine} {values[what]:.3g} s ({ratios[engine][what]:.1f})"
            for engine, values in measured.items()
            if what in values
        ]
        print(f"{what:<28}" + "   ".join(cells))
    settings = {"rows": arguments.rows, "vector_size": SIZE, "objects": OBJECTS, "object_bytes": OBJECT_BYTES}
    write_result("object_storage", {"settings": settings, "seconds": measured, "ratio_to_disk": ratios})


def start_server() -> subprocess.Popen[bytes]:
    """Start moto's server in a process of its own, and set the environment for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_bucket() -> None:
    """Create the bucket as soon as the server answers."""
    import boto3
    from botocore.config import Config

    # Repeats with growing pauses until the server is there.
    patient = Config(retries={"max_attempts": 30, "mode": "standard"})
    boto3.client("s3", region_name="us-east-1", config=patient).create_bucket(Bucket="benchmark")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median seconds of each step, by engine."""
    places = {"disk": str(folder / "db"), "s3": "s3://benchmark/db", "milvus": f"milvus:{folder / 'all.db'}/shop"}
    random = np.random.default_rng(0)
    vectors = random.normal(size=(arguments.rows, SIZE)).astype(np.float32)
    queries = random.normal(size=(arguments.queries, SIZE)).astype(np.float32)
    about = {"format": FORMAT, "model": {"fingerprint": "benchmark", "embedding_size": SIZE}}
    stores = {engine: create_store(place, about, SIZE) for engine, place in places.items()}
    writes: dict[str, list[float]] = {engine: [] for engine in places}
    for start in range(0, arguments.rows, 1024):
        rows = table(vectors[start : start + 1024], start)
        for engine, store in stores.items():
            writes[engine].append(seconds(lambda store=store, rows=rows: store.merge(rows)))
    measured = {engine: {"write 1,024 rows": median(times)} for engine, times in writes.items()}
    steps: dict[str, Callable[[str, Store], Any]] = {
        "open": lambda place, store: open_store(place).close(),
        "search, one query": lambda place, store: [
            store.nearest(q[None], 10, ["id", "vector"], None, None) for q in queries
        ],
        "rows of a dataset": lambda place, store: store.rows(["id", "label"], equals("dataset", "d1")),
    }
    for name, step in steps.items():
        times: dict[str, list[float]] = {engine: [] for engine in places}
        for _ in range(arguments.repetitions):
            for engine, place in places.items():
                share = len(queries) if name.startswith("search") else 1
                times[engine].append(seconds(lambda p=place, s=stores[engine], run=step: run(p, s)) / share)
        for engine in places:
            measured[engine][name] = median(times[engine])
    read_objects(folder, measured, arguments.repetitions)
    return measured


def read_objects(folder: Path, measured: dict[str, dict[str, float]], repetitions: int) -> None:
    """Add the seconds of reading an object, one by one and sixteen at a time."""
    content = os.urandom(OBJECT_BYTES)
    names = {"disk": str(folder / "objects"), "s3": "s3://benchmark/objects"}
    for root in names.values():
        for number in range(OBJECTS):
            objects.write_whole(f"{root}/{number}", content)
    for what, threads in (("object, one by one", 1), ("object, 16 at a time", 16)):
        times: dict[str, list[float]] = {engine: [] for engine in names}
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(repetitions):
                for engine, root in names.items():
                    files = [f"{root}/{number}" for number in range(OBJECTS)]
                    times[engine].append(seconds(lambda f=files, p=pool: list(p.map(objects.read_bytes, f))) / OBJECTS)
        for engine in names:
            measured[engine][what] = median(times[engine])


def table(vectors: np.ndarray, start: int) -> pa.Table:
    """Return rows for vectors."""
    numbers = range(start, start + len(vectors))
    names = ("id", "label", "path", "content_hash", "fingerprint")
    columns: dict[str, Any] = {name: [f"{name}{number:07}" for number in numbers] for name in names}
    columns["dataset"] = [f"d{number % 4}" for number in numbers]
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), SIZE)
    columns["thumbnail"] = pa.nulls(len(vectors), pa.binary())
    return pa.table(columns)


def seconds(work: Callable[[], Any]) -> float:
    """Return the seconds that work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
