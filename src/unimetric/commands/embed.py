"""Turn the images of some sources into a file of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unimetric.config import DeviceConfig
from unimetric.data.reading import image_reader
from unimetric.data.sources import read_sources
from unimetric.errors import UserError
from unimetric.files import check_writable, make_folder, write_atomically
from unimetric.measure import EmbeddedItems, as_skipped, embed_items
from unimetric.models.devices import choose_device
from unimetric.models.embedder import Embedder
from unimetric.progress import say
from unimetric.training.weights import weights_file


def embed_sources(
    model: Path,
    sources: Sequence[str],
    out: Path,
    *,
    batch_size: int = 32,
    strict: bool = False,
    device: DeviceConfig | None = None,
    weights: str | None = None,
    cache: str | None = None,
) -> EmbeddedItems:
    """Embed every image of the sources and write one file.

    Args:
        model: A run folder or a model folder.
        sources: As in `DataConfig.sources`; a folder may also hold images without class folders, whose label is "".
        out: ``.parquet``: columns ``path``, ``label``, ``dataset`` and ``vector`` (E float32 numbers). ``.npz``:
            arrays ``paths``, ``labels``, ``datasets`` [N] and ``vectors`` float32 [N, E].
        batch_size: Images per forward pass.
        strict: Stop at the first image that cannot be read, instead of leaving it out.
        device: Where to compute.
        weights: The file of the backbone's weights, where neither the run nor the model folder knows it.
        cache: A folder that ``unimetric prepare`` wrote.

    Returns:
        The embedded items, and what was skipped.

    Raises:
        UserError: the model or a source cannot be read, or the file cannot be written.
    """
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"--out is {out}: name a .parquet or an .npz file")
    device = device or DeviceConfig()
    check_writable(out.parent)
    datasets = read_sources(sources, classes=False)
    for note in (note for dataset in datasets for note in dataset.notes):
        say(f"note: {note}", style="yellow")
    items = [item for dataset in datasets for item in dataset.items]
    unusable = as_skipped(datasets, strict)
    embedder = Embedder.from_pretrained(model, weights=weights_file(model, weights)).to(
        choose_device(device.accelerator)
    )
    read = image_reader(cache, False, embedder.transform.image_size, "cache")
    if note := read.note(item.path for item in items):
        say(f"note: {note}", style="yellow")
    embedded = embed_items(embedder, items, batch_size=batch_size, precision=device.precision, strict=strict, read=read)
    embedded = replace(embedded, skipped=(*embedded.skipped, *unusable))
    say(f"computed in the form: {embedder.encoded_in}")
    make_folder(out.parent)
    write_atomically(out, lambda temporary: _write(temporary, out.suffix, embedded))
    return embedded


def _write(path: Path, suffix: str, embedded: EmbeddedItems) -> None:
    columns = {
        "path": [str(item.path) for item in embedded.items],
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
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedded.vectors.ravel()), embedded.vectors.shape[1])
    pq.write_table(pa.table({**columns, "vector": vectors}), path)
