"""Inspection of one image: its prompts' weights and nearest neighbours, as terminal output and picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unimetric.data.catalog import Item, identities
from unimetric.data.thumbnails import square
from unimetric.errors import UserError
from unimetric.evaluation import nearest_neighbours
from unimetric.evaluation.evaluate_split import distance_options
from unimetric.files import write_atomically
from unimetric.html_page import short
from unimetric.models.source import ModelSource
from unimetric.report.analysis import Neighbour
from unimetric.report.collect import located, read_run
from unimetric.report.words import similarity


@dataclass(frozen=True)
class Inspection:
    """Neighbours and prompt weights of one image.

    Attributes:
        image: Its path.
        known: The item that it is, where it is one of the measured images.
        neighbours: The nearest gallery items except the image itself, nearest first. ``right`` is True if they are of
            its class, and False if its class is unknown.
        prompt_weights: Of each of the M prompts, from -1 to 1; None for a model without a pool.
        distance: "cosine" or "poincare".
    """

    image: Path
    known: Item | None
    neighbours: tuple[Neighbour, ...]
    prompt_weights: NDArray[np.float32] | None
    distance: str


def inspect_image(folder: Path, image: Path, k: int = 8, source: ModelSource | None = None) -> Inspection:
    """Embed an image and find its ``k`` neighbours in the gallery of a run, or of an evaluation.

    One of the measured images is not its own neighbour. Without a path, the model is the one in the folder or above it.
    """
    from unimetric.report.prompts import prompt_weights

    source = located(source or ModelSource(), folder)
    measured = read_run(folder)
    if source.path is None:
        raise UserError(f"{folder} holds no model: name a run folder that unimetric train wrote, or add --model")
    model = measured.metrics["model"]
    if "shortened_from" in model:
        source = replace(source, size=model["embedding_size"])
    embedder = source.load()
    vector = embedder.encode([image], precision=source.device.precision)
    gallery = measured.vectors.gallery
    if vector.shape[1] != measured.vectors.gallery_vectors.shape[1]:
        raise UserError(
            f"{source.path} gives vectors of {vector.shape[1]} numbers, those of {folder} have "
            f"{measured.vectors.gallery_vectors.shape[1]}: name the model that was measured with --model"
        )
    items = (*gallery, *measured.vectors.query)
    own, *files = identities([image, *(item.path for item in items)])
    known = next((item for item, file in zip(items, files, strict=True) if file == own), None)
    candidates = np.array([row for row, file in enumerate(files[: len(gallery)]) if file != own], dtype=np.int64)
    if not len(candidates):
        raise UserError(f"{folder}: the gallery holds nothing but {image} itself")
    similarities, found = nearest_neighbours(
        vector,
        measured.vectors.gallery_vectors[candidates],
        min(k, len(candidates)),
        **distance_options(measured.geometry),
    )
    neighbours = tuple(
        Neighbour(item := gallery[candidates[row]], float(value), known is not None and item.is_right_for(known))
        for row, value in zip(found[0].tolist(), similarities[0].tolist(), strict=True)
    )
    pool = prompt_weights(embedder, [image])
    return Inspection(image, known, neighbours, None if pool is None else pool[0], measured.geometry.distance)


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Print the neighbours and the weights of the prompts to standard output."""
    console = console or Console()
    console.print(Text(_title(inspection), style="bold"), soft_wrap=True)
    folder = _common_folder([neighbour.item.path for neighbour in inspection.neighbours])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "cosine" if inspection.distance == "cosine" else "distance", "", "dataset", "label", "image"):
        table.add_column(name, overflow="fold")
    for rank, neighbour in enumerate(inspection.neighbours, 1):
        mark = "" if inspection.known is None else "✓ right" if neighbour.right else "✗ wrong"
        item = neighbour.item
        value = similarity(neighbour.similarity, inspection.distance)
        path = str(item.path.relative_to(folder)) if folder else str(item.path)
        values = (str(rank), value, mark, short(item.dataset, 24), short(item.label, 32), short(path, 500))
        # As text, because names may look like rich's markup.
        table.add_row(*map(Text, values))
    console.print(table)
    if folder:
        console.print(Text(f"Paths of images are relative to {folder}."), soft_wrap=True)
    if inspection.prompt_weights is None:
        return
    console.print(Text("weights of the prompts", style="bold"))
    largest = float(np.abs(inspection.prompt_weights).max()) or 1.0
    for number, weight in enumerate(inspection.prompt_weights.tolist(), 1):
        bar = ("+" if weight >= 0 else "-") * round(20 * abs(weight) / largest)
        console.print(Text(f"{number:3}  {weight:6.3f}  {bar}"))


def _common_folder(paths: Sequence[Path]) -> Path | None:
    """Return the common folder of all paths; None if it is the root or there is none."""
    try:
        folder = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # relative paths beside absolute ones
        return None
    return None if folder in (Path(folder.anchor), Path()) else folder


def _title(inspection: Inspection) -> str:
    known = inspection.known
    return f"{inspection.image}: " + (
        f"{short(known.label, 60)} of {short(known.dataset, 40)}" if known else "not one of the measured images"
    )


def write_inspection(inspection: Inspection, out: Path) -> None:
    """Draw the image, its neighbours and the weights of its prompts as a PNG file."""
    import matplotlib as mpl

    from unimetric.report.svg import quiet

    with mpl.rc_context({"text.parse_math": False, "font.size": 9}), quiet():
        figure = _draw(inspection)
        write_atomically(out, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


_COLUMNS = 5


def _draw(inspection: Inspection) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weights = inspection.prompt_weights
    rows = -(-(1 + len(inspection.neighbours)) // _COLUMNS)
    extra = 1.7 if weights is not None else 0.0
    figure = Figure(figsize=(1.75 * _COLUMNS, 2.35 * rows + extra), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows + (weights is not None), _COLUMNS, height_ratios=[2.35] * rows + [extra] * (extra > 0)
    )
    known = inspection.known
    _tile(figure.add_subplot(grid[0, 0]), inspection.image, "query\n" + (short(known.label, 22) if known else ""), None)
    for number, neighbour in enumerate(inspection.neighbours, 1):
        item = neighbour.item
        right = None if known is None else neighbour.right
        mark = "" if right is None else "✓ " if right else "✗ "
        value = similarity(neighbour.similarity, inspection.distance)
        words = f"{mark}{value} {short(item.dataset, 14)}\n{short(item.label, 22)}"
        _tile(figure.add_subplot(grid[number // _COLUMNS, number % _COLUMNS]), item.path, words, right)
    if weights is not None:
        axes = figure.add_subplot(grid[rows, :])
        axes.bar(np.arange(1, len(weights) + 1), weights, color="#2563a8")
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_xticks(np.arange(1, len(weights) + 1, max(1, len(weights) // 20)))
        axes.set_xlabel("prompt")
        axes.set_ylabel("weight")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _tile(axes: Any, path: Path, words: str, right: bool | None) -> None:
    """Draw a picture with its text: a solid green frame if right, a dashed red one if wrong."""
    image = square(path, 192)
    axes.imshow(np.full((192, 192, 3), 200, np.uint8) if image is None else np.asarray(image))
    if image is None:
        axes.text(96, 96, short(path.name, 22), ha="center", va="center", fontsize=7)
    axes.set_title(words, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    colour, style = {None: ("#545b66", "-"), True: ("#1a7f37", "-"), False: ("#c0202f", "--")}[right]
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=style, linewidth=3)
