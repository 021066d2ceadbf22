"""The demo: PUMA against the frozen backbone, on images that pip installs, a page with the mistakes, a search box."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unimetric.commands.evaluate import evaluate_model
from unimetric.config import ModelConfig, RunConfig
from unimetric.errors import UserError
from unimetric.formats.run_folder import RunFolder
from unimetric.progress import say
from unimetric.report.build import REPORT, write_report
from unimetric.training.loop import train

DATABASE = "catalogue.db"
"""The search database's name within the run folder."""


def run_demo(config: RunConfig, out: Path) -> list[tuple[str, dict[str, Any]]]:
    """Measure the frozen backbone, train and measure PUMA, both as configured, write PUMA's report, index its images.

    The demo data is built if need be.

    A demo that was stopped goes on where it was.

    Args:
        config: Every option; without sources, the demo data.
        out: The run folder; the frozen backbone's numbers go into ``frozen/`` in it, the report is ``report.html``,
            and the search database, where the extra ``search`` is installed, ``catalogue.db``.

    Returns:
        Name and ``metrics.json`` of both.

    Raises:
        UserError: the folder holds another run, or a package of the demo is missing.
    """
    config = replace(config, data=replace(config.data, sources=config.data.sources or ["demo"]))
    folder = RunFolder(out)
    resume = folder.config.is_file()
    if resume and not _is_run_of(folder, config):
        raise UserError(f"{out} holds a run of another configuration: delete {out}, or choose another --out")
    model = replace(
        config.model, method="frozen", options={}, embedding_size=ModelConfig.embedding_size, geometry="auto"
    )
    frozen = evaluate_model(replace(config, model=model), None, out / "frozen")
    trained = train(config, folder, resume=resume)
    # Where several processes train, only the first has numbers; and none has, if no class was held out.
    if trained.get("unified"):
        say("Writing the report")
        write_report(out, out / REPORT, device=config.device)
        if find_spec("lancedb") is not None:
            _index(config, out)
    return [("frozen", frozen), (config.model.method, trained)]


def _index(config: RunConfig, out: Path) -> None:
    # lancedb is an extra.
    from unimetric.commands.index import index_sources

    say("Indexing the images")
    index_sources(out, config.data.sources, str(out / DATABASE), device=config.device)


def _is_run_of(folder: RunFolder, config: RunConfig) -> bool:
    try:
        return folder.read_config() == config
    except UserError:  # of another version, or damaged
        return False
