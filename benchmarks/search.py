"""The search database by its size: recall, also under conditions, latency with 1, 8 and 32 clients, building, disk.

FAISS (IVF-PQ, refined by the full vectors) and hnswlib answer the same queries in the same run, each at the least
effort that reaches the wanted recall. They hold nothing but vectors, in memory; the database reads rows from the disk
and returns all of their columns. All take one query at a time, as a service gets them; the libraries on one thread.

    python benchmarks/search.py --rows 1000000

Needs ``faiss-cpu`` and ``hnswlib``, which are no dependencies of the package; without one, its part is left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from machine import write_result
from unimetric.models.source import ModelSource
from unimetric.search import SearchIndex
from unimetric.search.stores import create_store
from unimetric.search.stores.base import FORMAT, Effort

SIZE, K = 128, 10
PER_CLASS = 25
DATASETS = 8

Vectors = NDArray[np.float32]
Search = Callable[[Vectors], Sequence[int]]


class Source:
    """Unit vectors as a trained model gives them: tight classes around centres that lie on few directions."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.classes = max(1, rows // PER_CLASS)
        centres = random.normal(size=(self.classes, 32)) @ random.normal(size=(32, SIZE))
        centres += 0.3 * np.linalg.norm(centres, axis=1, keepdims=True) * random.normal(size=centres.shape) / SIZE**0.5
        self._centres = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)

    def draw(self, count: int, seed: int) -> Vectors:
        """Members of random classes, their cosine to the centre around 0.85."""
        random = np.random.default_rng(seed)
        noise = random.normal(size=(count, SIZE)).astype(np.float32) * (0.62 / SIZE**0.5)
        vectors = self._centres[random.integers(0, self.classes, count)] + noise
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest(vectors: Vectors, queries: Vectors) -> NDArray[np.int64]:
    """The exact K nearest rows of every query, [Q, K]."""
    rows: list[NDArray[np.int64]] = []
    for start in range(0, len(queries), 64):
        cosines = queries[start : start + 64] @ vectors.T
        best = np.argpartition(-cosines, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1)
        rows.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(rows)


def recall(search: Search, queries: Vectors, truth: NDArray[np.int64]) -> float:
    """The share of the exact K that is found."""
    found = sum(len(set(search(query)) & set(best)) for query, best in zip(queries, truth.tolist(), strict=True))
    return found / truth.size


def latency(search: Search, queries: Vectors, clients: int, seconds: float) -> dict[str, float]:
    """Milliseconds per query while so many clients ask one after the other, for so long."""
    times: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def ask(client: int) -> None:
        number = client * 97
        while (start := time.perf_counter()) < end:
            search(queries[number % len(queries)])
            times[client].append(time.perf_counter() - start)
            number += 1

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = [one for client in times for one in client]
    p50, p99 = (float(value) * 1000 for value in np.percentile(took, [50, 99]))
    rate = len(took) / (time.perf_counter() - begin)
    return {"p50_ms": round(p50, 4), "p99_ms": round(p99, 4), "queries_per_second": round(rate, 1)}


def make_database(place: Path, vectors: Vectors, batch: int) -> tuple[SearchIndex, float]:
    """A database of these vectors, without images, and the rows per second that were written."""
    about = {
        "format": FORMAT,
        "model": {"folder": "", "weights": None, "fingerprint": "0" * 64, "embedding_size": SIZE},
        "calibration": None,
        "false_match_rate": 0.01,
        "index": {"kind": "none", "rows": 0, "name": None, "efforts": []},
    }
    about["model"]["geometry"] = {"name": "sphere"}  # type: ignore[index]
    store = create_store(place, about, SIZE)
    sides = percentiles(vectors)
    seconds = 0.0
    for start in range(0, len(vectors), batch):
        table = rows(vectors[start : start + batch], start, sides[start : start + batch])
        begin = time.perf_counter()
        store.merge(table)
        seconds += time.perf_counter() - begin
    return SearchIndex(store, None, ModelSource()), len(vectors) / seconds


def percentiles(vectors: Vectors) -> NDArray[np.float64]:
    """Percentile of every row, from 0 to 100, along a fixed direction: a column that goes with the vectors."""
    along = vectors @ np.random.default_rng(7).normal(size=SIZE).astype(np.float32)
    return along.argsort().argsort() * (100 / len(vectors))


