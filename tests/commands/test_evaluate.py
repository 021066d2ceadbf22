"""`unimetric evaluate`, and what metrics.json looks like."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toy_runs import numbers, options_file, read_json, unimetric
from unimetric import Embedder
from unimetric.data.sources import read_sources
from unimetric.data.splits import split_datasets
from unimetric.evaluation import evaluate

DERIVED = ("intervals", "unified_gap", "domain_confusion", "spread", "thresholds", "worst_classes")


def values(tree: Any) -> Iterator[float]:
    for value in tree.values():
        if isinstance(value, dict):
            yield from values(value)
        else:
            yield value


def test_shape_of_metrics_json(run: Path) -> None:
    metrics = read_json(run / "metrics.json")
    assert set(metrics["separate"]) == {"a", "b"}
    measures = {"recall@1", "recall@2", "recall@4", "recall@8"}
    for part in (metrics["separate"]["a"], metrics["separate"]["b"], metrics["harmonic"], metrics["unified"]):
        assert measures <= part.keys()
        assert all(0 <= value <= 1 for value in values(part))
        assert part["recall@1"] <= part["recall@2"] <= part["recall@4"] <= part["recall@8"]
    recalls = [metrics["separate"][name]["recall@1"] for name in ("a", "b")]
    assert metrics["harmonic"]["recall@1"] == pytest.approx(2 / sum(1 / recall for recall in recalls))
    counts = metrics["counts"]
    assert (counts["queries"], counts["gallery"], counts["train_images"], counts["train_classes"]) == (35, 35, 35, 7)
    assert sum(part["queries"] for part in counts["datasets"].values()) == counts["queries"]
    assert (counts["queries_without_positive"], counts["skipped_files"], counts["skipped_train_files"]) == (0, 0, 0)
    assert metrics["training_steps"] == 5
    assert metrics["skipped"] == []
    assert "map" not in metrics["unified"]
    for metric, value in metrics["unified"].items():
        low, high = metrics["intervals"]["unified"][metric]
        assert low <= value <= high
    assert set(metrics["unified_gap"]) == set(metrics["worst_classes"]) == {"a", "b"}
    for row in metrics["domain_confusion"]["matrix"]:
        assert sum(row) == pytest.approx(1)
    assert metrics["thresholds"]["unified"]["genuine"] == 35


def test_the_numbers_are_those_of_the_saved_model(run: Path, sources: list[Path]) -> None:
    """An independent way from the folder to the numbers, through the public API."""
    test = split_datasets(read_sources([str(source) for source in sources])).query
    vectors = Embedder.from_pretrained(run).encode([item.path for item in test], batch_size=64, precision="fp32")
    report = evaluate(vectors, [item.label for item in test], [item.dataset for item in test], ks=(1, 2, 4, 8))
    metrics = read_json(run / "metrics.json")
    for part in ("separate", "harmonic", "unified"):
        assert report.to_dict()[part] == metrics[part]


@pytest.mark.parametrize("order", ["model first", "model last"])
def test_evaluate_reproduces_what_train_measured(
    order: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    arguments = [copy, "--data.split_seed", 0] if order == "model first" else ["--data.split_seed", 0, copy]
    assert unimetric("evaluate", *arguments) == 0
    expected, found = numbers(run), numbers(copy / "evaluation")
    # The numbers do not depend on it, and the run may have been made with another number.
    del expected["machine"]["threads"], found["machine"]["threads"]
    for name in ("separate", "harmonic", "unified", "skipped", "model", "machine", *DERIVED):
        assert found[name] == expected[name]
    assert found["counts"].items() <= expected["counts"].items()
    assert "puma: 35 queries against 35 images" in capsys.readouterr().out


def test_mean_average_precision_on_request(run: Path, tmp_path: Path) -> None:
    assert unimetric("evaluate", run, "--out", tmp_path, "--evaluation.mean_average_precision", "true") == 0
    metrics = read_json(tmp_path / "metrics.json")
    for part in (metrics["separate"]["a"], metrics["harmonic"], metrics["unified"]):
        # The same precisions, over all ranks where MAP@R stops at R.
        assert part["map@r"] < part["map"] <= 1


def test_other_data(run: Path, sources: list[Path], tmp_path: Path) -> None:
    data = ["--data.sources", f"[new={sources[1]}]", "--data.split", "test-only"]
    assert unimetric("evaluate", run, "--out", tmp_path / "out", *data) == 0
    metrics = read_json(tmp_path / "out/metrics.json")
    assert set(metrics["separate"]) == {"new"}
    assert metrics["counts"]["queries"] == 30
    assert not (run / "evaluation").exists()


def test_a_model_folder_has_no_data_of_its_own(
    run: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unimetric("evaluate", run / "model", "--out", tmp_path / "out") == 2
    assert "no source is given" in capsys.readouterr().err
    data = ["--data.sources", f"[{sources[0]}, {sources[1]}]", "--device.precision", "fp32"]
    assert unimetric("evaluate", run / "model", "--out", tmp_path / "out", *data) == 0
    assert read_json(tmp_path / "out/metrics.json")["unified"] == read_json(run / "metrics.json")["unified"]


def test_frozen_backbone_without_a_model(sources: list[Path], tmp_path: Path) -> None:
    options = options_file(tmp_path / "options.yaml", data={"sources": [str(source) for source in sources]})
    frozen = ["--model.method", "frozen", "--model.options", "{}"]
    assert unimetric("evaluate", "--config", options, *frozen, "--out", tmp_path / "out") == 0
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["model"]["trainable_parameters"] == 0
    assert metrics["model"]["embedding_size"] == 64
    assert metrics["counts"]["queries"] == 35


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "OUT", "--data.sources", "[A]"], "without a trained model only frozen can be measured"),
        (["--model.method", "frozen"], "--out is missing"),
        (["RUN", "--model.method", "frozen", "--out", "OUT"], "is a trained model with options of its own"),
        (["A", "--model.method", "frozen", "--out", "OUT"], "is not a trained model; write --data.sources"),
        (["RUN", "--model.image_size=64", "--out", "OUT"], "--model.image_size: "),
        (["RUN", "--out", "OUT", "--data.split", "train-only"], "no image is left to measure"),
        (["A", "--out", "OUT", "--data.sources", "[A]"], "config.json does not exist"),
        (["RUN", "--out", "A/c0/0.png/out"], "choose another path"),
        (["RUN", "--out", "OUT", "--device.accelerator", "cuda"], "--device.accelerator is 'cuda'"),
    ],
)
def test_refusals_write_nothing(
    arguments: list[str],
    words: str,
    run: Path,
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    places = {"RUN": str(run), "OUT": str(tmp_path / "out"), "A": str(sources[0])}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert unimetric("evaluate", *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []
    assert not (run / "evaluation").exists()


def test_a_dataset_of_which_nothing_can_be_read_is_named(
    run: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(sources[0], tmp_path / "lost"))
    for path in data.rglob("*.png"):
        path.write_bytes(b"no image")
    arguments = [data, sources[1], "--data.split", "test-only", "--out", tmp_path / "out"]
    assert unimetric("evaluate", run, *arguments) == 0
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["counts"]["datasets_left_out"] == ["lost"]
    assert list(metrics["separate"]) == [sources[1].name]
    assert "40 files skipped, named in metrics.json, no number for 'lost'" in capsys.readouterr().out


def test_skipped_test_images_are_named(run: Path, sources: list[Path], tmp_path: Path) -> None:
    data = Path(shutil.copytree(sources[0], tmp_path / "a"))
    (data / "c5/2.png").write_bytes(b"no image")
    arguments = ["evaluate", run, "--out", tmp_path / "out", "--data.sources", f"[{data}]"]
    assert unimetric(*arguments) == 0
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["counts"]["skipped_files"] == 1
    assert [entry["path"] for entry in metrics["skipped"]] == [str(data / "c5/2.png")]
    assert metrics["counts"]["queries"] == 19
    (tmp_path / "out/metrics.json").unlink()
    assert unimetric(*arguments, "--data.strict", "true") == 2
    assert unimetric(*arguments, "--strict") == 2
    assert not (tmp_path / "out/metrics.json").exists()


def test_a_backbone_from_a_file(
    run_on_a_file: tuple[Path, Path], sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = run_on_a_file
    assert unimetric("evaluate", run, "--out", tmp_path / "one") == 0
    given = ["--model.weights", file, "--device.precision", "fp32"]
    assert unimetric("evaluate", run / "model", *sources, *given, "--out", tmp_path / "two") == 0
    for folder in ("one", "two"):
        assert read_json(tmp_path / folder / "metrics.json")["unified"] == read_json(run / "metrics.json")["unified"]
    # Moved elsewhere, with the weights beside the model or at a place that is typed.
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(file), str(tmp_path / "gone" / file.name)))
    capsys.readouterr()
    assert unimetric("evaluate", moved, "--out", tmp_path / "three") == 2
    assert str(tmp_path / "gone" / file.name) in capsys.readouterr().err
    assert unimetric("evaluate", moved, f"--model.weights={file}", "--out", tmp_path / "three") == 0
    shutil.copy(file, moved / "model")
    assert unimetric("evaluate", moved, "--out", tmp_path / "four") == 0


def test_other_weights_are_refused(
    run: Path, run_on_a_file: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unimetric("evaluate", run, "--model.weights", run_on_a_file[1], "--out", tmp_path / "out") == 2
    assert "fingerprint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sources_after_the_model(run: Path, sources: list[Path], tmp_path: Path) -> None:
    assert unimetric("evaluate", run, f"new={sources[1]}", sources[0], "--out", tmp_path / "out") == 0
    assert set(read_json(tmp_path / "out/metrics.json")["separate"]) == {"new", "a"}


@pytest.mark.parametrize("roles", [("test", "test"), ("query", "gallery")])
def test_images_without_a_train_side_are_measured(
    roles: tuple[str, str], run: Path, sources: list[Path], tmp_path: Path
) -> None:
    """Measuring asks for no train side."""
    paths = sorted(sources[0].glob("*/*.png"))
    rows = [f"{path},{path.parent.name},{roles[place % 2]}" for place, path in enumerate(paths)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    assert unimetric("evaluate", run, tmp_path / "all.csv", "--out", tmp_path / "out") == 0
    counts = read_json(tmp_path / "out" / "metrics.json")["counts"]["datasets"]["all"]
    expected = (len(paths), len(paths)) if roles[0] == "test" else ((len(paths) + 1) // 2, len(paths) // 2)
    assert (counts["queries"], counts["gallery"]) == expected


def test_options_of_frozen_are_checked_before_data_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model.method", "frozen", "--model.options.prompts", "3", "--data.sources", "[none]"]
    assert unimetric("evaluate", *arguments, "--out", tmp_path / "out") == 2
    assert "'prompts'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def members(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs, each trained and measured on one of the two datasets; only to be read."""
    root = tmp_path_factory.mktemp("members")
    for name in ("a", "b"):
        options = options_file(
            root / f"{name}.yaml", training={"steps": 2}, data={"train_datasets": [name], "test_datasets": [name]}
        )
        assert unimetric("train", *sources, "--out", root / name, "--config", options) == 0
    return [root / "a", root / "b"]


