"""Processes that train together: their start, communication and common end."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from unimetric.config import DeviceConfig
from unimetric.data.loading import Batch
from unimetric.errors import ProcessLost, UserError
from unimetric.models.devices import choose_device, compute_dtype
from unimetric.training.global_batch import GlobalBatch
from unimetric.training.interrupt import Interrupted
from unimetric.training.watch import KINDS, Verdict, Watch

# Rank 0 may measure for hours while the others wait. `Watch` notices processes that die.
_PATIENCE = timedelta(days=30)
_STORE_TIMEOUT = timedelta(seconds=15)


def make_fabric(config: DeviceConfig) -> Fabric:
    """Return device, precision and strategy of this process; others are not started yet."""
    device = choose_device(config.accelerator)
    dtype = compute_dtype(config.precision, device)
    return Fabric(
        accelerator=device.type,
        devices=config.processes,
        num_nodes=config.machines,
        strategy=DDPStrategy(timeout=_PATIENCE) if config.total_processes > 1 else "auto",
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
    )


class Processes:
    """This process among those that train together; a single one does not communicate.

    Args:
        fabric: Launched here: the other processes of this machine start with the same command, unless a launcher such
            as torchrun or Slurm's srun has started them. Check the command's options before.
        remedy: The command that continues the run when one of them dies.
    """

    def __init__(self, fabric: Fabric, remedy: str) -> None:
        self.fabric, self.rank, self.count = fabric, fabric.global_rank, fabric.world_size
        self._remedy = remedy
        self._watch: Watch | None = None
        self._control: Any = None
        if self.count == 1:
            return
        self._watch = Watch(self.rank, self.count, children := dict[int, Any](), self._leave)
        with _environment_of_a_launched_process(fabric, children) as self._meeting:
            fabric.launch()
        # Small messages between CPUs, whatever the devices are.
        self._control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._watch.connect(self._make_store())

    def join(self, batch: Batch, global_size: int) -> GlobalBatch:
        """The global batch, of at most ``global_size`` images, that ``batch`` is this process's slice of."""
        if self.count == 1:
            return GlobalBatch.alone(batch)
        return GlobalBatch.exchange(batch, -(-global_size // self.count), self._control)

    def any_of(self, value: bool) -> bool:
        """Return True in all processes if ``value`` is True in one."""
        if self.count == 1:
            return value
        values = torch.tensor([int(value)])
        dist.all_reduce(values, group=self._control)
        return bool(values.item())

    @torch.no_grad()
    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, of the same shapes in all processes, with those of rank 0."""
        for tensor in tensors if self.count > 1 else ():
            # A gradient may be laid out in another way, which a collective refuses.
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)

    def gather_objects(self, value: Any) -> list[Any]:
        """Return a small value of each process, by rank."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def check_same(self, value: Any, what: str) -> None:
        """Refuse to begin if a process, perhaps on another machine, has a different value from rank 0's."""
        values = self.gather_objects(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(
                    f"process {rank + 1} of {self.count} has other {what} than the first process: every machine needs "
                    "the same files under the same paths, and a run folder on a file system that all share"
                )

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """While active, an error in one process ends all; rank 0 reports it once, if it is alive.

        Raises:
            UserError: in rank 0, also if another process raised it.
            ProcessLost: in rank 0: another process died.
            SystemExit: in the other processes, without a message.
        """
        if self._watch is None:
            yield
            return
        try:
            yield
        except Interrupted:
            self._watch.stop(wait_for_others=10)
            raise
        except KeyboardInterrupt:
            self._watch.stop()
            if self.rank:
                raise SystemExit(130) from None
            raise
        except Exception as error:
            self._end(self._watch, error)
        self._watch.stop(wait_for_others=10 if self.rank == 0 else 0)
        dist.destroy_process_group()

    def _end(self, watch: Watch, error: Exception) -> None:
        # The end of another process appears here as a broken connection.
        verdict = watch.verdict(60) if _is_of_a_connection(error) else None
        own = verdict is None
        if verdict is None:
            kind = next((name for name, kind in KINDS.items() if isinstance(error, kind)), "")
            text = f"process {self.rank + 1} of {self.count} failed: {error!r}"
            if kind or isinstance(error, ProcessLost):
                text = str(error)
            verdict = Verdict(text, kind)
            watch.fail(verdict)
        watch.stop(wait_for_others=5 if self.rank == 0 else 0)
        if self.rank == 0:
            watch.kill_children()
            if own:
                raise error
            if verdict.kind:
                raise KINDS[verdict.kind](verdict.text) from None
            raise ProcessLost(self._describe(verdict)) from None
        if own and not verdict.kind:
            raise error
        if self._reports(verdict):
            print(f"unimetric: error: {self._describe(verdict)}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(verdict.exit_code) from None

    def _leave(self, verdict: Verdict) -> None:
        """End this process at once, whatever its main thread waits for."""
        if self._watch is not None and self.rank == 0:
            self._watch.kill_children()
        if self._reports(verdict):
            print(f"unimetric: error: {self._describe(verdict)}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(verdict.exit_code)

    def _reports(self, verdict: Verdict) -> bool:
        return self.rank == (0 if verdict.from_first else 1)

    def _describe(self, verdict: Verdict) -> str:
        return verdict.text if verdict.kind else f"{verdict.text}; the run has ended; {self._remedy}"

    def _make_store(self) -> TCPStore:
        """Return a store for `Watch` alone, in rank 0."""
        host = _environment(self.fabric).main_address
        first = self.rank == 0
        made = TCPStore(host, 0, None, True, _STORE_TIMEOUT, wait_for_workers=False) if first else None
        port = self.fabric.broadcast(made.port if made else 0)
        return made or TCPStore(host, port, None, False, _STORE_TIMEOUT)


def _environment(fabric: Fabric) -> Any:
    return fabric.strategy.cluster_environment  # type: ignore[attr-defined]  # of every strategy for several processes


def _is_of_a_connection(error: Exception) -> bool:
    # Gloo raises plain RuntimeErrors, which only its source's name in them tells from others.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


@contextmanager
def _environment_of_a_launched_process(fabric: Fabric, children: dict[int, Any]) -> Iterator[TCPStore | None]:
    """Start the other processes of this machine, unless a launcher has done so.

    Fabric's own launcher kills rank 0 without a message when another process dies. The store is where the processes
    meet, unless that is named from outside; keep it as long as they communicate.
    """
    environment = _environment(fabric)
    if environment.creates_processes_externally:
        yield None
        return
    machines: int = fabric.strategy.num_nodes  # type: ignore[attr-defined]
    here = fabric.world_size // max(1, machines)
    variables = {
        "MASTER_ADDR": environment.main_address,
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(fabric.world_size),
    }
    store = None
    if "MASTER_PORT" not in os.environ:
        if machines > 1:
            raise UserError(
                f"--device.machines {machines}: MASTER_PORT is not set; "
                "set MASTER_ADDR, MASTER_PORT and NODE_RANK where the command is started, on every machine"
            )
        # Fabric chooses a free port long before it listens there: another program may take it meanwhile.
        store = TCPStore(environment.main_address, 0, None, True, _STORE_TIMEOUT, wait_for_workers=False)
        variables |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for local_rank in range(1, here):
        child = subprocess.Popen(_own_command(), env={**os.environ, **variables, "LOCAL_RANK": str(local_rank)})  # noqa: S603
        children[environment.node_rank() * here + local_rank] = child
    variables["LOCAL_RANK"] = "0"
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield store
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _own_command() -> list[str]:
    """Return the command that started this process."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]  # noqa: PTH100
    # `python -m package` runs the module package.__main__.
    return [sys.executable, "-m", spec.name, *sys.argv[1:]]
