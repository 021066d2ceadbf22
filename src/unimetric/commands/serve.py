"""Put a search database behind HTTP."""

from __future__ import annotations

import os
import signal
import sys
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from unimetric.arguments import Without
from unimetric.config import DeviceConfig
from unimetric.errors import UserError
from unimetric.files import cache_folder, make_folder, user_path
from unimetric.service.options import ServiceConfig

_BACKBONE = "dinov2-small"
"""Backbone for a folder of images that is served without a trained model."""


def serve(
    db: str,
    *,
    options: ServiceConfig,
    model: Path | None = None,
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Serve a search database: a web page, and a REST API that /openapi.json describes.

    A folder of images is indexed first, into a database in the user's cache that later starts bring up to date. Ctrl-C
    ends the service after the requests under way.

    Args:
        db: Database that unimetric index wrote, a folder or a URI; or a folder of images.
        options: The service.
        model: Model, if it is not the one of the database; for a folder of images dinov2-small by default.
        weights: Weights of the backbone, for a model trained with --model.weights FILE.
        device: Device and precision.
    """
    database = database_of(db, model=model, weights=weights, device=device)
    return serve_database(database, options, model=model, weights=weights, device=device)


def database_of(place: str, *, model: Path | None, weights: str | None, device: DeviceConfig) -> str:
    """The database at a place; for a folder of images, one in the user's cache that is brought up to date.

    Raises:
        UserError: there is neither a database nor a folder of images, or its images cannot be indexed.
    """
    try:
        from unimetric.search import SearchIndex
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error
    from unimetric.commands.index import index_sources
    from unimetric.progress import log_status
    from unimetric.search.errors import DatabaseMissingError

    try:
        with SearchIndex.open(place):
            return place
    except DatabaseMissingError:
        folder = Path(place) if "://" in place else user_path(place)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise
    model = model or Path(_BACKBONE)
    name = f"{folder.resolve()}\n{model}\n{weights or ''}"
    database = cache_folder() / "databases" / f"{folder.resolve().name}-{sha256(name.encode()).hexdigest()[:16]}"
    log_status(f"Indexing the images in {folder} with {model}, into {database}")
    make_folder(database.parent)
    indexed, count, _ = index_sources(model, [place], str(database), weights=weights, device=device)
    log_status(f"{indexed.written} new images, {count} in all; {len(indexed.refused)} files were skipped.")
    log_status(f"For better answers, train on these images: unimetric train {place} --out runs/mine")
    return str(database)


def serve_database(
    db: str,
    config: ServiceConfig,
    *,
    model: Path | None = None,
    weights: str | None = None,
    device: DeviceConfig | None = None,
) -> int:
    """Serve a search database until Ctrl-C or SIGTERM, then finish the accepted requests.

    Args:
        db: The database, a folder or an object-storage URI.
        config: Address and limits.
        model: The model's folder, where it is not the recorded one.
        weights: The file of the backbone's weights, if neither the database nor the model folder records it.
        device: Device and precision.

    Returns:
        The exit code: 0, after SIGTERM.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        UserError: no database, another model, no token, or an address that is taken.
    """
    from unimetric.progress import log_status

    try:
        from unimetric.search import SearchIndex
        from unimetric.service.app import TOKEN_VARIABLE, create_app
        from unimetric.service.guard import is_loopback
        from unimetric.service.run import Runner, listen, url_of
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error

    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if config.writable and not token:
        raise UserError(
            f"--writable: the environment variable {TOKEN_VARIABLE} is empty; set it to the token that writing takes, "
            "for instance with: export UNIMETRIC_TOKEN=$(openssl rand -hex 32)"
        )
    device = device or DeviceConfig()
    with SearchIndex.open(db, model=model, weights=weights, device=device) as index, listen(config) as listening:
        if not is_loopback(config.host):
            log_status(
                f"warning: with --host {config.host}, everybody who reaches this machine can search, and sees the "
                "paths of its images",
                style="yellow",
            )
        runner = Runner()
        url = url_of(listening)
        app = create_app(
            index,
            config,
            token=token or None,
            precision=device.precision,
            on_failure=runner.fail,
            on_ready=lambda: log_status("The model is loaded; searches are answered now. Ctrl-C ends it."),
        )
        log_status(
            f"{index.count()} images of {len(index.datasets())} datasets are served on {url}; the model is loading."
        )
        stopped_by = runner.run(app, listening, config)
        if app.state.service.workers.abandoned:
            # Python would wait for threads that the database never returns to. No write is left half done.
            log_status("warning: the database has not answered all requests; ending without it", style="yellow")
            sys.stderr.flush()
            os._exit(130 if stopped_by == signal.SIGINT else 0)
        if stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
    return 0