def rows(vectors: Vectors, first: int, sides: NDArray[np.float64]) -> pa.Table:
    """Rows as ``unimetric index`` writes them, with a price and without thumbnails."""
    random = np.random.default_rng(first)
    numbers = range(first, first + len(vectors))
    columns: dict[str, Any] = {
        "id": [f"{number:032x}" for number in numbers],
        "dataset": [f"dataset{number % DATASETS}" for number in numbers],
        "label": [f"class{number // PER_CLASS}" for number in numbers],
        "path": [f"/data/images/dataset{number % DATASETS}/{number // PER_CLASS}/{number}.jpg" for number in numbers],
        "content_hash": [random.bytes(32).hex() for _ in numbers],
        "fingerprint": ["0" * 64] * len(vectors),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), SIZE),
        "thumbnail": pa.nulls(len(vectors), pa.binary()),
        "price": random.uniform(0, 100, len(vectors)),
        "side": sides,
    }
    return pa.table(columns)


def disk(place: Path) -> tuple[int, int]:
    """Bytes of all files, and of those in index folders."""
    files = [path for path in place.rglob("*") if path.is_file()]
    indexes = sum(path.stat().st_size for path in files if "_indices" in path.parts)
    return sum(path.stat().st_size for path in files), indexes


def database_search(index: SearchIndex, **options: Any) -> Search:
    """A search that returns all columns of the rows, as `SearchIndex.search` does."""
    return lambda query: [int(match.id, 16) for match in index.search_vectors(query, K, **options)[0]]


