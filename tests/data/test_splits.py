from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.data.catalog import ROLES, Dataset, Item
from unimetric.data.splits import STRATEGIES, Split, split_datasets
from unimetric.errors import UserError


def dataset(name: str, images: dict[str, int], role: str | None = None) -> Dataset:
    """``images`` per label."""
    shown = [label for label, count in images.items() for _ in range(count)]
    # Labels and names may hold any character, paths may not.
    folder = name.encode().hex()
    return Dataset(
        name,
        tuple(Item(Path(f"{folder}/{label.encode().hex()}/{n}"), label, name, role) for n, label in enumerate(shown)),
    )


def with_roles(name: str, classes: dict[str, str], images: int = 2) -> Dataset:
    """Labels, each with its role."""
    items = [item for label, role in classes.items() for item in dataset(name, {label: images}, role).items]
    return Dataset(name, tuple(items))


def labels(items: tuple[Item, ...], name: str | None = None) -> set[str]:
    return {item.label for item in items if name in (None, item.dataset)}


def alphabet(count: int) -> dict[str, int]:
    return {f"{n:03}": 2 for n in range(count)}


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
catalogues = st.dictionaries(
    names, st.dictionaries(names, st.integers(1, 4), min_size=2, max_size=9), min_size=1, max_size=3
)


def test_first_half_is_by_code_point() -> None:
    split = split_datasets([dataset("x", dict.fromkeys(["b", "B", "10", "2", "é"], 2))], strategy="first-half")
    assert labels(split.train) == {"10", "2"}
    assert labels(split.query) == {"B", "b", "é"}
    assert split.query == split.gallery
    assert split.validation == ()
    assert split.notes == ()


