"""Search in memory beside a database, against hnswlib at equal recall in the same run.

A database of vectors in tight classes is made, as ``search.py`` makes it, with the files of its graph. Then, in turns:
`SearchIndex.search_vectors`, which returns rows with all their columns, and hnswlib, which returns the numbers of
vectors: with its least effort that reaches the wanted recall, and with the least that reaches that of `SearchIndex`.
One client, and 32 clients.
Further: bytes of memory a vector, seconds to the first answer from existing files, and recall under conditions that
keep 0.01 to 50 % of the rows, on one side of the space and anywhere.

    python benchmarks/search_memory.py --rows 1000000 --work FOLDER

With ``--work`` database, graphs and figures are kept there, and an interrupted run goes on with them. ``--stages`` runs
some of build, open, one_client, clients and conditions; the result is written once there are figures of all.
``--before SRC``, the folder src of another version, measures 32 clients of it and of this one, in turns. Needs
``hnswlib``, which is no dependency of the package.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import write_result
from search import SIZE, K, Source, Vectors, latency, make_database, nearest, percentiles, recall
from unimetric.search import SearchIndex
from unimetric.search.memory import graph as memory_graph
from unimetric.search.memory import search as memory_search
from unimetric.search.memory.files import MemoryFiles

Search = Callable[[Vectors], Sequence[int]]
BATCH = 50_000
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5)

STAGES = ("build", "open", "one_client", "clients", "conditions")

READY = """
import sys, time
import lancedb, numpy as np, pyarrow.compute, usearch.index
from unimetric.search import SearchIndex
from unimetric.search.memory import search as memory_search
memory_search.EXACT_ROWS = int(sys.argv[2])
query = np.load(sys.argv[3])
def resident():
    with open('/proc/self/statm') as file:
        return 4096 * int(file.read().split()[1])
before = resident()
begin = time.perf_counter()
index = SearchIndex.open(sys.argv[1])
index.prepare()
index.search_vectors(query[0], 10)
ready, first = time.perf_counter() - begin, resident()
for one in query:
    index.search_vectors(one, 10)
print(ready, first - before, resident() - before)
"""

CLIENTS = """
import json, sys
import numpy as np
from search import K, latency
from unimetric.search import SearchIndex
from unimetric.search.memory import search as memory_search
memory_search.EXACT_ROWS = int(sys.argv[2])
queries = np.load(sys.argv[3])
with SearchIndex.open(sys.argv[1]) as index:
    index.prepare()
    print(json.dumps(latency(lambda query: index.search_vectors(query, K), queries, 32, float(sys.argv[4]))))
