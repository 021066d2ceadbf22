"""Names of splits, the same for folders and for the column ``split`` of manifests."""

import re
from collections import defaultdict
from collections.abc import Iterable

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trainval", "trn"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "tst"),
    "query": ("query", "queries", "probe"),
    "gallery": ("gallery", "index", "database", "reference"),
}
"""The names of each role, in lower case; case does not matter where they are read."""

_ROLES = {name: role for role, names in SPLIT_NAMES.items() for name in names}
_FILLERS = frozenset({"set", "split", "data", "images", "image", "imgs", "img"})
_HOLD_OUT = re.compile(r"(?<![^\W_])hold[\s_-]?out(?![^\W_])", re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+|\d+")


def split_parts(name: str) -> tuple[str, str] | None:
    """Return the rest of a folder's name and the role that it begins or ends with; None if it has no role.

    >>> split_parts("Train"), split_parts("cars_test"), split_parts("val2017"), split_parts("trainers")
    (('', 'train'), ('cars', 'test'), ('2017', 'validation'), None)
    >>> split_parts("trainset"), split_parts("Hold-Out")
    (('', 'train'), ('', 'test'))
    """
    words = _WORDS.findall(_HOLD_OUT.sub("holdout", name))
    words = [_without_filler(word.casefold()) for word in words]
    if not words:
        return None
    place = next((place for place in (0, -1) if words[place] in _ROLES), None)
    if place is None:
        return None
    role = _ROLES[words.pop(place)]
    return "_".join(word for word in words if word not in _FILLERS), role


def _without_filler(word: str) -> str:
    """Return the split's name in a word such as ``testset`` or ``traindata``; any other word as it is."""
    bare = next((word.removesuffix(filler) for filler in _FILLERS if word.endswith(filler)), word)
    return bare if bare in _ROLES else word


def split_role(text: str) -> str | None:
    """Return the role that a value of the column ``split`` means; None if it means none.

    >>> split_role(" VAL "), split_role("training set"), split_role("trian")
    ('validation', 'train', None)
    """
    parts = split_parts(text)
    return parts[1] if parts and not parts[0] else None


def named_as_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that look like splits, by their common part: where that is empty one is enough, else two roles.

    >>> named_as_splits(["Test", "cars_train", "cars_test", "test_bench"])
    {'': ['Test'], 'cars': ['cars_train', 'cars_test']}
    """
    groups: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if parts := split_parts(name.rpartition("/")[2]):
            groups[parts[0]][name] = parts[1]
    return {rest: list(found) for rest, found in groups.items() if not rest or len(set(found.values())) > 1}
