"""Turn the images of some sources into vectors: one file, or shards for very many images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from unimetric.arguments import Group, PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.config_values import refuse_without_effect
from unimetric.errors import OptionError, UserError
from unimetric.files import check_writable, make_folder, user_path, write_atomically
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from unimetric.evaluation.evaluate_split import EmbeddedItems

_MANY = Group("very many images")
_SHARD_ROWS = 8192


def embed(
    model: Path,
    sources: list[str],
    *,
    out: str,
    batch_size: PositiveInt = 32,
    strict: bool = False,
    cache: str | None = None,
    weights: str | None = None,
    size: PositiveInt | None = None,
    engine: Annotated[Literal["plain", "ray"], _MANY] = "plain",
    shard: Annotated[str | None, _MANY] = None,
    workers: Annotated[PositiveInt | None, _MANY] = None,
    shard_rows: Annotated[PositiveInt, _MANY] = _SHARD_ROWS,
    thumbnails: Annotated[bool, _MANY] = False,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Turn images into vectors with a trained model.

    Args:
        model: Run folder, model folder, or name of a backbone or hub model.
        sources: Folders of images or of class folders, manifests. For shards also .tar archives, Parquet files and
            URIs.
        out: A .parquet or .npz file; for shards a folder or URI.
        batch_size: Images per forward pass.
        strict: Stop at an unreadable image instead of skipping it.
        cache: Folder that unimetric prepare wrote, to read images from.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        size: Numbers of a vector; fewer take less memory and cost some accuracy.
        engine: ray runs many workers, which write shards.
        shard: Write the I-th of N parts, as shards. N such commands, on any machines, write all.
        workers: Models at once, for ray; by default one per GPU, else per machine.
        shard_rows: Images per shard; rounded up to whole batches.
        thumbnails: Keep a small JPEG of every image in the shards.
        device: Device and precision.
    """
    source = ModelSource(model, weights, device, size)
    if engine == "ray" or shard is not None:
        refuse_without_effect({"cache": cache}, {}, "on shards, which are made of the images themselves")
        return _embed_shards(
            source,
            sources,
            out,
            engine=engine,
            shard=shard or "1/1",
            workers=workers,
            shard_rows=shard_rows,
            batch_size=batch_size,
            thumbnails=thumbnails,
            strict=strict,
        )
    unused = {"thumbnails": thumbnails, "workers": workers, "shard_rows": shard_rows}
    refuse_without_effect(unused, {"shard_rows": _SHARD_ROWS}, "on a single file", "add --engine ray or --shard 1/1")
    return _embed_file(source, sources, user_path(out), batch_size, strict, cache)


def _embed_file(
    model: ModelSource, sources: Sequence[str], out: Path, batch_size: int, strict: bool, cache: str | None
) -> int:
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"--out is {out}: name a .parquet or an .npz file")
    check_writable(out.parent)
    from unimetric.data.cache import image_reader
    from unimetric.data.sources import read_sources
    from unimetric.data.sources.tree import unusable_files
    from unimetric.evaluation.evaluate_split import embed_items
    from unimetric.progress import log_notes, log_skipped, log_status

    datasets = read_sources(sources, classes=False)
    log_notes(note for dataset in datasets for note in dataset.notes)
    items = [item for dataset in datasets for item in dataset.items]
    unusable = unusable_files(datasets, strict)
    embedder = model.load()
    read = image_reader(cache, False, embedder.transform.image_size, "cache")
    log_notes(read.notes(item.path for item in items))
    embedded = embed_items(
        embedder, items, batch_size=batch_size, precision=model.device.precision, strict=strict, read=read
    )
    log_status(f"Embedded by {model.path} ({embedder.encoded_in}).")
    make_folder(out.parent)
    write_atomically(out, lambda temporary: _write(temporary, out.suffix, embedded))
    skipped = [*embedded.skipped, *unusable]
    log_skipped(skipped)
    log_status(f"{len(embedded.items)} vectors are in {out}; {len(skipped)} files were skipped.")
    return 0


def _embed_shards(model: ModelSource, sources: Sequence[str], out: str, **options: Any) -> int:
    if out.endswith((".parquet", ".npz")):
        raise OptionError(f"--out is {out}: name a folder or a URI, shards are several files")
    if options["workers"] is not None and options["engine"] != "ray":
        raise OptionError(f"--workers is {options['workers']}: add --engine ray, or start one command per --shard")
    from unimetric.bulk.run import SKIPPED_FILE, embed_shards
    from unimetric.bulk.worker import ShardOptions
    from unimetric.progress import log_skipped, log_status

    try:
        embedded = embed_shards(model, sources, out, ShardOptions(**options))
    except KeyboardInterrupt:
        log_status("unimetric: stopped, finished shards are kept; run the same command again to continue")
        return 130
    log_skipped(embedded.skipped[:20])
    whole = embedded.finished == embedded.shards
    log_status(
        f"{embedded.rows} vectors are in {out}, {embedded.finished} of {embedded.shards} shards; "
        f"{len(embedded.skipped)} files were skipped" + (f", see {SKIPPED_FILE} there." if whole else ".")
    )
    return 0


def _write(path: Path, suffix: str, embedded: EmbeddedItems) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from unimetric.data.sources.remote import stored_name

    columns = {
        "path": [stored_name(item.path) for item in embedded.items],
        "label": [item.label for item in embedded.items],
        "dataset": [item.dataset for item in embedded.items],
    }
    if suffix == ".npz":
        with path.open("wb") as file:
            np.savez(
                file,
                vectors=embedded.vectors,
                paths=np.array(columns["path"], dtype=np.str_),
                labels=np.array(columns["label"], dtype=np.str_),
                datasets=np.array(columns["dataset"], dtype=np.str_),
            )
        return
    table = pa.table(columns)
    if any(item.labels for item in embedded.items):
        several = [list(item.all_labels) for item in embedded.items]
        table = table.append_column("labels", pa.array(several, pa.list_(pa.string())))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedded.vectors.ravel()), embedded.vectors.shape[1])
    pq.write_table(table.append_column("vector", vectors), path)