"""


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.98, help="at 10; hnswlib's least effort that reaches it")
    parser.add_argument("--seconds", type=float, default=10.0, help="time of each measurement with clients")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions in turns; medians are reported")
    parser.add_argument("--exact_rows", type=int, default=memory_search.EXACT_ROWS, help="no graph up to so many rows")
    parser.add_argument("--work", type=Path, help="folder to keep database, graphs and figures in")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what to do in this run")
    parser.add_argument("--before", type=Path, help="folder src of another version to measure with 32 clients, too")
    parser.add_argument("--note", default="", help="conditions of the measurement")
    options = parser.parse_args()
    name = "search_memory" if options.exact_rows == memory_search.EXACT_ROWS else "search_graph"
    memory_search.EXACT_ROWS = options.exact_rows
    with kept(options.work) as folder:
        figures = folder / f"figures_{options.exact_rows}.json"
        result = json.loads(figures.read_text()) if figures.is_file() else {}
        for stage in options.stages:
            result[stage] = measure(stage, folder, options)
            figures.write_text(json.dumps(result))
        if options.before is not None:
            result["clients_of_versions"] = versions(folder / "db", folder, options)
            figures.write_text(json.dumps(result))
    if set(STAGES) <= set(result):
        parts = {stage: result[stage] for stage in (*STAGES, "clients_of_versions") if stage in result}
        print(write_result(f"{name}_{options.rows}", {"rows": options.rows, **parts, "note": options.note}))


@contextmanager
def kept(work: Path | None) -> Iterator[Path]:
    """The folder to work in; a temporary one without a name."""
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        work.mkdir(parents=True, exist_ok=True)
        yield work


def measure(stage: str, folder: Path, options: argparse.Namespace) -> Any:
    """The figures of one stage."""
    place = folder / "db"
    if stage == "build":
        return built(place, folder, options)
    if stage == "open":
        return started(place, folder, options)
    vectors, queries = drawn(folder, options)
    with SearchIndex.open(place) as index:
        index.prepare()
        if stage == "conditions":
            return under_conditions(index, vectors, queries[:200])
        library, truth = hnswlib_graph(folder), np.load(folder / "truth.npy")
        reached = recall(of_index(index), queries, truth)
        efforts = {
            "hnswlib": library_effort(library, queries, truth, options.recall),
            "hnswlib_equal": library_effort(library, queries, truth, reached),
        }
        ways = {"memory": partial(of_index, index)}
        ways |= {name: partial(of_hnswlib, library, effort) for name, effort in efforts.items()}
        found: dict[str, Any] = {"effort": efforts}
        found |= {f"{name}_recall_at_10": round(recall(way(), queries, truth), 4) for name, way in ways.items()}
        return found | in_turns(ways, queries, 1 if stage == "one_client" else 32, options)


def built(place: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing: vectors, truth, database and both graphs; give seconds of the graphs, bytes of files."""
    vectors, queries = drawn(folder, options)
    if not (folder / "truth.npy").is_file():
        np.save(folder / "truth.npy", nearest(vectors, queries))
    if not (place / "items.lance").is_dir():
        make_database(place, vectors, BATCH)[0].close()
    # All cores, as hnswlib uses them; usually half of them are left to searches.
    memory_graph.available_cores = lambda: 2 * (os.cpu_count() or 1)
    begin = time.perf_counter()
    with SearchIndex.open(place) as index:
        index.prepare()
    seconds = {"memory": round(time.perf_counter() - begin, 1)}
    begin = time.perf_counter()
    make_hnswlib_graph(folder, vectors)
    seconds["hnswlib"] = round(time.perf_counter() - begin, 1)
    files = MemoryFiles(str(place.absolute()))
    sizes = {path.name: path.stat().st_size for path in files.folder.rglob("*") if path.is_file()}
    bytes_per_vector = {name: round(size / options.rows, 1) for name, size in sorted(sizes.items())}
    return {"seconds": seconds, "file_bytes_per_vector": bytes_per_vector}


def drawn(folder: Path, options: argparse.Namespace) -> tuple[Vectors, Vectors]:
    """Vectors and queries; those of the folder where it has some."""
    file = folder / "vectors.npy"
    if not file.is_file():
        source = Source(options.rows)
        np.save(file, source.draw(options.rows, 1))
        np.save(folder / "queries.npy", source.draw(options.queries, 2))
    return np.load(file, mmap_mode="r"), np.load(folder / "queries.npy")


def of_index(index: SearchIndex) -> Search:
    """The search of the package, in memory, with all columns of the rows."""
    return lambda query: [int(match.id, 16) for match in index.search_vectors(query, K)[0]]


def make_hnswlib_graph(folder: Path, vectors: Vectors) -> None:
    """Build hnswlib's graph, or what is missing of it."""
    file = folder / "hnswlib.bin"
    graph = hnswlib_graph(folder) if file.is_file() else import_module("hnswlib").Index(space="ip", dim=SIZE)
    if not file.is_file():
        graph.init_index(max_elements=len(vectors), ef_construction=100, M=16)
    for start in range(graph.get_current_count(), len(vectors), BATCH):
        part = vectors[start : start + BATCH]
        graph.add_items(part, np.arange(start, start + len(part)), num_threads=os.cpu_count() or 1)
        graph.save_index(str(file))


def hnswlib_graph(folder: Path) -> Any:
    """hnswlib's graph from its file."""
    graph = import_module("hnswlib").Index(space="ip", dim=SIZE)
    graph.load_index(str(folder / "hnswlib.bin"), max_elements=len(np.load(folder / "vectors.npy", mmap_mode="r")))
    return graph


def of_hnswlib(graph: Any, effort: int) -> Search:
    """hnswlib's search with an effort, which returns the numbers of vectors; for the whole graph until the next one."""
    graph.set_ef(effort)

    def search(query: Vectors) -> Sequence[int]:
        found: Sequence[int] = graph.knn_query(query, K, num_threads=1)[0][0].tolist()
        return found

    return search


