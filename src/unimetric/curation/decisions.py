"""Decisions on findings, and the resulting manifest. No image is deleted or moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.curation.findings import LEAST_DOUBT, Finding
from unimetric.data.catalog import Item
from unimetric.errors import UserError, shown
from unimetric.files import csv_text, parse_json, write_json, write_text

AUDIT_FILE = "audit.json"
_COPIES = ("exact-copy", "near-copy")


@dataclass(frozen=True)
class Outcome:
    """The numbers of an applied audit.

    Attributes:
        kept: Images in the manifest.
        dropped: Images that it does not list.
        relabelled: Images with a new label in it.
        emptied: Classes without an image in it, (dataset, label), if no source gave a split: without them, the first
            half of the classes that trains is another one.
    """

    kept: int
    dropped: int
    relabelled: int
    emptied: tuple[tuple[str, str], ...] = ()


def write_audit(
    path: Path, items: Sequence[Item], findings: Sequence[Finding], doubts: Mapping[Item, float] | None = None
) -> None:
    """Write the input of `apply_decisions` as JSON."""
    number = {item: place for place, item in enumerate(items)}
    write_json(
        path,
        {
            "items": [[str(item.path), item.label, item.dataset, item.role, item.labels] for item in items],
            "findings": [
                {
                    "kind": finding.kind,
                    "confidence": round(finding.confidence, 3),
                    "images": [number[item] for item in finding.images],
                    "drop": [number[item] for item in finding.drop],
                    "relabel": finding.relabel,
                }
                for finding in findings
            ],
            "doubts": [[number[item], round(doubt, 4)] for item, doubt in (doubts or {}).items()],
        },
    )


def apply_decisions(audit: Path, decisions: Path, out: Path, doubtful: float | None = None) -> Outcome:
    """Write a manifest of an audit's images with the accepted findings applied.

    Of copies, the best one stays that no other accepted finding removes.

    Args:
        audit: ``audit.json`` from `write_audit`.
        decisions: A JSON file ``{"accepted": [numbers of findings], "rejected": [...]}``, saved from the page.
        out: The manifest, ``.csv``: columns ``path``, ``label`` (``labels`` where an image has
            several), ``dataset`` and ``split``.
        doubtful: Also drop the images whose label is wrong with at least this probability, `LEAST_DOUBT` to 1, unless
            a finding on the label was accepted or rejected; None for none.

    Raises:
        UserError: ``doubtful`` is out of range, a file is missing or malformed, the decisions are on another audit or
            contradict each other, two accepted findings give one image different labels, or the manifest cannot be
            written.
    """
    if out.suffix != ".csv":
        raise UserError(f"--manifest is {out}: name a .csv file")
    if doubtful is not None and not LEAST_DOUBT <= doubtful <= 1:
        raise UserError(f"--doubtful is {doubtful}: name a probability from {LEAST_DOUBT} to 1")
    items, findings, doubts = _read_audit(audit)
    accepted, rejected = _read_decisions(decisions, len(findings))
    dropped = _dropped([findings[number] for number in accepted])
    if doubtful is not None:
        decided = {findings[n]["images"][0] for n in accepted + rejected if findings[n]["kind"] == "wrong-label"}
        dropped |= {number for number, doubt in doubts if doubt >= doubtful and number not in decided}
    relabelled: dict[int, str] = {}
    for finding in accepted:
        label = findings[finding]["relabel"]
        if label is not None:
            number = findings[finding]["images"][0]
            if relabelled.setdefault(number, label) != label:
                raise UserError(
                    f"{decisions}: accepted findings give {items[number].path} the labels "
                    f"{shown(relabelled[number])} and {shown(label)}; reject one of them"
                )
    rows = [(place, item) for place, item in enumerate(items) if place not in dropped]
    if not rows:
        raise UserError(f"{decisions}: no image is left after the accepted findings; reject some")
    has_split = any(item.role is not None for _, item in rows)
    several = any(item.labels for _, item in rows)
    table = [("path", "labels" if several else "label", "dataset", *(["split"] if has_split else []))]
    for place, item in rows:
        label = relabelled.get(place, item.label)
        labels = (label,) if place in relabelled else item.all_labels
        if several and (single := next((each for each in labels if "|" in each), None)):
            raise UserError(
                f"{item.path} has the label {shown(single)}, and | separates the labels of other images: rename it"
            )
        table.append((str(item.path.absolute()), label, item.dataset, *([item.role or ""] if has_split else [])))
    write_text(out, csv_text(table))
    left = {(item.dataset, relabelled.get(place, item.label)) for place, item in rows}
    emptied = () if has_split else tuple(sorted({(item.dataset, item.label) for item in items} - left))
    return Outcome(len(rows), len(dropped), len([place for place in relabelled if place not in dropped]), emptied)


def _dropped(accepted: Sequence[dict[str, Any]]) -> set[int]:
    """Return the images that accepted findings remove."""
    dropped = {number for finding in accepted if finding["kind"] not in _COPIES for number in finding["drop"]}
    for finding in accepted:
        if finding["kind"] in _COPIES and finding["drop"]:
            # A leak may have removed the best copy.
            left = [number for number in finding["images"] if number not in dropped]
            dropped.update(left[1:])
    return dropped


def _read_audit(path: Path) -> tuple[list[Item], list[dict[str, Any]], list[tuple[int, float]]]:
    content = _read_json(path, "run unimetric audit again")
    try:
        items = [
            Item(Path(place), label, dataset, role, tuple(labels))
            for place, label, dataset, role, labels in content["items"]
        ]
        findings = [
            {
                "kind": finding["kind"],
                "images": [_index(number, items) for number in finding["images"]],
                "drop": [_index(number, items) for number in finding["drop"]],
                "relabel": finding["relabel"],
            }
            for finding in content["findings"]
        ]
        doubts = [(_index(number, items), float(doubt)) for number, doubt in content["doubts"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path} is not a file of an audit: run unimetric audit again") from error
    return items, findings, doubts


def _index(number: Any, items: Sequence[Item]) -> int:
    if not isinstance(number, int) or not 0 <= number < len(items):
        raise IndexError(number)
    return number


def _read_decisions(path: Path, count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the accepted and of the rejected findings."""
    content = _read_json(path, "save it again from the audit's page")
    accepted, rejected = (
        (content.get("accepted"), content.get("rejected", [])) if isinstance(content, dict) else (None, None)
    )
    if not isinstance(accepted, list) or not isinstance(rejected, list):
        raise UserError(f'{path} holds no decisions: write {{"accepted": [numbers of findings], "rejected": [...]}}')
    for name, numbers in (("accepted", accepted), ("rejected", rejected)):
        for number in numbers:
            if type(number) is not int or not 0 <= number < count:
                raise UserError(
                    f"{path}: {name} has {shown(number)}, but the audit has the findings 0 to {count - 1}; "
                    "are these the decisions on another audit?"
                )
    if both := sorted(set(accepted) & set(rejected)):
        raise UserError(f"{path} both accepts and rejects finding {both[0]}; remove it from one of the lists")
    return sorted(set(accepted)), sorted(set(rejected))


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file; {remedy}") from error
