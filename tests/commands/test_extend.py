"""``unimetric extend``: the run that it writes, with the old images there and gone, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toy_runs import assert_same_run, at_step, interrupt, make_images, options_file, read_json, tensors, unimetric
from unimetric import Embedder
from unimetric.errors import UserError
from unimetric.search import SearchIndex
from unimetric.search.items import NewItem
from unimetric.training.drift import TOLERANCE

STEPS = 6


@pytest.fixture(scope="session")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose name is between those of the old ones, b and a: 3 train classes."""
    return make_images(tmp_path_factory.mktemp("added") / "ab", classes=6, seed=2)


@pytest.fixture(scope="session")
def kept(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a replay set of two images of each class; only to be read."""
    copy = tmp_path_factory.mktemp("kept") / "run"
    shutil.copytree(run, copy)
    assert unimetric("extend", copy, "--replay_only", "--replay_per_class", 2) == 0
    return copy


@pytest.fixture(scope="session")
def extended(kept: Path, added: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run extended while the old images are there; only to be read."""
    out = tmp_path_factory.mktemp("extended") / "run"
    assert extend(kept, added, "--out", out) == 0
    return out


def extend(run: Path, data: object, *options: object) -> int:
    return unimetric("extend", run, "--data", data, "--steps", STEPS, "--workers", 0, *CPU, *options)


CPU = ("--device.accelerator", "cpu", "--device.precision", "fp32")


def without_images(kept: Path, root: Path) -> Path:
    """A copy of the run whose sources are nowhere."""
    shutil.copytree(kept, root / "run")
    config = root / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line.replace("  - /", "  - /gone/") for line in lines))
    return root / "run"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_it_is_an_ordinary_run(extended: Path, run: Path, kept: Path, added: Path, tmp_path: Path) -> None:
    assert {"config.yaml", "checkpoint.safetensors", "metrics.json", "vectors.parquet", "model"} <= files(extended)
    metrics = read_json(extended / "metrics.json")
    assert set(metrics["separate"]) == {"a", "ab", "b"}
    assert metrics["counts"]["train_images"] == 2 * 7 + 15
    assert unimetric("evaluate", extended, "--out", tmp_path / "again") == 0
    assert read_json(tmp_path / "again" / "metrics.json")["separate"] == metrics["separate"]
    assert unimetric("report", extended, "--out", tmp_path / "report.html") == 0
    assert unimetric("index", extended, added, "--db", tmp_path / "db", *CPU) == 0
    assert unimetric("search", tmp_path / "db", added / "c0" / "0.png", "--k", 1, *CPU) == 0
    changed = tensors(extended / "model" / "adapter.safetensors")
    assert any(not value.equal(changed[name]) for name, value in tensors(run / "model/adapter.safetensors").items())


def test_it_says_what_it_was_extended_from_and_how_far_neighbours_moved(extended: Path) -> None:
    told = read_json(extended / "metrics.json")["extension"]
    assert told["from"]["datasets"] == ["a", "b"] and told["added"] == ["ab"]
    assert told["replay"]["images"] == 14 and told["replay"]["bytes"] > 0
    drift = told["drift"]
    assert drift["images"] == 35 and "not trained on" in drift["measured_on"]
    recall = drift["recall_at_1"]
    assert drift["reindex"] == (recall["old"] - recall["new_in_old"] > TOLERANCE)
    card = (extended / "model" / "README.md").read_text()
    assert "Extended from another model" in card
    assert told["from"]["fingerprint"][:16] in card
    assert " ".join(told["summary"]) in card