@pytest.mark.parametrize("style", ["one option", "an option each"])
def test_an_ensemble_is_measured_on_all_datasets(
    style: str, members: list[Path], sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--ensemble", *members] if style == "one option" else [f"--ensemble={run}" for run in members]
    assert unimetric("evaluate", *named, "--out", tmp_path / "out") == 0
    assert "ensemble: 35 queries against 35 images" in capsys.readouterr().out
    metrics = read_json(tmp_path / "out/metrics.json")
    # By an independent way through the public API.
    test = split_datasets(read_sources([str(source) for source in sources])).query
    parts = [Embedder.from_pretrained(run).encode([item.path for item in test], precision="fp32") for run in members]
    labels, datasets = [item.label for item in test], [item.dataset for item in test]
    report = evaluate(parts[0] + parts[1], labels, datasets, ks=(1, 2, 4, 8)).to_dict()
    for part in ("separate", "harmonic", "unified"):
        assert metrics[part] == report[part]
    counts = [read_json(run / "metrics.json")["model"]["trainable_parameters"] for run in members]
    model = metrics["model"]
    assert (model["method"], model["trainable_parameters"]) == ("ensemble", sum(counts))
    assert [member["name"] for member in model["members"]] == [str(run) for run in members]
    assert metrics["distance"] == "cosine"


def test_an_ensemble_on_other_data(members: list[Path], sources: list[Path], tmp_path: Path) -> None:
    data = ["--data.sources", f"[new={sources[1]}]", "--data.split", "test-only"]
    assert unimetric("evaluate", "--ensemble", *members, *data, "--out", tmp_path / "out") == 0
    assert set(read_json(tmp_path / "out/metrics.json")["separate"]) == {"new"}
    chosen = ["--data.test_datasets", "[b]"]
    assert unimetric("evaluate", "--ensemble", *members, *chosen, "--out", tmp_path / "chosen") == 0
    assert set(read_json(tmp_path / "chosen/metrics.json")["separate"]) == {"b"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ensemble", "M0", "M1"], "--out is missing: name the folder for the ensemble's metrics.json"),
        (["SOURCE", "--ensemble", "M0", "M1", "--out", "OUT"], "and --ensemble are both given"),
        (["--ensemble", "M0", "M0/../a", "--out", "OUT"], "a twice: name each model once"),
        (["--ensemble", "M0", "SOURCE", "--out", "OUT"], "config.json does not exist"),
        (["--ensemble", "M0", "M1", "--model.image_size", "64", "--out", "OUT"], "--model.image_size: "),
        (["--ensemble", "--out", "OUT"], "--ensemble"),
    ],
)
def test_ensembles_that_cannot_be(
    arguments: list[str],
    words: str,
    members: list[Path],
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"M0": members[0], "M1": members[1], "OUT": tmp_path / "out", "SOURCE": sources[0]}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    capsys.readouterr()
    assert unimetric("evaluate", *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_hyperbolic_run_is_measured_by_hyperbolic_distance(sources: list[Path], tmp_path: Path) -> None:
    """From training to the ensemble; and its members are refused beside one of the sphere."""
    options = options_file(
        tmp_path / "options.yaml",
        training={"steps": 2},
        model={"method": "linear", "options": {}},
        loss={"name": "hyperbolic", "options": {"curvature": 0.2}},
    )
    runs = [tmp_path / "one", tmp_path / "two"]
    for seed, run in enumerate(runs):
        chosen = ["--config", options, "--training.seed", seed]
        assert unimetric("train", *sources, "--out", run, *chosen) == 0
    metrics = read_json(runs[0] / "metrics.json")
    assert metrics["distance"] == "poincare"
    assert metrics["model"]["geometry"] == {"name": "poincare", "curvature": 0.2, "clip": 2.3}
    test = split_datasets(read_sources([str(source) for source in sources])).query
    points = Embedder.from_pretrained(runs[0]).encode([item.path for item in test], precision="fp32")
    labels, datasets = [item.label for item in test], [item.dataset for item in test]
    report = evaluate(points, labels, datasets, ks=(1, 2, 4, 8), distance="poincare", curvature=0.2)
    assert metrics["unified"] == report.to_dict()["unified"]
    assert unimetric("evaluate", "--ensemble", *runs, "--out", tmp_path / "both") == 0
    assert read_json(tmp_path / "both/metrics.json")["distance"] == "poincare"


def test_members_of_different_spaces_are_refused(
    run: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"steps": 2}, loss={"name": "hyperbolic"})
    assert unimetric("train", *sources, "--out", tmp_path / "ball", "--config", options) == 0
    capsys.readouterr()
    assert unimetric("evaluate", "--ensemble", run, tmp_path / "ball", "--out", tmp_path / "out") == 2
    assert f"the geometry of {tmp_path / 'ball'} is PoincareBall" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
