from __future__ import annotations

from pathlib import Path

import pytest

from unimetric.data.catalog import ClassIndex, Item, identities, unique_items
from unimetric.errors import UserError


def item(path: Path, label: str = "a", role: str | None = None) -> Item:
    return Item(path, label, "birds", role)


def test_labels_of_two_datasets_never_share_a_number() -> None:
    items = [Item(Path("x"), "1", "b"), Item(Path("y"), "1", "a"), Item(Path("z"), "0", "b")]
    index = ClassIndex.of(items)
    assert index.classes == (("a", "1"), ("b", "0"), ("b", "1"))
    assert index.numbers(items) == [2, 0, 1]
    with pytest.raises(KeyError):
        index.numbers([Item(Path("x"), "0", "a")])


def test_identities_are_resolved_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "real" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    paths = [
        *(tmp_path / "real/a.jpg", tmp_path / "folder/a.jpg", tmp_path / "real/b.jpg", Path("real/a.jpg")),
        *(
            Path("real/../real/a.jpg"),
            tmp_path / "real/absent.jpg",
            tmp_path / "real/..",
            Path("absent/a.jpg"),
        ),
    ]
    assert identities(paths) == [str(path.resolve()) for path in paths]
    assert len(set(identities(paths[:5]))) == 1


def test_an_image_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").touch()
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    first, second = item(tmp_path / "a.jpg"), item(tmp_path / "b.jpg")
    assert unique_items([first, second, first]) == ((first,), (tmp_path / "b.jpg", tmp_path / "a.jpg"))
    with pytest.raises(UserError, match=r"b.jpg \(the same file as .*a.jpg\) has the labels 'z' and 'a'"):
        unique_items([item(tmp_path / "b.jpg", "z"), item(tmp_path / "a.jpg", "a")])


def test_an_image_may_be_query_and_gallery_but_not_train_and_test() -> None:
    path = Path("x.jpg")
    both = [item(path, role="query"), item(path, role="gallery")]
    assert unique_items([*both, *both]) == (tuple(both), (path, path))
    with pytest.raises(UserError, match=r"x.jpg is in the splits train and test; keep one"):
        unique_items([item(path, role="train"), item(path, role="test")])
    with pytest.raises(UserError, match=r"x.jpg is in the splits \(none\) and test"):
        unique_items([item(path), item(path, role="test")])
    with pytest.raises(UserError, match=r"x.jpg has the labels 'a' and 'b'"):
        unique_items([item(path, role="query"), item(path, "b", role="gallery")])
