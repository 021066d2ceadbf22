"""Pictures of the most confident mistakes and of the worst classes."""

from typing import Any

from unimetric.data.catalog import Item
from unimetric.data.thumbnails import thumbnail
from unimetric.report.analysis import Analysis, Mistake
from unimetric.report.words import percent, similarity

_CLASS_PICTURE = 64


def mistakes(analysis: Analysis, name: str, count: int, neighbours: int) -> dict[str, Any]:
    """Return the page's values of a dataset's mistakes."""
    distance = analysis.measured.geometry.distance
    return {
        "name": name,
        "queries": f"{analysis.scored(name):,}",
        "wrong": len(analysis.wrong(name)),
        "mistakes": [_mistake(mistake, distance) for mistake in analysis.mistakes(name, count, neighbours)],
    }


def _mistake(mistake: Mistake, distance: str) -> dict[str, Any]:
    return {
        "query": _picture(mistake.query, "Query"),
        "neighbours": [
            _picture(neighbour.item, "Right neighbour" if neighbour.right else "Wrong neighbour")
            | {"right": neighbour.right, "similarity": similarity(neighbour.similarity, distance)}
            for neighbour in mistake.neighbours
        ],
    }


def worst_classes(analysis: Analysis, name: str) -> dict[str, Any]:
    """Return the page's values of a dataset's worst classes, without those that are always found."""
    worst = analysis.numbers["worst_classes"].get(name, [])
    return {"name": name, "classes": [_worst(analysis, name, entry) for entry in worst if entry["recall@1"] < 1]}


def _worst(analysis: Analysis, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    example = analysis.example(name, entry["label"], entry["mistaken_for"])
    pictures = example and tuple(
        _picture(item, role, _CLASS_PICTURE) for item, role in zip(example, ("Query", "Wrong neighbour"), strict=True)
    )
    return {
        "label": entry["label"],
        "queries": f"{entry['queries']:,}",
        "recall": percent(entry["recall@1"]),
        "precision": percent(entry["map@r"]),
        "mistaken_for": entry["mistaken_for"],
        "pictures": pictures,
    }


def _picture(item: Item, role: str, side: int = 112) -> dict[str, Any]:
    """Return an image for templates; ``picture`` is None if it is unreadable."""
    return {
        "picture": thumbnail(item.path, side),
        "alt": f"{role}, {item.label} of {item.dataset}: {item.path.name}",
        "file": item.path.name,
        "label": item.label,
        "dataset": item.dataset,
    }
