"""Put a search database behind HTTP."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from unimetric.arguments import Without
from unimetric.config import DeviceConfig, ServiceConfig
from unimetric.errors import UserError


def serve(
    db: str,
    *,
    options: ServiceConfig,
    model: Path | None = None,
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Serve a search database: a web page, and a REST API that /openapi.json describes.

    Ctrl-C ends the service after the requests under way.

    Args:
        db: Database that unimetric index wrote, a folder or a URI.
        options: The service.
        model: Run folder or model folder, if it is not the one of the database.
        weights: Weights of the backbone, for a model trained with --model.weights FILE.
        device: Where to compute.
    """
    return serve_database(db, options, model=model, weights=weights, device=device)


def serve_database(
    db: str,
    config: ServiceConfig,
    *,
    model: Path | None = None,
    weights: str | None = None,
    device: DeviceConfig | None = None,
) -> int:
    """Serve a search database until Ctrl-C or SIGTERM; then what was taken is finished.

    Args:
        db: The database, a folder or an object-storage URI.
        config: Where to listen, and limits.
        model: The model's folder, where it is not the recorded one.
        weights: The file of the backbone's weights, where neither the database nor the model folder knows it.
        device: Where to compute.

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
