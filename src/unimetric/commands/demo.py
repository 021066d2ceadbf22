"""The demo: PUMA against the frozen backbone on images made from pip packages, with a report and a search database."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimetric.commands.evaluate import evaluate_model
from unimetric.config import RunConfig, read_options
from unimetric.config_resolution import typed_config
from unimetric.errors import UserError
from unimetric.packaged_configs import config_path

if TYPE_CHECKING:
    from unimetric.formats.run_folder import RunFolder

DATABASE = "catalogue.db"
"""Name of the search database in the run folder."""

_SHARES = {
    "Measuring the frozen backbone": 0.12,
    "Training and measuring PUMA": 0.63,
    "Writing the report": 0.05,
    "Indexing the images": 0.20,
}
"""Stages with their shares of the time, measured with the packaged configuration on two CPU cores."""


def demo(*, out: Path = Path("runs/demo"), config: str = "puma-demo") -> int:
    """Train PUMA on images that pip installs, and compare it with the frozen backbone. Takes minutes.

    Args:
        out: Run folder to write.
        config: Configuration, a file or a packaged name.
    """
    file = config_path(config)
    options = typed_config(read_options(file), str(file))
    from unimetric.progress import log_status
    from unimetric.report.tables import print_results
    from unimetric.training.interrupt import Interrupted

    try:
        rows = run_demo(options, out)
    except (Interrupted, KeyboardInterrupt) as stop:
        done = stop.done if isinstance(stop, Interrupted) else "stopped"
        print(f"unimetric: {done}; run the same command again to continue", file=sys.stderr)  # noqa: T201
        return 130
    print_results(rows)
    log_status(f"The run is in {out}: model/ to load, metrics.json, log.jsonl, config.yaml.")
    if (page := out / "report.html").is_file():
        log_status(f"The page with the mistakes is {page}: open it in a browser.")
    if (database := out / DATABASE).is_dir():
        log_status(f"For a search box on the same images: unimetric serve {database}")
    return 0


def run_demo(config: RunConfig, out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Measure the frozen backbone into ``frozen/`` in the run folder, train PUMA, write its report, index the images.

    An interrupted demo is resumed. Returns name and ``metrics.json`` of both.
    """
    from unimetric.formats.run_folder import RunFolder
    from unimetric.models.source import ModelSource
    from unimetric.progress import Stages
    from unimetric.report.build import REPORT, write_report
    from unimetric.training.loop import train

    # The demo measures the frozen backbone itself, before training.
    config = replace(
        config,
        data=replace(config.data, sources=config.data.sources or ["demo"]),
        evaluation=replace(config.evaluation, baseline=False),
    )
    folder = RunFolder(out)
    resume = folder.config.is_file()
    if resume and not _is_run_of(folder, config):
        raise UserError(f"{out} holds a run of another configuration: delete {out}, or choose another --out")
    stages = Stages(_SHARES)
    stages.begin()
    frozen = evaluate_model(replace(config, model=config.model.frozen()), None, out / "frozen")
    stages.begin()
    trained = train(config, folder, resume=resume)
    # Of several processes only the first has numbers; none has, if no class was held out.
    if trained.get("unified"):
        stages.begin()
        write_report(out, out / REPORT, source=ModelSource(device=config.device))
        if find_spec("lancedb") is not None:
            stages.begin()
            # Needs the extra search.
            from unimetric.commands.index import index_sources

            index_sources(out, config.data.sources, str(out / DATABASE), device=config.device)
    return [("frozen", frozen), (config.model.method, trained)]


def _is_run_of(folder: RunFolder, config: RunConfig) -> bool:
    try:
        return folder.read_config() == config
    except UserError:  # damaged
        return False
