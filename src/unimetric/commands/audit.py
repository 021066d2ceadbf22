"""Find copies, leaks, wrong labels, strangers and unusable images, and write the manifest that leaves them out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from unimetric.arguments import Group, PositiveInt, Without
from unimetric.config import MAX_IMAGE_SIZE, DeviceConfig
from unimetric.config_values import refuse_without_effect, require
from unimetric.errors import OptionError, shown
from unimetric.files import check_writable, make_folder, write_text
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

_APPLY = Group("applying decisions")

PAGE, TABLE = "audit.html", "audit.csv"


def audit(
    sources: list[str] | None = None,
    *,
    out: Path,
    model: Path | None = None,
    image_size: PositiveInt = 112,
    split: Literal["auto", "given", "first-half", "random-half"] = "auto",
    weights: str | None = None,
    apply: Annotated[Path | None, _APPLY] = None,
    manifest: Annotated[Path | None, _APPLY] = None,
    doubtful: Annotated[float | None, _APPLY] = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Find copies, leaks, wrong labels, strangers and unusable images in collections.

    Args:
        sources: Folders of class folders or of images, manifests; none with --apply.
        out: Folder for the table, the page and the measurements. A stopped audit continues from it.
        model: Run folder or model folder; by default the packaged backbone.
        image_size: Side of the packaged backbone's input in pixels. A model has its own.
        split: Split to find leaks in: auto, given, first-half, random-half. Training would split the classes in this
            way.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        apply: A decisions.json that the page saved; writes the manifest.
        manifest: Manifest to write with --apply; by default clean.csv in the folder.
        doubtful: With --apply, also leave out train images of doubtful labels. These are wrong with at least this
            probability, such as 0.05, and nothing was decided about them.
        device: Device and precision.
    """
    size = {"image_size": image_size}
    if apply is not None:
        unused = {**size, "model": model, "split": split, "weights": weights}
        refuse_without_effect(unused, {"image_size": 112, "split": "auto"}, "with --apply")
        return _apply(out, sources or [], apply, manifest, doubtful)
    if not sources:
        raise OptionError("audit needs sources: name folders or manifests, or use --apply decisions.json")
    if manifest is not None:
        raise OptionError(f"--manifest is {manifest}: it is for --apply decisions.json")
    if doubtful is not None:
        raise OptionError(f"--doubtful is {doubtful}: it is for --apply decisions.json")
    require(image_size <= MAX_IMAGE_SIZE, "image_size", image_size, f"use 1 to {MAX_IMAGE_SIZE}")
    if model is not None:
        refuse_without_effect(size, {"image_size": 112}, "with --model, whose own input size is used")
    return _audit(sources, out, ModelSource(model, weights, device), image_size, split)


def _audit(sources: Sequence[str], folder: Path, source: ModelSource, size: int, split: str) -> int:
    from unimetric.curation.audit import find_all, sides_of
    from unimetric.curation.decisions import AUDIT_FILE, write_audit
    from unimetric.curation.findings import KINDS, write_findings
    from unimetric.curation.measurements import measure
    from unimetric.curation.page import review_page
    from unimetric.data.sources import read_sources
    from unimetric.progress import log_notes, log_status

    check_writable(folder)
    datasets = read_sources(sources, classes=False)
    items = [item for dataset in datasets for item in dataset.items]
    embedder, name = _embedder(source, size)
    make_folder(folder)
    measured = measure(items, embedder, name, folder / "measurements", source.device.precision)
    sides, notes = sides_of(datasets, split)
    result = find_all(measured, sides)
    notes = [*(note for dataset in datasets for note in dataset.notes), *notes, *result.notes]
    counts = Counter(finding.kind for finding in result.findings)
    summary = (
        f"{_counted(len(items), 'image')} of {_counted(len(datasets), 'collection')}; "
        f"{_counted(len(result.findings), 'finding')}"
    )
    write_audit(folder / AUDIT_FILE, items, result.findings, result.doubts)
    write_findings(folder / TABLE, result.findings)
    fingerprint = hashlib.sha256((folder / AUDIT_FILE).read_bytes()).hexdigest()[:16]
    title = ", ".join(dataset.name for dataset in datasets[:5]) + (", ..." if len(datasets) > 5 else "")
    write_text(folder / PAGE, review_page(result.findings, title, summary + ".", notes, fingerprint))
    log_notes(notes)
    for kind, heading in KINDS.items():
        if counts[kind]:
            print(f"{counts[kind]:7,}  {heading.lower()}")  # noqa: T201
    log_status(f"{summary}: {folder / TABLE}; review them in {folder / PAGE}")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _apply(folder: Path, sources: Sequence[str], decisions: Path, manifest: Path | None, doubtful: float | None) -> int:
    from unimetric.curation.decisions import AUDIT_FILE, apply_decisions
    from unimetric.progress import log_notes, log_status

    if sources:
        raise OptionError(f"--apply takes no sources, got {sources[0]}: the audit in --out knows its own")
    out = manifest if manifest is not None else folder / "clean.csv"
    outcome = apply_decisions(folder / AUDIT_FILE, decisions, out, doubtful)
    if outcome.emptied:
        (dataset, label), more = outcome.emptied[0], len(outcome.emptied) - 1
        others = f" and {more} more classes" if more else ""
        note = (
            f"no image is left of {shown(label)} of {shown(dataset)}{others}: the half of the classes that trains is "
            f"another one now; audit {out} again for leaks"
        )
        log_notes([note])
    log_status(
        f"{out} lists {outcome.kept:,} images; {outcome.dropped:,} are left out, {outcome.relabelled:,} have another "
        f"label. Train on it with: unimetric train {out}"
    )
    return 0


def _embedder(source: ModelSource, size: int) -> tuple[Embedder, str]:
    from unimetric.models.backbone import make_backbone
    from unimetric.models.devices import choose_device
    from unimetric.models.embedder import Embedder

    if source.path is not None:
        embedder = source.load()
    else:
        embedder = Embedder(make_backbone("dinov2-small", image_size=size), "frozen")
    return embedder.to(choose_device(source.device.accelerator)), embedder.fingerprint