def test_without_a_step_embeddings_and_old_proxies_are_the_old_ones(
    kept: Path, added: Path, sources: list[Path], tmp_path: Path
) -> None:
    # So small that no weight moves.
    assert extend(kept, added, "--out", tmp_path / "new", "--learning_rate_scale", 1e-30) == 0
    images = sorted(sources[0].rglob("*.png"))[:6]
    before, after = (Embedder.from_pretrained(path).encode(images) for path in (kept, tmp_path / "new"))
    assert np.array_equal(before, after)
    drift = read_json(tmp_path / "new" / "metrics.json")["extension"]["drift"]
    assert drift["neighbours_kept"] == 1 and not drift["reindex"]
    old = tensors(kept / "checkpoint.safetensors")["loss.proxies"]
    proxies = tensors(tmp_path / "new" / "checkpoint.safetensors")["loss.proxies"]
    # Sorted: the four classes of a, the three of ab, the three of b.
    assert proxies[:4].equal(old[:4]) and proxies[7:].equal(old[4:])
    means = []
    for label in ("c0", "c1", "c2"):
        vectors = Embedder.from_pretrained(kept).encode(sorted((added / label).iterdir()), precision="fp32")
        means.append(vectors.sum(0) / np.linalg.norm(vectors.sum(0)))
    found = proxies[4:7].numpy() / np.linalg.norm(proxies[4:7].numpy(), axis=1, keepdims=True)
    assert np.allclose(found, means, atol=1e-5)


def test_distillation_keeps_old_embeddings_nearer(kept: Path, added: Path, extended: Path, tmp_path: Path) -> None:
    assert extend(kept, added, "--out", tmp_path / "new", "--distillation", 0) == 0
    held, free = (
        read_json(run / "metrics.json")["extension"]["drift"]["cosine"]["mean"] for run in (extended, tmp_path / "new")
    )
    assert held > free


def test_with_the_old_images_gone(kept: Path, added: Path, tmp_path: Path) -> None:
    run = without_images(kept, tmp_path)
    before = files(run)
    assert extend(run, added, "--out", tmp_path / "new") == 0
    assert files(run) == before
    metrics = read_json(tmp_path / "new" / "metrics.json")
    assert set(metrics["separate"]) == {"ab"}
    drift = metrics["extension"]["drift"]
    assert drift["images"] == 14 and "trained on" in drift["measured_on"]


def test_an_extended_run_is_extended_again(extended: Path, tmp_path: Path) -> None:
    replay = read_json(extended / "replay" / "replay.json")
    assert replay["images"] == 2 * 10
    more = make_images(tmp_path / "more", classes=4, seed=5)
    assert extend(extended, more, "--out", tmp_path / "twice") == 0
    told = read_json(tmp_path / "twice" / "metrics.json")["extension"]
    assert told["from"]["datasets"] == ["a", "ab", "b"] and told["added"] == ["more"]


def test_stopped_and_resumed_is_the_same_run(kept: Path, added: Path, extended: Path, tmp_path: Path) -> None:
    with at_step(5, interrupt):
        assert extend(kept, added, "--out", tmp_path / "run") == 130
    assert unimetric("train", "--resume", tmp_path / "run") == 0
    assert_same_run(extended, tmp_path / "run")