def library_effort(graph: Any, queries: Vectors, truth: NDArray[np.int64], wanted: float) -> int:
    """hnswlib's least effort that reaches a recall."""
    for effort in (*range(10, 32), 32, 48, 64, 96, 128, 192, 256):
        if recall(of_hnswlib(graph, effort), queries, truth) >= wanted:
            return effort
    return 512


def in_turns(
    ways: dict[str, Callable[[], Search]], queries: Vectors, clients: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Median over the rounds of latency and rate, all ways in turns."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            measured[name].append(timed(way(), queries, clients, options.seconds))
    result: dict[str, Any] = {
        name: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for name, found in measured.items()
    }
    for name in ("hnswlib", "hnswlib_equal"):
        result[f"p50_ratio_to_{name}"] = round(result["memory"]["p50_ms"] / result[name]["p50_ms"], 2)
    print(clients, result, flush=True)
    return result


def timed(search: Search, queries: Vectors, clients: int, seconds: float) -> dict[str, float]:
    """Wall time of queries, and the processor's time of each, which other processes disturb less."""
    begin = time.process_time()
    found = latency(search, queries, clients, seconds)
    used = time.process_time() - begin
    return {**found, "cpu_ms": round(1000 * used / max(1.0, found["queries_per_second"] * seconds), 3)}


def under_conditions(index: SearchIndex, vectors: Vectors, queries: Vectors) -> list[dict[str, Any]]:
    """Recall and milliseconds under conditions that keep a share of the rows.

    ``side`` is a percentile along a direction, so that the rows are near some queries and far from others; ``price``
    has nothing to do with the vectors.
    """
    sides = percentiles(vectors)
    prices = np.concatenate(
        [_prices(start, min(50_000, len(vectors) - start)) for start in range(0, len(vectors), 50_000)]
    )
    result = []
    for column, values in (("side", sides), ("price", prices)):
        for share in SHARES:
            where = f"{column} < {100 * share}"
            rows = np.flatnonzero(values < 100 * share)
            best = [set(rows[places].tolist()) for places in _best(vectors[rows], queries)]
            index.search_vectors(queries[0], K, where=where)
            begin = time.perf_counter()
            answers = [index.search_vectors(query, K, where=where)[0] for query in queries]
            seconds = time.perf_counter() - begin
            found = sum(
                len({int(match.id, 16) for match in answer} & wanted)
                for answer, wanted in zip(answers, best, strict=True)
            )
            wanted = sum(map(len, best))
            entry = {
                "condition": column,
                "share": share,
                "rows": len(rows),
                "recall_at_10": round(found / wanted, 4) if wanted else None,
                "mean_ms": round(1000 * seconds / len(queries), 2),
            }
            print(entry, flush=True)
            result.append(entry)
    return result


def _prices(first: int, count: int) -> NDArray[np.float64]:
    """The prices that ``search.rows`` gives a batch of rows."""
    random = np.random.default_rng(first)
    for _ in range(count):
        random.bytes(32)
    return random.uniform(0, 100, count)


def _best(vectors: Vectors, queries: Vectors) -> list[NDArray[np.int64]]:
    if len(vectors) <= K:
        return [np.arange(len(vectors)) for _ in queries]
    return list(nearest(vectors, queries))


def started(place: Path, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds from opening to the first answer in a new process, and the memory that it took, after 1,000 queries.

    The libraries were imported before. Pages of the mapped files count as far as they were read.
    """
    command = [sys.executable, "-c", READY, str(place), str(options.exact_rows), str(folder / "queries.npy")]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    found = [[float(value) for value in run] for run in runs]
    seconds, first, later = (statistics.median(run[part] for run in found) for part in range(3))
    return {
        "ready_seconds": round(seconds, 2),
        "resident_bytes_per_vector_when_ready": round(first / options.rows, 1),
        "resident_bytes_per_vector": round(later / options.rows, 1),
    }


def versions(place: Path, folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of 32 clients over the rounds, each version in a process of its own, in turns."""
    here = Path(__file__).parent
    sources = {"before": options.before, "now": here.parent / "src"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    arguments = [str(place), str(options.exact_rows), str(folder / "queries.npy"), str(options.seconds)]
    for _ in range(options.rounds):
        for name, source in sources.items():
            environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{here}"}
            command = [sys.executable, "-c", CLIENTS, *arguments]
            run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found[name].append(json.loads(run.stdout))
            print(name, found[name][-1], flush=True)
    return {name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}


if __name__ == "__main__":
    main()
