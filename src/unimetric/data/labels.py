"""Class labels: the form they are compared in, and notes on labels that look like one class but are several."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from numbers import Real

from unimetric.errors import shown

_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_OUTER = re.compile(rf"^[\s{_ZERO_WIDTH}]+|[\s{_ZERO_WIDTH}]+$")
# Also soft hyphens, the marks of writing directions, and variation selectors, none of which is seen.
_GAPS = re.compile(rf"[\s_]+|[{_ZERO_WIDTH}\u00ad\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f]")
_NUMBER = re.compile(r"\+?(-?)0*(\d+?)(?:\.(\d*?)0*)?", re.ASCII)
_FLOAT = re.compile(r"[+-]?\d+\.0*", re.ASCII)
MISSING_WORDS = frozenset({"nan", "none", "null", "nil", "n/a", "na", "#n/a", "<na>", "nat"})
"""Missing values as programs write them, in lower case."""
WRITTEN_LIST = re.compile(r"\s*\[\s*['\"].*\]\s*\Z", re.DOTALL)
"""Lists of labels as Python or JSON writes them into one cell."""
_SHOWN = 3


def clean_label(text: str) -> str:
    """Return a label in the form it is compared in: Unicode NFC, without white space around it.

    No-break spaces, zero-width spaces and byte order marks count as white space. Capitals and digits stay as written.

    >>> clean_label(" Zaunko\\u0308nig\\u00a0") == "Zaunk\\u00f6nig"
    True
    """
    return text.strip() if text.isascii() else _OUTER.sub("", unicodedata.normalize("NFC", text))


def merged_labels(written: Iterable[str]) -> list[list[str]]:
    """Group the distinct labels that `clean_label` makes one, as written; groups of two or more."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(set(written)):
        groups[clean_label(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def near_twins(labels: Iterable[Hashable]) -> list[list[Hashable]]:
    """Group distinct labels that differ only in case, spacing, Unicode form, or in how one number is written.

    Labels that are neither text nor numbers have no twins.

    >>> near_twins(["wren", "Wren", "0", "0.0", "01", 1, "tit"])
    [['0', '0.0'], ['01', 1], ['Wren', 'wren']]
    """
    groups: defaultdict[str, list[Hashable]] = defaultdict(list)
    for label in dict.fromkeys(labels):
        if isinstance(label, str | Real):
            groups[_loose_form(str(label))].append(label)
    return sorted((sorted(group, key=str) for group in groups.values() if len(group) > 1), key=str)


def label_notes(owner: str, written: Iterable[str]) -> list[str]:
    """Return remarks on the labels of one dataset as its source writes them, one line each; ``owner`` names it."""
    written = set(written)
    labels = {clean_label(label) for label in written}
    notes = []
    if merged := merged_labels(written):
        notes.append(f"{_some(merged, ascii)}: one class each, since only outer white space or Unicode form differs")
    if twins := near_twins(labels):
        notes.append(f"{_some(twins, shown)}: classes with nearly the same name; write them alike if they are one")
    if missing := sorted(label for label in labels if label.casefold() in MISSING_WORDS):
        notes.append(
            f"{_some([missing], shown)}: classes named as missing values are written; remove their rows if they are"
        )
    if lists := sorted(filter(WRITTEN_LIST.match, labels)):
        notes.append(
            f"{_some([lists], shown)}: lists in one cell are one class each; for several labels an image, call the "
            "column labels and write a|b"
        )
    if floats := sorted(label for label in labels if _FLOAT.fullmatch(label)):
        first = floats[0].partition(".")[0]
        notes.append(
            f"{len(floats)} labels are whole numbers written with a point ({shown(floats[0])}, ...): they are not the "
            f"class {shown(first)} of another source; write them without it if they are"
        )
    return [f"{owner}: {note}" for note in notes]


def twin_notes(labels_of: Mapping[Hashable, Iterable[Hashable]]) -> list[str]:
    """Return a line for each dataset with near twins among its labels, and one for near twins among the datasets."""
    named = {f"dataset {shown(dataset)}": near_twins(labels) for dataset, labels in labels_of.items()}
    named["datasets"] = near_twins(labels_of)
    return [f"{owner}: {_some(twins, shown)} are counted as different" for owner, twins in named.items() if twins]


def _loose_form(text: str) -> str:
    form = _GAPS.sub(
        lambda gap: " " if gap[0].isspace() or gap[0][0] == "_" else "", unicodedata.normalize("NFKC", text)
    )
    # The Turkish letters i with and without a dot are each other's capitals elsewhere.
    form = form.strip().casefold().replace("i\u0307", "i").replace("\u0131", "i")
    number = _NUMBER.fullmatch(form)
    return f"{number[1]}{number[2]}.{number[3] or ''}" if number else form


def _some(groups: Sequence[Sequence[Hashable]], show: Callable[[object], str]) -> str:
    listed = "; ".join(
        " and ".join([*(show(label) for label in group[:_SHOWN]), *(["others"] if len(group) > _SHOWN else [])])
        for group in groups[:_SHOWN]
    )
    return f"{listed}; ..." if len(groups) > _SHOWN else listed
