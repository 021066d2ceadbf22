"""Search a database by images, and print the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from unimetric.arguments import PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.cpu import no_garbage_collection
from unimetric.errors import UserError
from unimetric.files import user_path
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from rich.table import Table

    from unimetric.search.guarantee import Guarantee
    from unimetric.search.items import Match


def search(
    db: str,
    images: list[str],
    *,
    k: PositiveInt = 10,
    dataset: list[str] | None = None,
    where: str | None = None,
    exact: bool = False,
    guarantee: float | None = None,
    guarantee_delta: float | None = None,
    group_copies: bool | None = None,
    json: bool = False,
    false_match_rate: float | None = None,
    model: Path | None = None,
    engine: Literal["auto", "onnx", "torch"] = "auto",
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Find the images of a database that are most similar to an image.

    Args:
        db: Database that unimetric index made.
        images: Image files, or their URIs in object storage.
        k: Number of answers.
        dataset: Search in these datasets only.
        where: Condition on the columns, such as 'price < 20'.
        exact: Compare with every row and bypass the approximate index.
        guarantee: Print a set that holds the right class with this probability. The set has one item of each class that
            the image may be of, instead of K answers; 0.95 is a usual probability.
        guarantee_delta: Accepted probability that the calibration misses the guarantee. Its images may be too
            untypical; without it, the guarantee holds on average over calibrations.
        group_copies: Give one answer for all copies of a picture. By default as recorded when indexing.
        json: Print JSON instead of tables.
        false_match_rate: Call an answer a match from the threshold of this false-match rate. It is 0.1, 0.01, 0.001 or
            0.0001; without it, the confidence of an answer decides.
        model: The model's folder, if it was moved, or an exported .onnx file.
        engine: onnx, an exported file, starts faster; auto prefers it. It starts several times as fast as torch.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        device: Device and precision.
    """
    source, promise = ModelSource(model, weights, device), (guarantee, guarantee_delta)
    filters = {"datasets": dataset, "where": where, "exact": exact, "group_copies": group_copies}
    with no_garbage_collection():
        answers = _answers(db, images, k, source, engine, false_match_rate, promise, filters)
    if json:
        print(dumps([answer.as_json() for answer in answers], indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print_answers(answers)
    return 0


@dataclass(frozen=True)
class Answer:
    """The answer to one image."""

    image: str
    threshold: float | None
    """The lowest score of a match at the false-match rate; None without one."""
    false_match_rate: float | None
    """The rate that the threshold keeps; None where matches are decided by their confidence."""
    matches: tuple[Match, ...]
    guarantee: Guarantee | None = None
    """The promise that the matches are a set for; None for the most similar ones."""

    @property
    def is_match(self) -> bool | None:
        """True if the image shows something that is in the database; None without a calibration."""
        if self.guarantee is not None:
            return bool(self.matches)
        judged = [match.is_match for match in self.matches if match.is_match is not None]
        return any(judged) if judged else None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "image": self.image,
            "is_match": self.is_match,
            "threshold": self.threshold,
            "false_match_rate": self.false_match_rate,
            "guarantee": None if self.guarantee is None else asdict(self.guarantee),
            "matches": [_plain(asdict(match)) for match in self.matches],
        }


def _answers(
    db: str,
    images: Sequence[str],
    k: int,
    source: ModelSource,
    engine: str,
    rate: float | None,
    promise: tuple[float | None, float | None],
    filters: dict[str, Any],
) -> list[Answer]:
    from unimetric.progress import log_status
    from unimetric.search.engine import find_exported, is_exported
    from unimetric.search.guarantee import Guarantee
    from unimetric.search.index import SearchIndex

    promised, device = Guarantee.of(*promise), source.device
    folder = None if is_exported(source.path) else source.path
    with SearchIndex.open(db, model=folder, weights=source.weights, device=device, false_match_rate=rate) as index:
        # Before the model is loaded, which takes seconds.
        index.check(k, filters["datasets"], filters["where"], promised)
        decoded = [_decoded(image) for image in images]
        exported = find_exported(index, source.path, engine, device, note=lambda text: log_status(f"note: {text}"))
        if exported is not None:
            found = index.search_vectors(exported.encode(decoded), k, guarantee=promised, **filters)
            log_status(f"Embedded by {exported.path} ({exported.encoded_in}).")
        else:
            found = index.search(decoded, k, guarantee=promised, **filters)
            log_status(f"Embedded by {folder or index.model} ({index.embedder.encoded_in}).")
        threshold, kept = index.threshold_of(filters["datasets"]), index.false_match_rate
    return [
        Answer(image, threshold, kept, tuple(matches), promised) for image, matches in zip(images, found, strict=True)
    ]


def print_answers(answers: Sequence[Answer]) -> None:
    """Print a table for every image, on standard output."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    # Do not wrap names when the output goes to a file or a program.
    if not console.is_terminal:
        console = Console(highlight=False, width=500)
    for answer in answers:
        console.print(Text(_title(answer)), soft_wrap=True)
        if answer.matches:
            console.print(_table(answer))


def _table(answer: Answer) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    judged = answer.is_match is not None and answer.guarantee is None
    if judged:
        table.add_column("match")
    names = list(dict.fromkeys(name for match in answer.matches for name in match.metadata))
    folded = any(match.copies for match in answer.matches)
    for name in ("dataset", "label", *names, *(["copies"] if folded else []), "path"):
        table.add_column(Text(name), overflow="fold")
    for number, match in enumerate(answer.matches, 1):
        verdict = [match.strength or ""] if judged else []
        values = [_shown(match.metadata.get(name)) for name in names]
        copies = [str(len(match.copies) + 1) if match.copies else ""] if folded else []
        cells = [str(number), f"{match.score:.4f}", *verdict, match.dataset, match.label, *values, *copies, match.path]
        table.add_row(*(Text(cell) for cell in cells), style="dim" if judged and not match.is_match else None)
    return table


def _title(answer: Answer) -> str:
    if answer.guarantee is not None:
        promise = f"(guarantee {answer.guarantee.level:g})"
        if not answer.matches:
            return f"{answer.image}: nothing fits, it is probably not in the database {promise}"
        count = len(answer.matches)
        return f"{answer.image}: {count} {'class fits' if count == 1 else 'classes fit'} {promise}"
    if not answer.matches:
        return f"{answer.image}: no rows to compare with"
    found = "no confident match, the nearest are" if answer.is_match is False else "the most similar"
    if answer.threshold is None:
        return f"{answer.image}: {found}"
    rate = f"false-match rate {answer.false_match_rate:g}"
    return f"{answer.image}: {found} (a match is from {answer.threshold:.4f}, {rate})"


def _decoded(image: str) -> Any:
    from unimetric.data.images import ImageError, decode_image

    try:
        return _downloaded(image) if "://" in image else decode_image(user_path(image))
    except ImageError as error:
        raise UserError(f"{error}; name an image") from error


def _downloaded(uri: str) -> Any:
    from unimetric.data.images import decode_image, without_box
    from unimetric.storage.objects import read_bytes

    try:
        content = read_bytes(without_box(uri))
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist; name an image") from error
    return decode_image(content, name=uri)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    metadata = values["metadata"]
    dates = {name: value.isoformat() for name, value in metadata.items() if isinstance(value, date)}
    copies = [_plain(copy) for copy in values["copies"]]
    return {**values, "metadata": {**metadata, **dates}, "copies": copies}