def test_a_compatible_model_searches_in_the_old_index_and_writes_nothing_to_it(
    kept: Path, added: Path, extended: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "db"
    assert unimetric("index", kept, sources[0], "--db", database, *CPU) == 0
    new = tmp_path / "new"
    assert extend(kept, added, "--out", new, "--compatible", "--distillation", 1000, "--learning_rate_scale", 0.01) == 0
    old_fingerprint = read_json(new / "metrics.json")["extension"]["from"]["fingerprint"]
    assert read_json(new / "model" / "config.json")["compatible_with"] == [old_fingerprint]
    image = sources[0] / "c0" / "0.png"
    capsys.readouterr()
    assert unimetric("search", database, image, "--model", new, "--k", 1, "--json", *CPU) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert str(image) in json.dumps(answer)
    assert unimetric("search", database, image, "--model", extended, "--k", 1, *CPU) == 2
    assert unimetric("index", new, added, "--db", database, *CPU) == 2
    with SearchIndex.open(database, model=new) as index:
        rows = index.count()
        with pytest.raises(UserError, match="another model"):
            index.add([NewItem(added / "c0" / "0.png", dataset="y")])
        assert index.count() == rows


def test_training_keeps_a_replay_set_where_it_is_told_to(sources: list[Path], tmp_path: Path) -> None:
    options = options_file(tmp_path / "options.yaml", training={"steps": 1}, data={"workers": 0, "replay_per_class": 1})
    assert unimetric("train", sources[0], "--out", tmp_path / "run", "--config", options) == 0
    assert read_json(tmp_path / "run" / "replay" / "replay.json")["images"] == 4


def _lose(path: str) -> Any:
    def lose(run: Path) -> None:
        (run / path).unlink()

    return lose


def _smaller(run: Path) -> None:
    about = run / "replay" / "replay.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"image_size": 16}))


def _fewer(run: Path) -> None:
    about = run / "replay" / "replay.json"
    values = json.loads(about.read_text())
    about.write_text(json.dumps(values | {"classes": [*values["classes"], ["z", "z"]]}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_lose("checkpoint.safetensors"), "checkpoint.safetensors is missing"),
        (_lose("model/config.json"), "config.json does not exist"),
        (_lose("replay/replay.json"), "has no replay set, and its train images cannot be read"),
        (_lose("config.yaml"), "is not a run folder"),
        (_lose("replay/images/000003.jpg"), "missing images"),
        (_smaller, "was made for 16 px"),
        (_fewer, "holds no proxies of 8 classes"),
    ],
)
def test_a_run_that_lacks_something_is_refused(
    damage: Any, said: str, kept: Path, added: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = without_images(kept, tmp_path)
    damage(run)
    assert extend(run, added, "--out", tmp_path / "new" / "run") == 2
    error = capsys.readouterr().err.strip()
    assert said in error and error.count("\n") == 0
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_added_is_refused(
    kept: Path, added: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(said: str, *arguments: object) -> None:
        assert unimetric("extend", *arguments) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    out = ("--out", tmp_path / "new")
    refused("'a'", kept, "--data", sources[0], *out)
    refused("'b'", kept, "--data", added, f"b={added}", *out)
    refused("--data", kept, *out)
    refused("nowhere", kept, "--data", tmp_path / "nowhere", *out)
    refused("--device.processes", kept, "--data", added, *out, "--device.processes", 2)
    refused("--steps has no effect with --replay_only", kept, "--replay_only", "--steps", 9)
    refused("--out has no effect with --replay_only", kept, "--replay_only", *out)
    refused("steps is 0", kept, "--data", added, *out, "--steps", 0)
    refused("distillation is -1.0", kept, "--data", added, *out, "--distillation", -1)
    one_class = tmp_path / "single"
    shutil.copytree(added / "c0", one_class / "c0")
    refused("one class only", kept, "--data", one_class, *out)
    assert extend(kept, added, "--out", kept) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_old_images_that_changed_are_noticed(
    run: Path, added: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    assert unimetric("extend", moved, "--replay_only") == 0
    assert "not exactly those" not in capsys.readouterr().err
    shutil.copytree(sources[0], tmp_path / "a")
    (tmp_path / "a" / "c0").rename(tmp_path / "a" / "c00")
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(sources[0]), str(tmp_path / "a")))
    assert unimetric("extend", moved, "--replay_only") == 0
    assert "not exactly those" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "a" / "c7")
    shutil.rmtree(tmp_path / "a" / "c6")
    assert unimetric("extend", moved, "--replay_only") == 2
    assert "holds no proxies of 6 classes" in capsys.readouterr().err


def test_a_folder_that_is_none_of_ours_is_left_alone(
    kept: Path, added: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new" / "base").mkdir(parents=True)
    (tmp_path / "new" / "base" / "mine.txt").write_text("mine")
    assert extend(kept, added, "--out", tmp_path / "new") == 2
    assert "was not written by unimetric extend" in capsys.readouterr().err
    assert files(tmp_path) == {"new", "new/base", "new/base/mine.txt"}
