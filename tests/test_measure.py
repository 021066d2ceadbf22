"""Which images are one image."""

from __future__ import annotations

from pathlib import Path

from toy_runs import OPTIONS, make_images, one_thread
from unimetric.data.catalog import Item
from unimetric.measure import measure
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
    linked = measure(embedder, query, gallery, precision="fp32").metrics
    plain = measure(embedder, query, query, precision="fp32").metrics
    assert linked["unified"] == plain["unified"]
    # The image itself is no second image of its class.
    lonely = measure(embedder, query[:1] + query[3:], gallery[:1] + gallery[3:], precision="fp32").metrics
    assert lonely["counts"]["queries_without_positive"] == 1
