"""Add datasets to a trained model without its old images."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from unimetric.arguments import Without
from unimetric.commands.train import print_trained, stopped
from unimetric.config import DeviceConfig, ExtendConfig
from unimetric.config_values import refuse_without_effect
from unimetric.errors import MissingOptionError, OptionError


def extend(
    run: Path,
    *,
    data: list[str] | None = None,
    out: Path | None = None,
    replay_only: bool = False,
    options: ExtendConfig,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Add datasets to a trained model, without its old images.

    A few small images of each old class are replayed, with a penalty for moving their embeddings.

    Args:
        run: Run folder of the model.
        data: New datasets: class folders, manifests or benchmark datasets.
        out: Run folder to write; by default RUN-extended.
        replay_only: Only write the replay set of RUN, from its images, for later.
        options: The training.
        device: Device and precision.
    """
    if replay_only and data is not None:
        raise OptionError("--replay_only and --data are both given: --replay_only trains on nothing; leave one out")
    if not replay_only and data is None:
        raise MissingOptionError("--data is missing: name the new datasets, or write a replay set with --replay_only")
    if replay_only:
        unused = {**asdict(options), "out": out, "replay_per_class": None}
        refuse_without_effect(unused, asdict(ExtendConfig()), "with --replay_only")
    from unimetric.formats.run_folder import RunFolder
    from unimetric.progress import log_status
    from unimetric.training.extend import extend_run, keep_replay_set
    from unimetric.training.interrupt import Interrupted

    if data is None:
        keep_replay_set(run, options)
        return 0
    folder = RunFolder(out or run.with_name(f"{run.name}-extended"))
    try:
        extended, metrics = extend_run(run, data, folder.path, options, device)
    except (Interrupted, KeyboardInterrupt) as stop:
        return stopped(stop, folder)
    if metrics["counts"]["queries"]:
        print_trained(extended.model.method, metrics)
    log_status(f"The model is in {folder.model}, the numbers in {folder.metrics}.")
    return 0