@settings(deadline=None)
@given(
    catalogues,
    st.sampled_from(["auto", "first-half", "random-half"]),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_a_split_is_a_partition_by_classes(
    catalogue: dict[str, dict[str, int]], strategy: str, seed: int, fraction: float
) -> None:
    datasets = [dataset(name, images) for name, images in catalogue.items()]
    split = split_datasets(datasets, strategy=strategy, seed=seed, validation_fraction=fraction)
    everything = [item for source in datasets for item in source.items]
    assert sorted([*split.train, *split.validation, *split.query], key=repr) == sorted(everything, key=repr)
    assert split.query == split.gallery
    for source in datasets:
        train, validation, test = (labels(part, source.name) for part in (split.train, split.validation, split.query))
        assert not (train & validation or train & test or validation & test)
        half = len(source.labels) // 2
        assert len(train) + len(validation) == half
        assert train
        assert bool(validation) == (fraction > 0 and half >= 3)
        if validation:
            assert len(validation) == max(1, int(fraction * half + 0.5))


@settings(deadline=None)
@given(catalogues, st.sampled_from(["first-half", "random-half"]), st.randoms(use_true_random=False))
def test_a_split_depends_on_the_labels_alone(
    catalogue: dict[str, dict[str, int]], strategy: str, order: random.Random
) -> None:
    """Neither on the order of items and datasets, nor on what other datasets there are."""
    datasets = [dataset(name, images) for name, images in catalogue.items()]
    whole = split_datasets(datasets, strategy=strategy, seed=3, validation_fraction=0.3)
    shuffled = [Dataset(d.name, tuple(order.sample(d.items, len(d.items)))) for d in datasets]
    order.shuffle(shuffled)
    again = split_datasets(shuffled, strategy=strategy, seed=3, validation_fraction=0.3)
    for part in ("train", "validation", "query", "gallery"):
        assert set(getattr(whole, part)) == set(getattr(again, part))
        for one in datasets:
            alone = split_datasets([one], strategy=strategy, seed=3, validation_fraction=0.3)
            assert labels(getattr(alone, part)) == labels(getattr(whole, part), one.name)


def test_random_half_is_pinned_and_follows_the_seed_and_the_name() -> None:
    """A changed draw would make numbers of different releases incomparable."""

    def train(name: str = "x", seed: int = 0) -> list[str]:
        return sorted(labels(split_datasets([dataset(name, alphabet(8))], strategy="random-half", seed=seed).train))

    assert train() == ["002", "003", "006", "007"]
    assert len({tuple(train(seed=seed)) for seed in range(30)}) > 10
    assert len({tuple(train(name=str(n))) for n in range(30)}) > 10


def test_validation_classes_follow_the_seed() -> None:
    drawn = {
        tuple(sorted(labels(split_datasets([dataset("x", alphabet(20))], seed=s, validation_fraction=0.2).validation)))
        for s in range(20)
    }
    assert len(drawn) > 5
    assert all(len(classes) == 2 and max(classes) < "010" for classes in drawn)


def test_given_roles() -> None:
    source = with_roles("x", {"a": "train", "b": "validation", "c": "test", "d": "query"})
    source = Dataset("x", (*source.items, Item(Path("g"), "d", "x", "gallery")))
    for strategy in ("given", "auto"):
        split = split_datasets([source], strategy=strategy, validation_fraction=0.5)
        assert [item.label for item in split.train] == ["a", "a"]
        assert [item.label for item in split.validation] == ["b", "b"]
        assert [item.label for item in split.query] == ["c", "c", "d", "d"]
        assert [item.label for item in split.gallery] == ["c", "c", "d"]
        assert split.notes == ()


def test_auto_decides_for_each_dataset() -> None:
    given_source = with_roles("given", {"a": "test", "b": "train"})
    split = split_datasets([given_source, dataset("free", alphabet(2))])
    assert labels(split.train) == {"b", "000"}
    assert labels(split.query) == {"a", "001"}


def test_validation_is_held_out_of_given_train_classes() -> None:
    source = with_roles("x", {"a": "train", "b": "train", "c": "train", "d": "test"})
    split = split_datasets([source], validation_fraction=0.1)
    assert len(labels(split.validation)) == 1
    assert labels(split.train) | labels(split.validation) == {"a", "b", "c"}
    assert labels(split.query) == {"d"}


@pytest.mark.parametrize("role", [None, *ROLES])
def test_one_sided_splits(role: str | None) -> None:
    source = dataset("x", {"a": 2, "b": 2, "c": 2}, role)
    assert split_datasets([source], strategy="test-only") == Split((), (), source.items, source.items)
    assert split_datasets([source], strategy="train-only") == Split(source.items, (), (), ())
    split = split_datasets([source], strategy="train-only", validation_fraction=0.4)
    assert len(labels(split.validation)) == 1
    assert len(split.train) == 4


@pytest.mark.parametrize("others", [(), ("train",), ("train", "validation")])
def test_a_test_set_keeps_its_roles(others: tuple[str, ...]) -> None:
    """Stanford Online Products has test alone, In-shop and vehicles have query and gallery."""
    trained = [item for role in others for item in dataset("x", {role: 2}, role).items]
    parts = {role: dataset(f"x-{role}", {"c": 2, "d": 2}, role).items for role in ("test", "query", "gallery")}

    def split(*roles: str) -> Split:
        items = [item for role in roles for item in parts[role]]
        return split_datasets([Dataset("x", (*trained, *items))], strategy="test-only", validation_fraction=0.5)

    for roles, query, gallery in (
        (("query", "gallery"), ("query",), ("gallery",)),
        (("test",), ("test",), ("test",)),
        (("test", "query"), ("test", "query"), ("test",)),
    ):
        made = split(*roles)
        assert made.train == made.validation == ()
        assert made.query == tuple(item for role in query for item in parts[role])
        assert made.gallery == tuple(item for role in gallery for item in parts[role])
        left_out = f"dataset 'x': {len(trained)} train or validation images are left out of test-only"
        assert made.notes == ((left_out,) if trained else ())
    # A query side alone cannot be searched: then, as without roles, every image is both.
    made = split("query")
    assert made.query == made.gallery == (*trained, *parts["query"])


def test_an_item_without_a_role_is_tested_on() -> None:
    items = (*dataset("x", {"a": 2}).items, *dataset("x", {"b": 2}, "train").items)
    made = split_datasets([Dataset("x", items)], strategy="test-only")
    assert made.query == made.gallery == items[:2]


def test_an_image_in_two_datasets_is_said() -> None:
    shared = [Item(Path("p/1"), "b", name, "test") for name in ("x", "y")]
    again = Item(Path("p/../p/1"), "b", "z", "test")

    def notes(*items: Item, strategy: str = "test-only") -> list[str]:
        datasets = [Dataset(name, tuple(i for i in items if i.dataset == name)) for name in ("x", "y", "z")]
        whole = [Dataset(d.name, (*d.items, *dataset(d.name, {"b": 2, "c": 2}, "test").items)) for d in datasets]
        return [note for note in split_datasets(whole, strategy=strategy).notes if "more than one" in note]

    assert (
        notes(*shared)
        == notes(shared[0], again)
        == [
            "1 image is in more than one dataset (first: p/1): "
            "in the unified gallery each is the other's nearest neighbour, of the wrong dataset"
        ]
    )
    both = notes(*shared, *(Item(Path("p/2"), "b", name, "test") for name in ("x", "y", "z")))
    assert both[0].startswith("2 images are in more than one dataset (first: p/1): ")
    assert notes(shared[0]) == []
    assert notes(*shared, strategy="train-only") == []  # no gallery, no harm


def test_one_class_is_enough_for_one_side() -> None:
    source = dataset("x", {"a": 2})
    assert split_datasets([source], strategy="test-only").query == source.items
    assert split_datasets([source], strategy="train-only").train == source.items


@pytest.mark.parametrize(
    ("source", "strategy", "message"),
    [
        (dataset("x", {"a": 5}), "auto", r"dataset 'x' has one class only \('a'\).*add classes"),
        (dataset("x", {"a": 5}), "random-half", "one class only"),
        (replace(dataset("x", {"a": 5}), notes=("all in 'a'",)), "auto", "leave the dataset out; all in 'a'$"),
        (dataset("x", {}), "auto", "dataset 'x' has no images"),
        (dataset("x", alphabet(4)), "given", "dataset 'x': 8 of 8 images have no split"),
        (
            with_roles("x", {"a": "train", "b": "validation"}),
            "auto",
            "'x': the query side is empty; .*--data.split train-only",
        ),
        (with_roles("x", {"a": "train", "b": "query"}), "auto", "'x': the gallery side is empty; give"),
        (with_roles("x", {"a": "train", "b": "gallery"}), "given", "'x': the query side is empty"),
        (
            with_roles("x", {"a": "validation", "b": "test"}),
            "given",
            "'x': the train side is empty; .*--data.split test-only",
        ),
    ],
)
def test_datasets_that_cannot_be_split(source: Dataset, strategy: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_datasets([source], strategy=strategy)


@pytest.mark.parametrize("strategy", ["auto", "given"])
def test_roles_on_some_items_only(strategy: str) -> None:
    source = Dataset("x", (*dataset("x", {"a": 3}, "train").items, *dataset("x", {"b": 2}).items))
    with pytest.raises(UserError, match="'x': 2 of 5 images have no split; give all of them one"):
        split_datasets([source], strategy=strategy)


def test_bad_arguments() -> None:
    source = dataset("x", alphabet(4))
    with pytest.raises(UserError, match=r"--data.split is 'random_half'; did you mean 'random-half'"):
        split_datasets([source], strategy="random_half")
    for fraction in (-0.1, 0.51, float("nan")):
        with pytest.raises(UserError, match=rf"--data.validation_fraction is {fraction}; use 0 to 0.5"):
            split_datasets([source], validation_fraction=fraction)
    with pytest.raises(UserError, match="no datasets"):
        split_datasets([])
    with pytest.raises(UserError, match="2 datasets have the name 'x'"):
        split_datasets([source, source])
    assert len(STRATEGIES) == 6


def test_notes() -> None:
    shared = with_roles("x", {"a": "train", "b": "test"})
    shared = Dataset("x", (*shared.items, *(Item(Path(f"t{n}"), "a", "x", "test") for n in range(2))))
    assert split_datasets([shared]).notes == (
        "dataset 'x': 1 class (a) in both train and test: results on them are not zero-shot",
    )
    lonely = dataset("x", {"a": 2, "b": 1, "c": 2, "d": 2} | dict.fromkeys("efgh", 1))
    assert split_datasets([lonely]).notes == (
        "dataset 'x': 4 classes (e, f, g, ...) cannot be queries: the gallery holds no second image of them",
        "dataset 'x': 1 class (b) with one train image",
    )


def test_a_dataset_with_one_test_class_cannot_go_wrong_and_says_so() -> None:
    assert split_datasets([dataset("x", {"a": 2, "b": 2})]).notes == (
        "dataset 'x': 1 class (b) to test on: any neighbour within the dataset is right",
    )
    assert split_datasets([dataset("x", {"a": 2, "b": 2, "c": 2})]).notes == ()


def test_a_query_needs_another_gallery_image() -> None:
    """The same file in both sets is no partner, not even by another name."""
    train = dataset("x", {"t": 2}, "train").items

    def notes(*test: Item) -> int:
        return sum("cannot be queries" in note for note in split_datasets([Dataset("x", (*train, *test))]).notes)

    query = Item(Path("p/1"), "a", "x", "query")
    assert notes(query, Item(Path("p/1"), "a", "x", "gallery")) == 1
    assert notes(query, Item(Path("p/../p/1"), "a", "x", "gallery")) == 1
    assert notes(query, Item(Path("p/2"), "b", "x", "gallery")) == 1
    assert notes(query, Item(Path("p/2"), "a", "x", "gallery")) == 0


def test_a_dataset_that_is_only_tested_on_keeps_its_test_classes() -> None:
    datasets = [dataset("x", alphabet(12)), dataset("y", alphabet(12))]
    whole = split_datasets(datasets, strategy="random-half", seed=3, validation_fraction=0.4)
    split = split_datasets(datasets, strategy="random-half", seed=3, validation_fraction=0.4, train_datasets=["x"])
    assert (split.query, split.gallery) == (whole.query, whole.gallery)
    assert split.train == tuple(item for item in whole.train if item.dataset == "x")
    assert split.validation == tuple(item for item in whole.validation if item.dataset == "x")
    other = split_datasets(datasets, strategy="random-half", seed=3, validation_fraction=0.4, test_datasets=["y"])
    assert (other.train, other.validation) == (whole.train, whole.validation)
    assert other.query == other.gallery == tuple(item for item in whole.query if item.dataset == "y")


def test_no_side_is_demanded_that_is_not_wanted() -> None:
    datasets = [
        dataset("x", alphabet(4)),
        with_roles("only-test", {"a": "test", "b": "test"}),
        with_roles("only-train", {"a": "train", "b": "train"}),
        dataset("one-class", {"a": 3}),
    ]
    split = split_datasets(datasets, train_datasets=["x", "only-train"], test_datasets=["x", "only-test", "one-class"])
    assert {item.dataset for item in split.train} == {"x", "only-train"}
    assert {item.dataset for item in split.query} == {"x", "only-test", "one-class"}
    with pytest.raises(UserError, match=r"'only-test': the train side is empty; .*--data.train_datasets"):
        split_datasets(datasets, train_datasets=["only-test"], test_datasets=["x"])
    with pytest.raises(UserError, match=r"'only-train': the query side is empty; .*--data.test_datasets"):
        split_datasets(datasets, train_datasets=["x"], test_datasets=["only-train"])
    with pytest.raises(UserError, match="'one-class' has one class only"):
        split_datasets(datasets, train_datasets=["one-class"], test_datasets=["x"])


def test_a_dataset_that_takes_no_part_is_said() -> None:
    datasets = [dataset(name, alphabet(4)) for name in "xyz"]
    split = split_datasets(datasets, train_datasets=["x"], test_datasets=["y"])
    assert split.notes == ("dataset 'z' is neither trained on nor tested on",)
    assert {item.dataset for item in (*split.train, *split.query)} == {"x", "y"}
