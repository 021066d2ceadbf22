"""The whole search service over HTTP with 1, 8 and 32 clients, and what it adds to the model's and the store's time.

`unimetric serve` runs as a process of its own on a free port of the loopback address. So many clients post JPEG files
to ``/v1/search``, each the next one as soon as it has its answer, for some seconds. In turns with that, with one
client: what `SearchIndex.search` does with the same bytes in this process, which is to decode, run the model and ask
the store. What the service adds (HTTP, the upload, checks, threads, JSON) is given twice: as the difference of the
two medians; and, of the very requests of the first, as their mean time less that of decoding, model and store in them,
which ``/metrics`` gives. The second does not depend on the model's speed in two processes. Target: at most 5 ms.

Each kind of request (a picture, four pictures of which each is a query, a vector, an item for "more like this") is
measured with all numbers of clients, with the milliseconds that a request spends in each stage. ``--before SRC`` serves
the same database from another version's ``src`` as well, in turns; a kind that it refuses is left out.

    unimetric index RUN FOLDER --db catalogue.db
    python benchmarks/serve.py catalogue.db FOLDER
"""

from __future__ import annotations

import argparse
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from machine import write_result
from unimetric.data.images import decode_image, is_image_name
from unimetric.search import SearchIndex

Body = dict[str, Any]
"""What a request is made of, as `httpx.Client.post` takes it."""

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
    parser.add_argument("--seconds", type=float, default=10.0, help="how long clients of a kind ask")
    parser.add_argument("--before", type=Path, help="folder src of another version to serve from, too")
    parser.add_argument("--note", default="", help="conditions of the measurement")
    arguments = parser.parse_args()
    queries = pictures(arguments.images, arguments.queries, arguments.side)
    sources = {"now": None} if arguments.before is None else {"before": arguments.before, "now": None}
    with SearchIndex.open(arguments.db) as index:
        with served(arguments.db) as url:
            alone = in_turns(index, url, queries, arguments.rounds)
            print(alone, flush=True)
        vectors = [index.embedder.encode(decode_image(query))[0].tolist() for query in queries]
        kinds = requests_of(queries, vectors, [item.id for item in index.sample(len(queries))])
        result = {
            "target_added_ms": TARGET_MS,
            "rows": index.count(),
            "model": index.embedder.method_name,
            "image_size": index.embedder.backbone.image_size,
            "queries": len(queries),
            "one_client": alone,
            "clients": {name: by_kind(arguments, kinds, source) for name, source in sources.items()},
            "note": arguments.note,
        }
    print(write_result("serve", result))


def requests_of(queries: Sequence[bytes], vectors: Sequence[list[float]], ids: Sequence[str]) -> dict[str, list[Body]]:
    """The bodies of the requests of each kind."""
    files = [("query.jpg", query, "image/jpeg") for query in queries]
    several = [[("images", file) for file in files[start : start + 4]] for start in range(0, len(files) - 3, 4)]
    return {
        "picture": [{"files": {"image": file}, "data": {"k": str(K)}} for file in files],
        "four pictures": [{"files": some, "data": {"k": str(K), "each": "true"}} for some in several],
        "vector": [{"json": {"vector": vector, "k": K}} for vector in vectors],
        "more like this": [{"json": {"id": id, "k": K}} for id in ids],
    }


def by_kind(arguments: argparse.Namespace, kinds: dict[str, list[Body]], source: Path | None) -> dict[str, Any]:
    """Latency and stages by kind of request and number of clients, of the service of one version."""
    result: dict[str, Any] = {}
    with served(arguments.db, source) as url:
        for kind, bodies in kinds.items():
            with httpx.Client(base_url=url, timeout=60) as client:
                if client.post("/v1/search", **bodies[0]).status_code != 200:
                    continue
            for clients in (1, 8, 32):
                found = crowd(url, bodies, clients, arguments.seconds)
                result.setdefault(kind, {})[str(clients)] = found
                print(source, kind, clients, found, flush=True)
    return result


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
def served(db: Path, source: Path | None = None) -> Iterator[str]:
    """The address of a service on a free port that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "unimetric", "serve", str(db), "--port", str(port)]
    environment = os.environ if source is None else {**os.environ, "PYTHONPATH": str(source)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
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
    found = counters(client)
    return found["batch"] + found.get("decode", 0.0) + found.get("store", 0.0)


def counters(client: httpx.Client) -> dict[str, float]:
    """Seconds that the service has spent in each stage so far, in forward passes, and in requests to search."""
    lines = client.get("/metrics").text.splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}
    stage = re.compile(r'unimetric_stage_seconds_sum\{stage="(.*)"\}')
    found = {match[1]: value for name, value in values.items() if (match := stage.fullmatch(name))}
    found["batch"] = values.get("unimetric_batch_seconds_sum", 0.0)
    found["request"] = sum(
        value for name, value in values.items() if name.startswith("unimetric_request_seconds_sum") and "search" in name
    )
    return found


def post(client: httpx.Client, query: bytes) -> None:
    """One search."""
    answer = client.post("/v1/search", files={"image": ("query.jpg", query, "image/jpeg")}, data={"k": str(K)})
    answer.raise_for_status()


def crowd(url: str, bodies: Sequence[Body], clients: int, seconds: float) -> dict[str, Any]:
    """Milliseconds per search while so many clients ask, each one search after the other, and in each stage of it."""
    times: list[float] = []
    failures: list[Exception] = []
    with httpx.Client(base_url=url) as client:
        before = counters(client)
    end = time.perf_counter() + seconds

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            for number in range(first, 10**9):
                start = time.perf_counter()
                if start >= end:
                    return
                try:
                    client.post("/v1/search", **bodies[number % len(bodies)]).raise_for_status()
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
    rate = len(times) / (time.perf_counter() - begin)
    p50, p99 = (round(1000 * float(value), 2) for value in np.percentile(times, [50, 99]))
    with httpx.Client(base_url=url) as client:
        spent = {name: value - before.get(name, 0.0) for name, value in counters(client).items()}
    stages = {name: round(1000 * value / len(times), 2) for name, value in spent.items() if value}
    return {"p50_ms": p50, "p99_ms": p99, "searches_per_second": round(rate, 1), "mean_stage_ms": stages}


if __name__ == "__main__":
    main()
