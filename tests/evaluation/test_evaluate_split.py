"""Which images are one image, and what is measured of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_runs import OPTIONS, make_images, one_thread
from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.evaluation.evaluate_split import Evaluator, check_positives, evaluate_vectors
from unimetric.formats.vectors import read_measured, write_measured
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

__all__ = ["one_thread"]


def test_a_link_to_the_query_is_not_its_neighbour(tmp_path: Path) -> None:
    """As with lists of queries and gallery in folders of links."""
    images = make_images(tmp_path / "images", classes=2, images=3)
    embedder = Embedder(make_backbone(OPTIONS["model"]["backbone"], weights="random", image_size=32), "frozen", {})
    (tmp_path / "links").mkdir()
    query, gallery = [], []
    for path in sorted(images.glob("*/*.png")):
        link = tmp_path / "links" / f"{path.parent.name}-{path.name}"
        link.symlink_to(path)
        query.append(Item(path, path.parent.name, "x", "query"))
        gallery.append(Item(link, path.parent.name, "x", "gallery"))
    linked = Evaluator(precision="fp32")(embedder, query, gallery).metrics
    plain = Evaluator(precision="fp32")(embedder, query, query).metrics
    assert linked["unified"] == plain["unified"]
    # The image itself is no second image of its class.
    lonely = Evaluator(precision="fp32")(embedder, query[:1] + query[3:], gallery[:1] + gallery[3:]).metrics
    assert lonely["counts"]["queries_without_positive"] == 1


def items_of(images: Path) -> list[Item]:
    return [Item(path, path.parent.name, "x") for path in sorted(images.glob("*/*.png"))]


def test_strict_wants_a_positive_for_every_query(tmp_path: Path) -> None:
    items = items_of(make_images(tmp_path / "images", classes=3, images=2))
    check_positives(items, items, strict=True)
    # Its own image is no positive, by whatever path; one of its class in another dataset is none, either.
    alone = [*items[:1], *items[2:], Item(tmp_path / "other.png", items[0].label, "y")]
    with pytest.raises(UserError, match=r"c0/0\.png: .* 'c0' of 'x', as of 2 of 6 queries: .* --strict"):
        check_positives(alone, alone, strict=True)
    check_positives(alone, alone, strict=False)
    (tmp_path / "link.png").symlink_to(items[0].path)
    with pytest.raises(UserError, match="1 of 1 queries"):
        check_positives(items[:1], [Item(tmp_path / "link.png", "c0", "x"), *items[2:]], strict=False)
    with pytest.raises(UserError, match="6 of 6 queries"):
        check_positives(items, [], strict=False)


def test_a_query_without_a_positive_is_counted_or_refused(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", classes=3, images=2)
    items = items_of(images)[1:]
    embedder = Embedder(make_backbone(OPTIONS["model"]["backbone"], weights="random", image_size=32), "frozen", {})
    counts = Evaluator(precision="fp32")(embedder, items, items).metrics["counts"]
    assert (counts["queries"], counts["queries_without_positive"]) == (5, 1)
    with pytest.raises(UserError, match="--strict"):
        Evaluator(precision="fp32", strict=True)(embedder, items, items)


def test_vectors_give_the_numbers_that_were_measured(tmp_path: Path) -> None:
    """To the bit, and Recall@1 is among them whatever was asked for."""
    items = items_of(make_images(tmp_path / "images", classes=4, images=4))
    embedder = Embedder(make_backbone(OPTIONS["model"]["backbone"], weights="random", image_size=32), "frozen", {})
    measurement = Evaluator(ks=(2, 5), precision="fp32")(embedder, items[:9], items)
    assert measurement.vectors is not None
    write_measured(tmp_path / "vectors.parquet", measurement.vectors)
    again = evaluate_vectors(read_measured(tmp_path / "vectors.parquet"), embedder.geometry, ks=(2, 5)).to_dict()
    for name in ("separate", "harmonic", "unified", "intervals", "unified_gap", "thresholds", "spread"):
        assert again[name] == measurement.metrics[name]
    assert list(again["unified"]) == ["recall@1", "recall@2", "recall@5", "map@r", "r-precision"]
