"""Every benchmark in a short form, and one table: figure, target, reference, ratio, met or not.

At most 15 minutes on two cores. Pictures, a model and a database are made for it in a temporary folder. The short
forms have fewer repetitions and fewer images than the results beside this file, and do not replace them: what they
measure goes to ``results/short``, the table to ``results/short/all.json`` and ``all.md``.

    python benchmarks/all.py

The exit code is 1 if a benchmark failed; a target that is not met is a line in the table and no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
LIMIT_SECONDS = 15 * 60
PICTURES, SIDE = 96, 512


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ratio`` is the figure over its reference, and ``at_most`` says which side is good."""

    figure: str
    target: float | None
    reference: str
    ratio: float
    at_most: bool = True

    @property
    def met(self) -> str:
        """Yes, no, or a dash where there is no target."""
        if self.target is None:
            return "-"
        return "yes" if (self.ratio <= self.target if self.at_most else self.ratio >= self.target) else "no"


@dataclass(frozen=True)
class Benchmark:
    """A short form: the arguments of ``benchmarks/NAME.py``, and how to read what it writes."""

    name: str
    arguments: Callable[[Path], list[str]]
    rows: Callable[[dict[str, Any]], Iterator[Row]]


def main() -> None:
    """Run them one after the other, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks to run, all by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "short")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {benchmark.name for benchmark in BENCHMARKS}
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    chosen = [benchmark for benchmark in BENCHMARKS if not arguments.names or benchmark.name in arguments.names]
    deadline = time.monotonic() + LIMIT_SECONDS
    rows: list[Row] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), [benchmark.name for benchmark in chosen])
        for benchmark in chosen:
            found, failure = rows_of(benchmark, Path(folder), arguments.out, deadline)
            rows += found
            if failure:
                failures[benchmark.name] = failure
    os.environ["BENCHMARK_RESULTS"] = str(arguments.out)
    from machine import write_result

    table = as_table(rows, failures)
    print(table)
    written = write_result("all", {"rows": [asdict(row) | {"met": row.met} for row in rows], "failures": failures})
    written.with_suffix(".md").write_text(heading(json.loads(written.read_text())) + table)
    raise SystemExit(1 if failures else 0)


class FailedError(Exception):
    """A benchmark that gave no result, and why."""


def rows_of(benchmark: Benchmark, folder: Path, out: Path, deadline: float) -> tuple[list[Row], str]:
    """The lines of a benchmark, or none and why."""
    try:
        return list(benchmark.rows(run(benchmark, folder, out, deadline))), ""
    except FailedError as error:
        return [], str(error)


def run(benchmark: Benchmark, folder: Path, out: Path, deadline: float) -> dict[str, Any]:
    """Result file of a benchmark.

    Raises:
        FailedError: it is missing, stopped with an error, or took the time that was left.
    """
    script, result = HERE / f"{benchmark.name}.py", out / f"{benchmark.name}.json"
    if not script.is_file():
        raise FailedError("not measured: no such benchmark")
    result.unlink(missing_ok=True)
    command = [sys.executable, str(script), *benchmark.arguments(folder)]
    print("==", "python", f"benchmarks/{script.name}", *benchmark.arguments(Path()), flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "BENCHMARK_RESULTS": str(out.absolute())},
            stderr=subprocess.PIPE,
            text=True,
            timeout=max(1.0, deadline - began),
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"not measured: stopped at the limit of {LIMIT_SECONDS // 60} minutes for all") from error
    if done.returncode or not result.is_file():
        sys.stderr.write(done.stderr)
        last = (done.stderr.strip().splitlines() or ["it wrote no result"])[-1]
        raise FailedError(f"failed: {last}")
    print(f"   {time.monotonic() - began:.0f} s", flush=True)
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def prepare(folder: Path, names: list[str]) -> None:
    """Pictures of ten classes; for the service, an untrained model and a database of the pictures too."""
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        rough = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        place = folder / "pictures" / f"class {number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        rough.resize((SIDE, SIDE * 3 // 4), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
    if not {"serve", "startup"} & {*names}:
        return
    from unimetric.models.backbone import make_backbone
    from unimetric.models.embedder import Embedder

    Embedder(make_backbone("dinov2-small", image_size=112), "puma").save_pretrained(folder / "model")
    model = str(folder / "model")
    for command in (
        ["index", model, str(folder / "pictures"), "--db", str(folder / "catalogue.db")],
        ["export", model, "--format", "onnx"],
    ):
        done = subprocess.run([sys.executable, "-m", "unimetric", *command], capture_output=True, text=True)
        if done.returncode:
            # The benchmark that needs it will fail without it; here is why.
            sys.stderr.write(done.stderr)


def of_embed(result: dict[str, Any]) -> Iterator[Row]:
    """Time beside the bare backbone in the same form, and images per second beside timm's."""
    targets = result["targets"]
    for row in result["results"]:
        for form in ("PUMA form", "LoRA form", "PUMA form, int8", "LoRA form, int8"):
            # On a GPU there is no int8.
            if form not in row["speedup_to_timm"]:
                continue
            name = form if form.endswith("int8") else f"{form}, {row['precision']}"
            where = f"{row['image_size']} px"
            ratio = row["time_to_bare_form"][form]
            yield Row(f"embedding, {name}, time, {where}", targets["form_to_bare"], "bare backbone, same form", ratio)
            ratio = row["speedup_to_timm"][form]
            target = targets["form_speedup"]
            yield Row(f"embedding, {name}, images/s, {where}", target, "timm, eager fp32", ratio, at_most=False)


