"""Findings of each kind on small collections whose faults are known, and the manifest after decisions."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from audit_pictures import Colours, compressed, picture
from unimetric.curation.audit import find_all, sides_of
from unimetric.curation.decisions import apply_decisions, write_audit
from unimetric.curation.findings import Finding, write_findings
from unimetric.curation.labels import judged, one_class, two_classes, wrong_labels
from unimetric.curation.measurements import measure
from unimetric.data.catalog import Dataset, Item
from unimetric.data.sources.manifest import read_manifest
from unimetric.errors import UserError


def clusters(sizes: list[int], width: int = 16, spread: float = 0.25, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = np.concatenate(
        [c + spread * random.normal(size=(n, width)) / 4 for c, n in zip(centres, sizes, strict=True)]
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = [chr(97 + index) for index, size in enumerate(sizes) for _ in range(size)]
    return vectors.astype(np.float32), labels


def test_a_wrong_label_is_found_with_the_right_one() -> None:
    vectors, labels = clusters([10, 10, 10, 10])
    given = [*labels]
    given[3], given[17] = "c", "d"
    judgement = judged(vectors, given, np.arange(40), np.arange(40))
    assert {(place, better) for place, better, _ in wrong_labels(judgement)} == {(3, "a"), (17, "b")}
    assert wrong_labels(judged(vectors, labels, np.arange(40), np.arange(40))) == []


def test_copies_do_not_vouch_for_each_other() -> None:
    """A wrongly labelled image whose copy has the same wrong label is judged without that copy."""
    vectors, labels = clusters([10, 10, 10])
    vectors = np.concatenate([vectors, vectors[[2, 2, 2]]])
    given = [*labels, "c", "c", "c"]
    given[2] = "c"
    groups = np.arange(33)
    groups[30:] = 2
    found = wrong_labels(judged(vectors, given, np.arange(33), groups))
    assert {place for place, better, _ in found if better == "a"} == {2, 30, 31, 32}


def test_classes_of_one_image_are_not_judged() -> None:
    vectors, labels = clusters([6, 6, 1])
    judgement = judged(vectors, labels, np.arange(13), np.arange(13))
    assert np.isnan(judgement.own[12])
    assert not np.isnan(judgement.own[:12]).any()
    assert judged(vectors[:1], ["a"], np.arange(1), np.arange(1)) is None


def test_one_class_under_two_names_and_two_under_one() -> None:
    vectors, labels = clusters([16, 12, 12, 12])
    torn = ["a1" if label == "a" and place % 2 else label for place, label in enumerate(labels)]
    assert [pair[:2] for pair in one_class(judged(vectors, torn, np.arange(52), np.arange(52)))] == [("a", "a1")]
    assert one_class(judged(vectors, labels, np.arange(52), np.arange(52))) == []
    joined = ["b" if label == "c" else label for label in labels]
    nearest = np.argsort(-(vectors @ vectors.T) + 9 * np.eye(52), axis=1)[:, :3]
    found = two_classes(vectors, joined, nearest)
    assert [(label, len(part)) for label, part, _ in found] == [("b", 12)]
    assert two_classes(vectors, labels, nearest) == []


@pytest.mark.filterwarnings("error")
def test_a_class_of_nearly_equal_images_is_no_two_classes() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        vectors = generator.normal(size=64) + 1e-8 * generator.normal(size=(20, 64))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        nearest = np.argsort(-(vectors @ vectors.T) + 9 * np.eye(20), axis=1)[:, :3]
        assert two_classes(vectors, ["a"] * 20, nearest) == []


@pytest.mark.parametrize("given", [True, False])
def test_a_label_of_the_other_side_of_a_given_split_is_no_suggestion(given: bool, tmp_path: Path) -> None:
    """With it, a class of the test side would be trained on. A split by classes is made anew, from the new labels."""
    vectors, labels = clusters([10, 10, 10, 10])
    labels[3], labels[22], labels[27] = "b", "a", "d"  # pictures of a, c and c
    roles = ["train" if label in "ab" else "test" for label in labels]
    items = []
    for row, (label, role) in enumerate(zip(labels, roles, strict=True)):
        picture(row, 48, 40).save(tmp_path / f"{row:02}.png")
        items.append(Item(tmp_path / f"{row:02}.png", label, "set", role if given else None))

    class Given:
        embedding_size = vectors.shape[1]

        def encode(self, images: list[Image.Image], *, precision: str = "auto") -> np.ndarray:
            return vectors

    measured = measure(items, Given(), "given", tmp_path / "work", "auto")
    findings = [f for f in find_all(measured, {}).findings if f.kind == "wrong-label"]
    found = {items.index(finding.images[0]): finding for finding in findings}
    assert {row: finding.relabel for row, finding in found.items()} == {3: "a", 22: None if given else "c", 27: "c"}
    assert found[22].drop == ((items[22],) if given else ())
    assert ("The train side has no such class" in found[22].reason) == given


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[list[Item], list[Dataset]]:
    """Two classes on each side of a given split, with an unreadable, a blank, a tiny and a leaked picture."""
    items = []
    for label, role in (("a", "train"), ("b", "train"), ("c", "test"), ("d", "test")):
        for index in range(5):
            path = tmp_path / f"{label}{index}.png"
            picture(10 * ord(label) + index).save(path)
            items.append(Item(path, label, "set", role))
    extra = {
        "broken.png": None,
        "blank.png": Image.new("RGB", (64, 64), "white"),
        "tiny.png": picture(1).resize((12, 9)),
        "leak.jpg": compressed(picture(10 * ord("a"))),
    }
    for name, image in extra.items():
        path = tmp_path / name
        path.write_bytes(b"broken") if image is None else image.save(path)
        items.append(Item(path, "c", "set", "test"))
    return items, [Dataset("set", tuple(items))]


def found_in(items: list[Item], datasets: list[Dataset], work: Path):
    sides, notes = sides_of(datasets, "auto")
    assert notes == []
    return find_all(measure(items, Colours(), "colours", work, "auto"), sides).findings


def test_every_planted_fault_has_its_finding(faulty, tmp_path: Path) -> None:
    items, datasets = faulty
    findings = found_in(items, datasets, tmp_path / "work")
    by_kind = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append({item.path.name for item in finding.images})
    assert by_kind["unreadable"] == [{"broken.png"}]
    assert by_kind["blank"] == [{"blank.png"}]
    assert by_kind["tiny"] == [{"tiny.png"}]
    assert by_kind["leak"] == [{"a0.png", "leak.jpg"}]
    assert by_kind["contradiction"] == [{"a0.png", "leak.jpg"}]
    assert by_kind["near-copy"] == [{"a0.png", "leak.jpg"}]
    leak = next(finding for finding in findings if finding.kind == "leak")
    assert [item.path.name for item in leak.drop] == ["a0.png"]  # the test side stays as it is


@pytest.mark.parametrize("names", [("set", "set"), ("set", "other")])
def test_copies_in_query_and_gallery_of_one_dataset_are_a_leak_that_removes_nothing(
    names: tuple[str, str], tmp_path: Path
) -> None:
    items = []
    for number, name in enumerate(dict.fromkeys(names)):
        for place, (label, role) in enumerate(zip("abcc", ("train", "train", "query", "gallery"), strict=True)):
            path = tmp_path / f"{name}-{role}{place}.png"
            picture(100 * number + 10 * place).save(path)
            items.append(Item(path, label, name, role))
    query = next(item for item in items if (item.dataset, item.role) == (names[0], "query"))
    gallery = next(item for item in items if (item.dataset, item.role) == (names[1], "gallery"))
    gallery.path.write_bytes(query.path.read_bytes())
    datasets = [Dataset(name, tuple(item for item in items if item.dataset == name)) for name in dict.fromkeys(names)]
    leaks = [finding for finding in found_in(items, datasets, tmp_path / "work") if finding.kind == "leak"]
    same = names[0] == names[1]
    assert [({item.path for item in leak.images}, leak.drop) for leak in leaks] == (
        [({query.path, gallery.path}, ())] if same else []
    )


def test_accepted_findings_make_a_manifest(faulty, tmp_path: Path) -> None:
    items, datasets = faulty
    findings = found_in(items, datasets, tmp_path / "work")
    write_audit(tmp_path / "audit.json", items, findings)
    write_findings(tmp_path / "audit.csv", findings)
    rows = list(csv.DictReader((tmp_path / "audit.csv").open()))
    accepted = [int(row["id"]) for row in rows if row["kind"] in ("unreadable", "leak")]
    (tmp_path / "decisions.json").write_text(json.dumps({"accepted": accepted, "rejected": []}))
    outcome = apply_decisions(tmp_path / "audit.json", tmp_path / "decisions.json", tmp_path / "clean.csv")
    kept = list(csv.DictReader((tmp_path / "clean.csv").open()))
    assert (outcome.kept, outcome.dropped, outcome.relabelled) == (len(items) - 2, 2, 0)
    assert {Path(row["path"]).name for row in kept} == {i.path.name for i in items} - {"broken.png", "a0.png"}
    assert {(row["label"], row["dataset"], row["split"]) for row in kept} == {(i.label, "set", i.role) for i in items}


@pytest.mark.parametrize("role", [None, "test"])
def test_classes_without_images_move_the_halves(role: str | None, tmp_path: Path) -> None:
    """Without a split, training divides the classes that are left."""
    findings = [{"kind": "unreadable", "images": [0], "drop": [0], "relabel": None}]
    audit = {
        "items": [[f"/x/{label}.png", label, "set", role, []] for label in "abc"],
        "findings": findings,
        "doubts": [],
    }
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    for accepted, emptied in (([], ()), ([0], () if role else (("set", "a"),))):
        (tmp_path / "decisions.json").write_text(json.dumps({"accepted": accepted}))
        outcome = apply_decisions(tmp_path / "audit.json", tmp_path / "decisions.json", tmp_path / "clean.csv")
        assert outcome.emptied == emptied


def test_relabelling_and_its_contradictions(tmp_path: Path) -> None:
    items = [{"path": "/x/1.png"}, {"path": "/x/2.png"}]
    audit = {
        "items": [[item["path"], "a", "set", None, []] for item in items],
        "findings": [
            {"kind": "wrong-label", "images": [0], "drop": [], "relabel": "b"},
            {"kind": "wrong-label", "images": [0], "drop": [], "relabel": "c"},
            {"kind": "contradiction", "images": [0, 1], "drop": [0, 1], "relabel": None},
        ],
        "doubts": [],
    }
    (tmp_path / "audit.json").write_text(json.dumps(audit))

    def apply(accepted: object, rejected: Sequence[int] = ()):
        (tmp_path / "decisions.json").write_text(json.dumps({"accepted": accepted, "rejected": list(rejected)}))
        return apply_decisions(tmp_path / "audit.json", tmp_path / "decisions.json", tmp_path / "clean.csv")

    assert apply([0]).relabelled == 1
    assert (tmp_path / "clean.csv").read_text() == "path,label,dataset\n/x/1.png,b,set\n/x/2.png,a,set\n"
    for accepted, message in [
        ([0, 1], "the labels 'b' and 'c'"),
        ([2], "no image is left"),
        ([3], "has 3, but the audit has the findings 0 to 2"),
        ([True], "accepted has True"),
        ("all", "holds no decisions"),
    ]:
        with pytest.raises(UserError, match=message):
            apply(accepted)
    with pytest.raises(UserError, match="both accepts and rejects finding 1; remove it from one"):
        apply([1], [0, 1])
    assert "x/1.png,b" in (tmp_path / "clean.csv").read_text()  # what was there stays


def test_doubtful_labels_are_left_out_unless_something_was_decided(tmp_path: Path) -> None:
    """The manifest loses the doubtful train images; decisions, and images on the test side, are left alone."""
    items = [Item(tmp_path / f"{row}.png", "a", "set", "train") for row in range(6)]
    findings = [Finding("wrong-label", 0.9, (items[row],), "", relabel="b") for row in (1, 2)]
    findings += [Finding("stranger", 0.9, (items[3],), "")]
    doubts = {items[0]: 0.04, items[1]: 0.9, items[2]: 0.9, items[3]: 0.05, items[4]: 0.3}
    write_audit(tmp_path / "audit.json", items, findings, doubts)
    (tmp_path / "decisions.json").write_text(json.dumps({"accepted": [0], "rejected": [1, 2]}))

    def apply(doubtful: float | None) -> tuple[int, int]:
        paths = (tmp_path / name for name in ("audit.json", "decisions.json", "clean.csv"))
        outcome = apply_decisions(*paths, doubtful)
        return outcome.dropped, outcome.relabelled

    assert apply(None) == (0, 1)
    assert apply(0.05) == (2, 1)
    kept = [Path(row["path"]).stem for row in csv.DictReader((tmp_path / "clean.csv").open())]
    assert kept == ["0", "1", "2", "5"]
    assert apply(0.04) == (3, 1)
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"name a probability from 0\.01 to 1"):
            apply(wrong)


@pytest.mark.parametrize("side", ["query", "gallery", "test"])
def test_doubts_are_those_of_the_train_side(side: str, tmp_path: Path) -> None:
    vectors, labels = clusters([10, 10, 10, 10])
    labels[3], labels[17] = "b", "a"
    items = [Item(tmp_path / f"{row:02}.png", label, "set") for row, label in enumerate(labels)]
    for row, item in enumerate(items):
        picture(row, 48, 40).save(item.path)

    class Given(Colours):
        embedding_size = vectors.shape[1]

        def encode(self, images: list[Image.Image], *, precision: str = "auto") -> np.ndarray:
            return vectors

    measured = measure(items, Given(), "given", tmp_path / "work", "auto")
    everywhere = find_all(measured, {})
    wrong = {f.images[0]: f.confidence for f in everywhere.findings if f.kind == "wrong-label"}
    assert {items[3], items[17]} == set(wrong)
    assert wrong.items() <= everywhere.doubts.items()
    trained = find_all(measured, {item: side if item is items[17] else "train" for item in items})
    assert trained.doubts == {item: doubt for item, doubt in everywhere.doubts.items() if item is not items[17]}


def test_of_copies_one_stays_although_a_leak_removes_the_best(tmp_path: Path) -> None:
    """The larger train image is the original of the copies; accepted together, the findings leave the test image."""
    items = []
    for label, role, seed in [("a", "train", 1), ("a", "test", 2), ("b", "train", 3), ("b", "test", 4)]:
        for index in range(3):
            path = tmp_path / f"{label}-{role}-{index}.png"
            picture(10 * seed + index).save(path)
            items.append(Item(path, label, "set", role))
    larger = Image.open(items[3].path)
    larger.resize((larger.width * 2, larger.height * 2)).save(items[0].path)
    findings = found_in(items, [Dataset("set", tuple(items))], tmp_path / "work")
    write_audit(tmp_path / "audit.json", items, findings)
    for kinds, kept in [
        (("near-copy",), {items[0].path}),
        (("leak",), {items[3].path}),
        (("near-copy", "leak"), {items[3].path}),
    ]:
        accepted = [number for number, finding in enumerate(findings) if finding.kind in kinds]
        assert len(accepted) == len(kinds)
        (tmp_path / "decisions.json").write_text(json.dumps({"accepted": accepted}))
        assert (
            apply_decisions(tmp_path / "audit.json", tmp_path / "decisions.json", tmp_path / "clean.csv").dropped == 1
        )
        (dataset,) = read_manifest(tmp_path / "clean.csv")
        assert {item.path for item in dataset.items} & {items[0].path, items[3].path} == kept


def test_several_labels_stay_several(tmp_path: Path) -> None:
    for index in range(4):
        picture(index).save(tmp_path / f"{index}.png")
    compressed(picture(0)).save(tmp_path / "copy.png")
    compressed(picture(1)).save(tmp_path / "other.png")
    labels = {"0": "a|b", "1": "b", "2": "d", "3": "e", "copy": "b|c", "other": "a|c"}
    table = "".join(f"{name}.png,{label},{'train' if label in 'de' else 'test'}\n" for name, label in labels.items())
    (tmp_path / "set.csv").write_text(f"path,labels,split\n{table}")
    (dataset,) = read_manifest(tmp_path / "set.csv")
    findings = found_in(list(dataset.items), [dataset], tmp_path / "work")
    # Copies that share a label do not contradict each other.
    assert [{i.path.stem for i in f.images} for f in findings if f.kind == "contradiction"] == [{"1", "other"}]
    assert not any(finding.kind == "wrong-label" for finding in findings)
    write_audit(tmp_path / "audit.json", dataset.items, findings)
    (tmp_path / "decisions.json").write_text('{"accepted": []}')
    apply_decisions(tmp_path / "audit.json", tmp_path / "decisions.json", tmp_path / "clean.csv")
    (again,) = read_manifest(tmp_path / "clean.csv")
    assert again.items == dataset.items

    # A list in a Parquet file may hold a label that one cell cannot.
    items = [*dataset.items, Item(tmp_path / "3.png", "x|y|z", "set", "test", ("x|y", "z"))]
    write_audit(tmp_path / "audit.json", items, [])
    with pytest.raises(UserError, match=r"3.png has the label 'x\|y', and \| separates"):
        apply_decisions(tmp_path / "audit.json", tmp_path / "decisions.json", tmp_path / "clean.csv")
