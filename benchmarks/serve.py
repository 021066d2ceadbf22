"""The whole search service over HTTP with 1, 8 and 32 clients, and what it adds to the model's and the store's time.

`unimetric serve` runs as a process of its own on a free port of the loopback address. So many clients post JPEG files
to ``/v1/search``, each the next one as soon as it has its answer, for some seconds. In turns with that, with one
client: what `SearchIndex.search` does with the same bytes in this process, which is to decode, run the model and ask
the store. What the service adds (HTTP, the upload, checks, threads, JSON) is given twice: as the difference of the
two medians; and, of the very requests of the first, as their mean time less that of decoding, model and store in them,
which ``/metrics`` gives. The second does not depend on the model's speed in two processes. Target: at most 5 ms.

    unimetric index RUN FOLDER --db catalogue.db
    python benchmarks/serve.py catalogue.db FOLDER
"""

from __future__ import annotations

import argparse
import io
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from machine import write_result
from unimetric.data.images import decode_image, is_image_name
from unimetric.search import SearchIndex

TARGET_MS = 5.0
K = 10


def main() -> None:
    """Measure, print a line for each part, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("db", type=Path)
    parser.add_argument("images", type=Path, help="a folder; its pictures are the queries")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--side", type=int, default=512, help="longest side of a query, as the page sends them")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of queries measured in turns with one client")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long 8 and 32 clients ask")
    arguments = parser.parse_args()
    queries = pictures(arguments.images, arguments.queries, arguments.side)
    with SearchIndex.open(arguments.db) as index, served(arguments.db) as url:
        alone = in_turns(index, url, queries, arguments.rounds)
        print(alone)
        crowds = {str(clients): crowd(url, queries, clients, arguments.seconds) for clients in (8, 32)}
        print(crowds)
        result = {
            "target_added_ms": TARGET_MS,
            "rows": index.count(),
            "model": index.embedder.method_name,
            "image_size": index.embedder.backbone.image_size,
            "queries": len(queries),
            "one_client": alone,
            "clients": crowds,
        }
    print(write_result("serve", result))


def pictures(folder: Path, count: int, side: int) -> list[bytes]:
    """JPEG files of pictures from all over a folder."""
    paths = sorted(path for path in folder.rglob("*") if is_image_name(path))
    files = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        image = decode_image(path)
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextmanager
def served(db: Path) -> Iterator[str]:
    """The address of a service on a free port that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "unimetric", "serve", str(db), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the service ended with {process.returncode}")
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def in_turns(index: SearchIndex, url: str, queries: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Median milliseconds with one client, of the service and of the library and its parts."""
    index.search(decode_image(queries[0]), K)
    times: dict[str, list[float]] = {"service": [], "library": [], "decode": [], "embed": [], "store": []}
    # The weights stay cast for all of it, as they do in the service.
    embedder = index.embedder
    with httpx.Client(base_url=url) as client:
        before = work_seconds(client)
        for number in range(rounds):
            part = queries[number::rounds]
            for query in part:
                start = time.perf_counter()
                post(client, query)
                times["service"].append(time.perf_counter() - start)
            for query in part:
                start = time.perf_counter()
                image: Image.Image = decode_image(query)
                decoded = time.perf_counter()
                vector = next(embedder.encode_batches([image]))[0]
                embedded = time.perf_counter()
                index.search_vectors(vector, K)
                end = time.perf_counter()
                for name, value in (
                    ("decode", decoded - start),
                    ("embed", embedded - decoded),
                    ("store", end - embedded),
                    ("library", end - start),
                ):
                    times[name].append(value)
        work = (work_seconds(client) - before) / len(times["service"])
    medians = {f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in times.items()}
    return medians | {
        "added_ms": round(1000 * (statistics.mean(times["service"]) - work), 2),
        "difference_of_medians_ms": round(medians["service_ms"] - medians["library_ms"], 2),
    }


def work_seconds(client: httpx.Client) -> float:
    """Seconds that the service has spent on decoding, model and store so far."""
    wanted = (
        "unimetric_batch_seconds_sum",
        'unimetric_stage_seconds_sum{stage="decode"}',
        'unimetric_stage_seconds_sum{stage="store"}',
    )
    found = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return sum(float(found.get(name, 0)) for name in wanted)


def post(client: httpx.Client, query: bytes) -> None:
    """One search."""
    answer = client.post("/v1/search", files={"image": ("query.jpg", query, "image/jpeg")}, data={"k": str(K)})
    answer.raise_for_status()


def crowd(url: str, queries: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Milliseconds per search while so many clients ask, each one search after the other."""
    times: list[float] = []
    failures: list[Exception] = []
    end = time.perf_counter() + seconds

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for number in range(first, 10**9):
                start = time.perf_counter()
                if start >= end:
                    return
                try:
                    post(client, queries[number % len(queries)])
                except httpx.HTTPError as error:
                    failures.append(error)
                    return
                times.append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(number * 7,)) for number in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    p50, p99 = (round(1000 * float(value), 1) for value in np.percentile(times, [50, 99]))
    return {"p50_ms": p50, "p99_ms": p99, "searches_per_second": round(len(times) / (time.perf_counter() - begin), 1)}


if __name__ == "__main__":
    main()