def of_train_step(result: dict[str, Any]) -> Iterator[Row]:
    """The training step's three parts."""
    targets = result["targets"]
    for row in result["backbone"]:
        reference = f"{row['reference_forwards']:.2f} bare forwards"
        yield Row(f"training step, {row['method']}, {row['precision']}", targets["backbone"], reference, row["ratio"])
    for name, row in result["methods"].items():
        if name != "full":
            yield Row(f"training step, {name}, time", targets["time_to_full"], "full", row["time_to_full"])
            yield Row(f"training step, {name}, peak memory", targets["memory_to_full"], "full", row["memory_to_full"])
    few, many = result["settings"]["many_classes"]
    yield Row(f"training step, {many} classes", targets["classes"], f"{few} classes", result["classes"]["ratio"])
    limit = targets["loss_bytes"]
    yield Row(f"loss of {many} classes, memory", 1.0, f"{limit / 1e9:.1f} GB", result["classes"]["loss_bytes"] / limit)


def of_evaluate(result: dict[str, Any]) -> Iterator[Row]:
    """Search of all by all."""
    targets, images = result["targets"], result["settings"]["images"]
    figure = f"evaluate, {images} by {images}"
    yield Row(f"{figure}, time", targets["ratio"], "bare float32 products", result["speed"]["ratio"])
    limit = targets["bytes_above_vectors"]
    above = result["memory"]["bytes_above_vectors"]
    yield Row(f"{figure}, memory above the vectors", 1.0, f"{limit / 1e9:.0f} GB", above / limit)


def of_search(result: dict[str, Any]) -> Iterator[Row]:
    """The database's recall, and its latency beside FAISS where that is installed."""
    faiss = result.get("faiss")
    for kind, index in result["lancedb"]["indexes"].items():
        figure = f"search, {result['rows']} vectors, {kind}"
        yield Row(f"{figure}, recall at 10", None, "exact search", index["recall_at_10"], at_most=False)
        if isinstance(faiss, dict):
            latency = index["clients"]["1"]["p50_ms"] / faiss["clients"]["1"]["p50_ms"]
            yield Row(f"{figure}, median latency", None, f"FAISS, {faiss['effort']}", latency)


def of_serve(result: dict[str, Any]) -> Iterator[Row]:
    """Time that HTTP adds."""
    limit = result["target_added_ms"]
    yield Row("serve, added by the service", 1.0, f"{limit:g} ms", result["one_client"]["added_ms"] / limit)


def of_startup(result: dict[str, Any]) -> Iterator[Row]:
    """Seconds from a command to its end."""
    for name, target in result["targets"].items():
        yield Row(f"start-up, {name}", 1.0, f"{target:g} s", result["seconds"][name] / target)


def of_data(result: dict[str, Any]) -> Iterator[Row]:
    """Images per second from disk to batch."""
    for row in result["results"]:
        for way in ("files", "files, reduced decode", "jpeg cache", "raw cache"):
            figure = f"disk to batch, {way}, {row['case']}"
            yield Row(figure, result["target"], "ImageFolder + DataLoader", row["ratios"][way], at_most=False)


def as_table(rows: list[Row], failures: dict[str, str]) -> str:
    """The table in Markdown, and what could not be measured below it."""
    lines = ["| Figure | Target | Reference | Ratio | Met |", "|---|---|---|---|---|"]
    for row in rows:
        target = "-" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
        lines.append(f"| {row.figure} | {target} | {row.reference} | {row.ratio:.2f} | {row.met} |")
    lines += ["", *(f"{name}: {reason}" for name, reason in failures.items())]
    return "\n".join(lines).rstrip() + "\n"


def heading(result: dict[str, Any]) -> str:
    """Commands, machine and date."""
    machine = result["machine"]
    where = f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores"
    return f"`{result['command']}`, {where}, torch {machine['torch']}, {result['date']}.\n\n"


BENCHMARKS = (
    Benchmark("embed", lambda folder: [str(folder / "pictures"), "--repetitions", "3"], of_embed),
    Benchmark("train_step", lambda folder: ["--repetitions", "3", "--precisions", "bf16"], of_train_step),
    Benchmark("data", lambda folder: [str(folder / "pictures")], of_data),
    Benchmark("evaluate", lambda folder: ["--images", "40000", "--beside", "2000"], of_evaluate),
    Benchmark(
        "search",
        lambda folder: [
            *("--rows", "50000", "--queries", "200", "--seconds", "2"),
            *("--clients", "1", "8", "--kinds", "ivf-pq"),
        ],
        of_search,
    ),
    Benchmark(
        "serve",
        lambda folder: [
            str(folder / "catalogue.db"),
            str(folder / "pictures"),
            *("--queries", "32", "--rounds", "3", "--seconds", "2"),
        ],
        of_serve,
    ),
    Benchmark(
        "startup",
        lambda folder: [
            str(folder / "catalogue.db"),
            str(folder / "pictures" / "class 0" / "0.jpg"),
            str(folder / "model"),
            *("--repetitions", "3"),
        ],
        of_startup,
    ),
)


if __name__ == "__main__":
    main()
