"""Distribution of work units by Ray Data, on this machine or on the cluster that ``RAY_ADDRESS`` names."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from unimetric.bulk.work_units import WorkUnit
from unimetric.bulk.worker import Done, Job, Worker
from unimetric.errors import UserError, cause


class UnitWorker:
    """A Ray actor with one model. A `UserError` is returned as text, so that it is reported in one line."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch of units."""
        results: dict[str, list[Any]] = {"name": [], "rows": [], "error": []}
        for text in batch["unit"]:
            try:
                if self._worker is None:
                    self._worker = Worker(self._job)
                done = self._worker.make(WorkUnit.from_json(str(text)))
                values: tuple[Any, ...] = (done.name, done.rows, "")
            except UserError as error:
                values = ("", 0, str(error))
            for name, value in zip(results, values, strict=True):
                results[name].append(value)
        return results


def make_shards(job: Job, units: Sequence[WorkUnit]) -> Iterator[Done]:
    """Make all units and yield each when it is finished, in any order.

    A worker that dies is replaced, and its units are made again. A `UserError` if Ray is not installed, the cluster has
    too few processors, or a unit cannot be made.
    """
    with _cluster() as ray:
        count, processors, gpus = _shares(ray, job.options.workers, job.model.device.accelerator)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = [{"unit": unit.to_json()} for unit in units]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            UnitWorker,
            fn_constructor_kwargs={"job": replace(job, threads=processors)},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
            num_cpus=processors,
            num_gpus=gpus,
        )
        for row in results.iter_rows():
            if row["error"]:
                raise UserError(str(row["error"]))
            yield Done(str(row["name"]), int(row["rows"]))


@contextmanager
def _cluster() -> Iterator[Any]:
    # Turns off Ray's usage reports; read when Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            "--engine is ray: Ray is not installed; install it with pip install 'unimetric[scale]'"
        ) from error
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=None if address != "local" else False,
        )
    except Exception as error:  # Ray has no class of its own for a node that does not start in time
        if address == "local":
            raise UserError(
                f"cannot start Ray here: {cause(error)}; run it again, or use --shard without it"
            ) from error
        raise UserError(f"cannot reach the Ray cluster {address}: {cause(error)}; check RAY_ADDRESS") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _shares(ray: Any, workers: int | None, accelerator: str) -> tuple[int, int, int]:
    """Return the number of workers, and the processors and GPUs of each."""
    resources = ray.cluster_resources()
    processors, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    use_gpus = gpus > 0 and accelerator in ("auto", "cuda")
    count = workers or (gpus if use_gpus else len(ray.nodes()))
    if count > processors or (use_gpus and count > gpus):
        have = f"{processors} processors" + (f" and {gpus} GPUs" if use_gpus else "")
        raise UserError(f"--workers is {count}: the cluster has {have}; each worker needs one of its own")
    return count, max(1, processors // count), int(use_gpus)
