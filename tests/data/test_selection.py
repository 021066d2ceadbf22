from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.data.catalog import Dataset, Item
from unimetric.data.selection import check_names, select_train
from unimetric.data.splits import Split, split_datasets
from unimetric.errors import UserError


def items(dataset: str, images: dict[str, int], root: str = "r") -> tuple[Item, ...]:
    """``images`` per label, with the same file names in every class."""
    folders = {label: f"{root}/{dataset}/{label.encode().hex()}" for label in images}
    return tuple(
        Item(Path(folders[label]) / f"{n}.jpg", label, dataset) for label, count in images.items() for n in range(count)
    )


def split_of(train: tuple[Item, ...]) -> Split:
    test = items("t", {"v": 2})
    return Split(train, test[:1], test, test, ("a note",))


def per_class(train: tuple[Item, ...]) -> Counter[tuple[str, str]]:
    return Counter((item.dataset, item.label) for item in train)


catalogues = st.dictionaries(
    st.sampled_from("xyz"),
    st.dictionaries(st.text("abé ", min_size=1, max_size=3), st.integers(1, 9), min_size=1, max_size=6),
    min_size=1,
    max_size=3,
)


def train_of(catalogue: dict[str, dict[str, int]], root: str = "r") -> tuple[Item, ...]:
    return tuple(item for dataset, images in catalogue.items() for item in items(dataset, images, root))


@settings(deadline=None)
@given(catalogues, st.integers(1, 10), st.integers(0, 50))
def test_few_shot_takes_that_many_of_every_class_and_is_nested(
    catalogue: dict[str, dict[str, int]], few_shot: int, seed: int
) -> None:
    split = split_of(train_of(catalogue))
    drawn = select_train(split, few_shot=few_shot, seed=seed)
    assert per_class(drawn.train) == {key: min(few_shot, count) for key, count in per_class(split.train).items()}
    assert len(set(drawn.train)) == len(drawn.train)
    assert list(drawn.train) == [item for item in split.train if item in set(drawn.train)]
    assert (drawn.validation, drawn.query, drawn.gallery) == (split.validation, split.query, split.gallery)
    assert set(drawn.train) <= set(select_train(split, few_shot=few_shot + 1, seed=seed).train)


@settings(deadline=None)
@given(catalogues, st.integers(1, 40), st.integers(0, 50))
def test_a_limit_is_spread_evenly_and_nested(catalogue: dict[str, dict[str, int]], limit: int, seed: int) -> None:
    split = split_of(train_of(catalogue))
    drawn = select_train(split, train_images={"*": limit}, seed=seed)
    available, kept = per_class(split.train), per_class(drawn.train)
    for dataset, images in catalogue.items():
        counts = {label: kept[dataset, label] for label in images}
        assert sum(counts.values()) == min(limit, sum(images.values()))
        # Whoever has fewer than another class by two or more has given all it has.
        most = max(counts.values())
        assert all(count >= most - 1 or count == available[dataset, label] for label, count in counts.items())
    assert set(drawn.train) <= set(select_train(split, train_images={"*": limit + 1}, seed=seed).train)


@settings(deadline=None)
@given(catalogues, st.randoms(use_true_random=False), st.sampled_from([{"few_shot": 2}, {"train_images": {"*": 5}}]))
def test_a_draw_depends_on_nothing_but_its_dataset(
    catalogue: dict[str, dict[str, int]], order: random.Random, options: dict[str, object]
) -> None:
    whole = select_train(split_of(train_of(catalogue)), **options)  # type: ignore[arg-type]
    shuffled = tuple(order.sample(train_of(catalogue), len(train_of(catalogue))))
    assert set(select_train(split_of(shuffled), **options).train) == set(whole.train)  # type: ignore[arg-type]
    moved = select_train(split_of(train_of(catalogue, "/data/of/others")), **options)  # type: ignore[arg-type]
    assert [item.path.name for item in moved.train] == [item.path.name for item in whole.train]
    for dataset, images in catalogue.items():
        alone = select_train(split_of(items(dataset, images)), **options)  # type: ignore[arg-type]
        assert list(alone.train) == [item for item in whole.train if item.dataset == dataset]


def test_the_draw_is_pinned_and_follows_seed_dataset_and_class() -> None:
    """A changed draw would make numbers of different releases incomparable."""

    def names(dataset: str = "x", label: str = "a", seed: int = 0) -> tuple[str, ...]:
        drawn = select_train(split_of(items(dataset, {label: 20})), few_shot=3, seed=seed)
        return tuple(item.path.name for item in drawn.train)

    assert names() == ("0.jpg", "2.jpg", "8.jpg")
    assert len({names(seed=seed) for seed in range(20)}) > 15
    assert len({names(dataset=str(n)) for n in range(20)}) > 15
    assert len({names(label=str(n)) for n in range(20)}) > 15


def test_images_of_one_name_in_sub_folders_are_different_images() -> None:
    train = tuple(Item(Path(f"r/a/{folder}/1.jpg"), "a", "x") for folder in "pqrstuvw")
    drawn = {select_train(split_of(train), few_shot=1, seed=seed).train for seed in range(30)}
    assert len(drawn) > 4


def test_an_image_that_is_listed_twice_is_drawn_once() -> None:
    train = items("x", {"a": 3})
    assert select_train(split_of((*train, *train)), few_shot=3).train == train
    assert len(select_train(split_of((*train, *train)), train_images={"x": 3}).train) == 3


def test_limits_by_name() -> None:
    catalogue = {name: {"a": 10, "b": 10} for name in "xyz"}
    split = split_of(train_of(catalogue))

    def sizes(**limits: int) -> list[int]:
        train = select_train(split, train_images={name.replace("others", "*"): n for name, n in limits.items()}).train
        return [sum(item.dataset == name for item in train) for name in "xyz"]

    assert sizes(y=3) == [20, 3, 20]
    assert sizes(y=3, others=6) == [6, 3, 6]
    assert sizes(y=99) == [20, 20, 20]
    both = select_train(split, few_shot=4, train_images={"x": 6}).train
    assert per_class(both) == {(d, c): 3 if d == "x" else 4 for d in "xyz" for c in "ab"}


def test_notes_say_what_falls_short() -> None:
    split = split_of((*items("x", {"a": 1, "b": 2, "c": 5}), *items("y", {"a": 5})))
    assert select_train(split, few_shot=3).notes == (
        "a note",
        "dataset 'x': 2 of 3 train classes have fewer than 3 images, and give all they have",
    )
    assert select_train(split, few_shot=1).notes == ("a note",)
    assert select_train(split, train_images={"x": 1, "y": 1}).notes == (
        "a note",
        "dataset 'x': a limit of 1 train images leaves 2 classes without any",
    )
    assert select_train(split) is split


def test_validation_classes_are_taken_out_before() -> None:
    source = Dataset("x", items("x", {f"{n}": 4 for n in range(10)}))
    split = split_datasets([source], validation_fraction=0.4)
    drawn = select_train(split, few_shot=1)
    assert len(drawn.train) == 3
    assert drawn.validation == split.validation
    assert len(split.validation) == 8


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"^--data.train_datasets names a dataset 'bird'.*did you mean 'birds'"):
        check_names("data.train_datasets", ["birds", "bird"], ["birds", "cars"])
    check_names("data.train_datasets", ["birds"], ["birds", "cars"])