def faiss_search(vectors: Vectors) -> Iterator[tuple[str, float | None, Search]]:
    """Name of each effort, seconds that building took (once), and the search."""
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    begin = time.perf_counter()
    coarse = faiss.IndexFlatIP(SIZE)
    inner = faiss.IndexIVFPQ(coarse, SIZE, int(len(vectors) ** 0.5), 16, 8, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexRefineFlat(inner)
    index.train(vectors[:: max(1, len(vectors) // 100_000)])
    index.add(vectors)
    seconds: float | None = time.perf_counter() - begin
    faiss.omp_set_num_threads(1)
    for probes in (4, 8, 16, 32, 64, 128):
        inner.nprobe = probes
        index.k_factor = 16
        yield (
            f"IVF-PQ16, {probes} probes, refine 16",
            seconds,
            lambda query: index.search(query[None], K)[1][0].tolist(),
        )
        seconds = None


def hnsw_search(vectors: Vectors) -> Iterator[tuple[str, float | None, Search]]:
    """As `faiss_search`."""
    hnswlib = import_module("hnswlib")
    begin = time.perf_counter()
    index = hnswlib.Index(space="ip", dim=SIZE)
    index.init_index(max_elements=len(vectors), ef_construction=150, M=16)
    index.add_items(vectors, num_threads=os.cpu_count() or 1)
    seconds: float | None = time.perf_counter() - begin
    for effort in (16, 32, 64, 128, 256, 512):
        index.set_ef(effort)
        yield f"M 16, ef {effort}", seconds, lambda query: index.knn_query(query, K, num_threads=1)[0][0].tolist()
        seconds = None


def compare(
    library: Callable[[Vectors], Iterator[tuple[str, float | None, Search]]],
    vectors: Vectors,
    queries: Vectors,
    truth: NDArray[np.int64],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """A library at the least effort with the wanted recall."""
    seconds, name, share = 0.0, "", 0.0
    for effort, building, search in library(vectors):
        name, seconds = effort, seconds if building is None else building
        share = recall(search, queries, truth)
        if share >= options.recall:
            break
    return {
        "effort": name,
        "recall_at_10": round(share, 4),
        "build_seconds": round(seconds, 1),
        "clients": {str(count): latency(search, queries, count, options.seconds) for count in options.clients},
    }


def measure_database(
    place: Path, vectors: Vectors, queries: Vectors, truth: NDArray[np.int64], options: argparse.Namespace
) -> dict[str, Any]:
    """Everything about the search database."""
    index, rate = make_database(place, vectors, options.batch)
    result: dict[str, Any] = {"ingest_rows_per_second": round(rate), "indexes": {}}
    exact = database_search(index, exact=True)
    result["exact"] = {
        "recall_at_10": round(recall(exact, queries[:20], truth[:20]), 4),
        "clients": {"1": latency(exact, queries, 1, options.seconds)},
    }
    for kind in options.kinds:
        begin = time.perf_counter()
        index.build_index(kind)
        building = time.perf_counter() - begin
        search = database_search(index)
        part = {
            "build_seconds": round(building, 1),
            "recall_at_10": round(recall(search, queries, truth), 4),
            "clients": {str(count): latency(search, queries, count, options.seconds) for count in options.clients},
        }
        part["efforts"] = index._store.about["index"]["efforts"]
        part["conditions"] = filtered_recall(index, vectors, queries[:100])
        if options.sweep:
            part["sweep"] = sweep(index, queries, truth)
        # Without the versions that readers elsewhere might still use, and which go after an hour.
        index._store._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        total, indexes = disk(place)
        part["index_bytes_per_vector"] = round(indexes / len(vectors), 1)
        part["disk_bytes_per_vector"] = round(total / len(vectors), 1)
        result["indexes"][kind] = part
        print(kind, part, flush=True)
    index.close()
    return result


def filtered_recall(index: SearchIndex, vectors: Vectors, queries: Vectors) -> list[dict[str, float | str]]:
    """Recall under conditions that keep a share of the rows, with and without relation to the vectors."""
    stored = index._store.rows(["id", "price"]).sort_by("id")
    columns = {"price": stored["price"].to_numpy(), "side": percentiles(vectors)}
    lines: list[dict[str, float | str]] = []
    for column, values in columns.items():
        for percent in (0.01, 0.1, 1, 10, 50):
            kept = np.flatnonzero(values < percent)
            truth = kept[nearest(vectors[kept], queries)] if len(kept) > K else None
            search = database_search(index, where=f"{column} < {percent}")
            begin = time.perf_counter()
            if truth is None:
                share = float(np.mean([set(search(query)) == set(kept.tolist()) for query in queries]))
            else:
                share = recall(search, queries, truth)
            milliseconds = (time.perf_counter() - begin) / len(queries) * 1000
            line: dict[str, float | str] = {"where": f"{column} < {percent}", "rows": len(kept)}
            line |= {"recall_at_10": round(share, 4), "mean_ms": round(milliseconds, 2)}
            print(line, flush=True)
            lines.append(line)
    return lines


def sweep(index: SearchIndex, queries: Vectors, truth: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Recall and latency by effort, of the store alone."""
    lines = []
    for effort in (*(Effort(p, r) for p in (8, 16, 32, 64) for r in (4, 10)), Effort(8, 4, 64), Effort(8, 4, 128)):
        took: list[float] = []

        def search(query: Vectors, effort: Effort = effort, took: list[float] = took) -> list[int]:
            begin = time.perf_counter()
            (found,) = index._store.nearest(query[None], K, ["id"], None, effort)
            took.append(time.perf_counter() - begin)
            return [int(id, 16) for id in found["id"].to_pylist()]

        share = recall(search, queries, truth)
        p50, p99 = (float(value) * 1000 for value in np.percentile(took, [50, 99]))
        line = {"probes": effort.probes, "refine": effort.refine, "candidates": effort.candidates}
        line |= {"recall_at_10": round(share, 4), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
        print(line, flush=True)
        lines.append(line)
    return lines


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--recall", type=float, default=0.98, help="What the libraries have to reach.")
    parser.add_argument("--seconds", type=float, default=10.0, help="How long each number of clients asks.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batch", type=int, default=10_000, help="Rows per commit.")
    parser.add_argument("--kinds", nargs="+", default=["ivf-pq", "hnsw"])
    parser.add_argument("--sweep", action="store_true", help="Recall and latency by effort as well.")
    parser.add_argument("--folder", type=Path, default=None, help="Where the database goes; default: a temporary one.")
    parser.add_argument("--note", default=None, help="A remark on the circumstances, kept with the result.")
    options = parser.parse_args()

    source = Source(options.rows)
    vectors, queries = source.draw(options.rows, 1), source.draw(options.queries, 2)
    truth = nearest(vectors, queries)
    result: dict[str, Any] = {"rows": options.rows, "queries": options.queries, "size": SIZE, "k": K}
    if options.note:
        result["note"] = options.note
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        result["lancedb"] = measure_database(folder / "db", vectors, queries, truth, options)
    finally:
        shutil.rmtree(folder)
    for name, library in (("faiss", faiss_search), ("hnswlib", hnsw_search)):
        try:
            result[name] = compare(library, vectors, queries, truth, options)
        except ModuleNotFoundError as error:
            result[name] = f"not measured: {error}"
        print(name, result[name], flush=True)
    name = "search" if options.rows == 1_000_000 else f"search_{options.rows}"
    print("written to", write_result(name, result))


if __name__ == "__main__":
    main()
