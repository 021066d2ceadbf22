"""Put a search database behind HTTP."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from unimetric.arguments import Without
from unimetric.config import DeviceConfig
from unimetric.errors import UserError
from unimetric.files import cache_folder, make_folder, user_path
from unimetric.models.source import ModelSource
from unimetric.service.options import ServiceConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

    from unimetric.models.ensemble import QueryModel
    from unimetric.search import SearchIndex
    from unimetric.service.batching import Batcher
    from unimetric.service.upgrading import Follower

_BACKBONE = "dinov2-small"
"""Backbone for a folder of images that is served without a trained model."""


def serve(
    db: str,
    *,
    model: Path | None = None,
    options: Annotated[ServiceConfig, Without({"allowed_hosts"})],
    allowed_hosts: list[str] | None = None,
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Serve a search database: a web page, and a REST API that /openapi.json describes.

    A folder of images is indexed into a database in the user's cache while the service runs, and brought up to date at
    later starts. Ctrl-C ends the service after the requests under way.

    Args:
        db: Database that unimetric index wrote, or a folder of images. A database is a folder or a URI.
        allowed_hosts: Further names that the service answers to, such as a proxy's. On a loopback address it answers to
            localhost and loopback addresses, and refuses other names, so that no foreign web page reaches it by a name
            of its own; on other addresses to every name, unless some are given here.
        options: The service.
        model: Another model than the database's. For a folder of images dinov2-small is the default.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        device: Device and precision.
    """
    source = ModelSource(model, weights, device)
    return _serve(place_of(db, source), replace(options, allowed_hosts=allowed_hosts or []), source)


@dataclass(frozen=True)
class Place:
    """A database to serve.

    Attributes:
        database: A folder or an object-storage URI.
        images: The folder of images that it is brought up to date with; None to serve it as it is.
        trained: Its model was trained.
    """

    database: str
    images: str | None = None
    trained: bool = True


def place_of(db: str, source: ModelSource) -> Place:
    """Return the database at a place; for a folder of images, one in the user's cache, made where there is none.

    Each model has a database of its own, so that a model trained anew does not meet the vectors of the old one.

    Raises:
        UserError: there is neither a database nor a folder of images, or the model cannot be used.
    """
    try:
        import unimetric.service.app
        import unimetric.service.run  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error
    from unimetric.models.saving import model_fingerprint, read_model_config
    from unimetric.search import SearchIndex
    from unimetric.search.errors import DatabaseMissingError

    try:
        with SearchIndex.open(db):
            return Place(db)
    except DatabaseMissingError:
        folder = (Path(db) if "://" in db else user_path(db)).absolute()
        if "://" in db or db.startswith("milvus:"):
            raise
        if not folder.is_dir():
            text = f"{folder} is neither a search database nor a folder of images: check the path"
            raise DatabaseMissingError(text) from None
        if not any(folder.iterdir()):
            raise UserError(
                f"{folder} is empty: name a folder of images, or a database that unimetric index made"
            ) from None
    images = str(folder.resolve())
    model = source.at(source.path or Path(_BACKBONE)).folder
    _, config = read_model_config(model)
    name = sha256(f"{images}\n{model_fingerprint(config)}".encode()).hexdigest()[:16]
    database = cache_folder() / "databases" / f"{folder.name}-{name}"
    make_folder(database.parent)
    with SearchIndex.create(str(database), model, weights=source.weights, device=source.device):
        return Place(str(database), images, trained=config["method"]["name"] != "frozen")


def _serve(place: Place, config: ServiceConfig, source: ModelSource) -> int:
    """Serve a database until Ctrl-C or SIGTERM, then finish the accepted requests; see `serve`."""
    from unimetric.progress import log_status
    from unimetric.search import SearchIndex
    from unimetric.service.access import tokens_from_environment
    from unimetric.service.guard import is_loopback
    from unimetric.service.run import Runner, listen, url_of

    tokens = tokens_from_environment(config)
    # For images, the model is recorded in the database, where a backbone's name has become a folder.
    model = source.path if place.images is None else None
    with (
        SearchIndex.open(place.database, model=model, weights=source.weights, device=source.device) as index,
        listen(config) as listening,
    ):
        if not is_loopback(config.host):
            log_status(f"warning: with --host {config.host}, {_exposure(config)}", style="yellow")
        runner = Runner()
        app = _app(index, place, config, tokens, source.device, runner.fail)
        rows = f"{index.count()} images of {len(index.datasets())} datasets are"
        served = rows if place.images is None else f"{place.images} is"
        log_status(f"{served} served on {url_of(listening)}; the model is loading.")
        stopped_by = runner.run(app, listening, config)
        if unfinished := app.state.service.unfinished:
            # Python would wait for threads that the database never returns to. No write is left half done.
            log_status(f"warning: {unfinished}; ending without it", style="yellow")
            sys.stderr.flush()
            os._exit(130 if stopped_by == signal.SIGINT else 0)
        if stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
    return 0


def _app(
    index: SearchIndex,
    place: Place,
    config: ServiceConfig,
    tokens: tuple[str | None, str | None],
    device: DeviceConfig,
    on_failure: Callable[[BaseException], None],
) -> FastAPI:
    """The service of an open database, which brings a folder of images in and follows an upgrade to another model."""
    from unimetric.progress import log_status
    from unimetric.search import SearchIndex
    from unimetric.service.app import create_app
    from unimetric.service.folder import FolderIndexer
    from unimetric.service.upgrading import Follower

    def follow(make_batcher: Callable[..., Batcher]) -> Follower:
        def open_index(embedder: QueryModel | None) -> SearchIndex:
            return SearchIndex.open(place.database, embedder=embedder, device=device)

        return Follower(place.database, open_index, make_batcher, 2 * config.request_seconds)

    folder = None
    if place.images is not None:
        folder = FolderIndexer(index, place.images, trained=place.trained, on_failure=on_failure)
    token, read_token = tokens
    return create_app(
        index,
        config,
        token=token,
        read_token=read_token,
        folder=folder,
        follow=follow,
        precision=device.precision,
        on_failure=on_failure,
        on_ready=lambda: log_status("The model is loaded; searches are answered now. Ctrl-C ends it."),
    )


def _exposure(config: ServiceConfig) -> str:
    if config.read_token:
        return "the token and the pictures travel readable by others; put a reverse proxy with TLS before it"
    return "everybody who reaches this machine can search, and sees the paths of its images; see --read_token"
