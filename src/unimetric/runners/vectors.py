"""What embed, export, index, search and serve do with their options."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import Namespace

from unimetric.config import DeviceConfig, ServiceConfig
from unimetric.errors import UserError, escaped, nearest_names
from unimetric.runners import model_options, tell


def embed(options: Namespace) -> int:
    """Write the vectors of images to a file, or in fragments."""
    if options.out is None:
        raise UserError("--out is missing: name a .parquet or an .npz file")
    if options.engine not in ("plain", "ray"):
        raise UserError(f"--engine is {options.engine!r}; {nearest_names(options.engine, ('plain', 'ray'))}")
    if options.engine == "ray" or options.shard is not None:
        return _embed_fragments(options)
    if options.thumbnails or options.workers is not None:
        raise UserError("--thumbnails and --workers are for fragments: add --engine ray, or leave them out")
    from unimetric.commands.embed import embed_sources

    embedded = embed_sources(
        Path(options.model).expanduser(),
        options.sources,
        Path(options.out).expanduser(),
        batch_size=options.batch_size,
        strict=options.strict,
        device=DeviceConfig(**options.device.as_dict()),
        weights=options.weights,
        cache=options.cache,
    )
    for entry in embedded.skipped:
        tell(f"skipped {escaped(entry.item.path)}: {entry.reason}")
    tell(f"{len(embedded.items)} vectors are in {options.out}; {len(embedded.skipped)} files were skipped.")
    return 0


def _embed_fragments(options: Namespace) -> int:
    if options.out.endswith((".parquet", ".npz")):
        raise UserError(f"--out is {options.out}: name a folder or a URI, fragments are several files")
    if options.workers is not None and options.engine != "ray":
        raise UserError(f"--workers is {options.workers}: add --engine ray, or start one command per --shard")
    from unimetric.bulk.run import SKIPPED_FILE, embed_fragments

    try:
        embedded = embed_fragments(
            Path(options.model).expanduser(),
            options.sources,
            options.out,
            engine=options.engine,
            shard=options.shard or "1/1",
            workers=options.workers,
            fragment_rows=options.fragment_rows,
            batch_size=options.batch_size,
            thumbnails=options.thumbnails,
            strict=options.strict,
            device=DeviceConfig(**options.device.as_dict()),
            weights=options.weights,
        )
    except KeyboardInterrupt:
        tell("unimetric: stopped, finished fragments are kept; run the same command again to go on")
        return 130
    for entry in embedded.skipped[:20]:
        tell(f"skipped {escaped(entry.path)}: {entry.reason}")
    whole = embedded.finished == embedded.fragments
    tell(
        f"{embedded.rows} vectors are in {options.out}, {embedded.finished} of {embedded.fragments} fragments; "
        f"{len(embedded.skipped)} files were skipped" + (f", see {SKIPPED_FILE} there." if whole else ".")
    )
    return 0


def export(options: Namespace) -> int:
    """Write a model as one file that needs neither this package nor the backbone's weights."""
    from unimetric.commands.export import export_models

    exported = export_models(
        [Path(model).expanduser() for model in options.models],
        None if options.out is None else Path(options.out).expanduser(),
        kind=options.format,
        precision=options.precision,
        overwrite=options.overwrite,
        weights=options.weights,
    )
    if exported.reason:
        tell(f"note: {exported.images - exported.real} of the images it was checked on are noise: {exported.reason}")
    tell(
        f"The model is in {exported.path}: on {exported.images} images, its vectors are within "
        f"{exported.difference:.1e} of the original's, as a share of their length."
    )
    return 0


def index(options: Namespace) -> int:
    """Put images, or vectors in fragments, into a search database."""
    if options.db is None:
        raise UserError("--db is missing: name the database's folder, for example --db catalogue.db")
    changes = options.delete_dataset or options.delete_path or options.build_index or options.optimise
    if options.model is None and not changes:
        raise UserError("MODEL is missing: write unimetric index MODEL FOLDER --db PATH, or an option that deletes")
    if options.vectors:
        return _import_fragments(options)
    if options.model is not None and not options.sources:
        raise UserError(f"nothing to index: name folders or manifests after the model {options.model}")
    from unimetric.commands.index import change_database, index_sources

    if options.model is not None:
        if options.delete_dataset or options.delete_path:
            raise UserError("--delete_dataset and --delete_path take no MODEL: delete first, then index")
        try:
            indexed, count, refreshed = index_sources(
                Path(options.model).expanduser(),
                options.sources,
                options.db,
                dataset=options.dataset,
                batch_size=options.batch_size,
                commit_rows=options.commit_rows,
                strict=options.strict,
                delete_missing=options.delete_missing,
                metrics=options.metrics,
                false_match_rate=options.false_match_rate,
                weights=options.weights,
                device=DeviceConfig(**options.device.as_dict()),
            )
        except KeyboardInterrupt:
            tell("unimetric: stopped, what was written is kept; run the same command again to go on")
            return 130
        for entry in indexed.refused:
            tell(f"skipped {escaped(entry.path)}: {entry.reason}")
        deleted = f", {indexed.deleted} deleted" if options.delete_missing else ""
        tell(
            f"{indexed.written} rows written, {indexed.unchanged} unchanged{deleted}; "
            f"{len(indexed.refused)} files were skipped. {count} rows are in {options.db}."
        )
        if refreshed:
            tell("The approximate index is up to date.")
    if changes:
        removed, kind = change_database(
            options.db,
            datasets=options.delete_dataset or [],
            paths=options.delete_path or [],
            build=options.build_index,
            optimise=options.optimise,
        )
        if options.delete_dataset or options.delete_path:
            tell(f"{removed} rows were deleted.")
        if kind is not None:
            tell("Every search is exact now." if kind == "none" else f"An index of kind {kind} was made.")
    return 0


def _import_fragments(options: Namespace) -> int:
    if options.sources or options.delete_missing or options.delete_dataset or options.delete_path or options.dataset:
        raise UserError("--vectors takes MODEL and --db only: index folders and delete in commands of their own")
    if options.model is None:
        raise UserError("MODEL is missing: write unimetric index MODEL --vectors FOLDER --db PATH")
    from unimetric.commands.index import index_fragments

    imported, count, refreshed = index_fragments(
        Path(options.model).expanduser(),
        options.vectors,
        options.db,
        metrics=options.metrics,
        false_match_rate=options.false_match_rate,
        weights=options.weights,
    )
    tell(f"{imported.written} rows written, {imported.unchanged} unchanged. {count} rows are in {options.db}.")
    if refreshed:
        tell("The approximate index is up to date.")
    return 0


def search(options: Namespace) -> int:
    """Search a database by images, and print what was found."""
    with _without_collector():
        from unimetric.commands.search import print_answers, search_images

        answers = search_images(
            options.db,
            options.images,
            options.k,
            datasets=options.dataset,
            where=options.where,
            exact=options.exact,
            false_match_rate=options.false_match_rate,
            engine=options.engine,
            **model_options(options),
        )
    if options.json:
        print(json.dumps([answer.as_json() for answer in answers], indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print_answers(answers)
    return 0


def serve(options: Namespace) -> int:
    """Serve the search page and the REST API until stopped."""
    values = options.as_dict()
    config = ServiceConfig(**{name: values[name] for name in ServiceConfig.__dataclass_fields__})
    from unimetric.commands.serve import serve

    return serve(options.db, config, **model_options(options))


@contextmanager
def _without_collector() -> Iterator[None]:
    """For what is mostly imports: all that they make stays, and to look through it for garbage takes a seventh more."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
