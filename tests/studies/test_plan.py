"""From a file to runs: the product of the axes, merged options, and one clear line for each mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import unimetric
from unimetric.config_resolution import typed_config
from unimetric.errors import UserError
from unimetric.studies.matrix_file import merge, read_matrix
from unimetric.studies.names import COLUMNS, absolute_source
from unimetric.studies.plan import Plan, make_plan
from unimetric.training.setup import check_options

CONFIGS = sorted((Path(unimetric.__file__).parent / "configs/benchmark").glob("*.yaml"))
BIG_EIGHT = ["cub200", "cars196", "sop", "inshop", "nabirds", "dogs", "flowers102", "aircraft"]
MINI_EIGHT = ["birds", "cards", "cars", "fashion", "flowers", "food", "furniture", "groceries"]


def plan_of(tmp_path: Path, datasets: tuple[str, ...] = ("a", "b", "c"), **parts: Any) -> Plan:
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump({"axes": {"method": {"one": {}}}, **parts}, sort_keys=False))
    return make_plan(read_matrix(path), ["somewhere"], typed_config, lambda sources: datasets)


nested_options = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict))


def lookup(values: Any, path: list[str]) -> Any:
    for name in path:
        values = values[name]
    return values


def leaves(values: Any, path: tuple[str, ...] = ()) -> list[tuple[list[str], Any]]:
    if isinstance(values, dict):
        return [leaf for name, value in values.items() for leaf in leaves(value, (*path, name))]
    return [(list(path), values)]


@given(nested_options, nested_options)
def test_of_merged_options_the_later_wins(one: Any, two: Any) -> None:
    merged = merge(one, two)
    for path, value in leaves(two):
        assert lookup(merged, path) == value
    assert merge(merged, two) == merged
    assert merge({}, one) == one == merge(one, {})


def test_merging_leaves_its_parts_alone() -> None:
    one, two = {"model": {"options": {"ranks": [1]}}}, {"model": {"method": "lora"}}
    merge(one, two)["model"]["options"]["ranks"].append(2)
    assert (one, two) == ({"model": {"options": {"ranks": [1]}}}, {"model": {"method": "lora"}})


@pytest.mark.parametrize("name", COLUMNS)
def test_a_dataset_with_the_name_of_a_column_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"matrix.yaml: a dataset has the name .{re.escape(name)}., .* NAME=PATH"):
        plan_of(tmp_path, datasets=("a", name))


def test_the_matrix_is_the_product_of_the_axes(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        base={"training": {"steps": 5}, "model": {"options": {"adapter_drop": 0.1}}},
        seeds=[3],
        axes={
            "method": {"PUMA": {"model": {"options": {"prompts": 2}}}, "linear": {"seeds": [0, 1]}},
            "size": {1: {"model": {"image_size": 14}}, 2: {"model": {"image_size": 28}}},
        },
    )
    assert [entry.name for entry in plan.entries] == ["PUMA, 1", "PUMA, 2", "linear, 1", "linear, 2"]
    assert [entry.seeds for entry in plan.entries] == [(3,), (3,), (0, 1), (0, 1)]
    entry = plan.entries[1]
    run = plan.run(entry, entry.models[0], 3, {})
    assert run.config.model.options == {"adapter_drop": 0.1, "prompts": 2}
    assert (run.config.model.image_size, run.config.training.steps, run.config.training.seed) == (28, 5, 3)
    assert run.folder == "puma-2/all/seed-3"


def test_frozen_has_one_seed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=[4, 5], axes={"method": {"frozen": {"model": {"method": "frozen"}}}})
    entry = plan.entries[0]
    assert entry.seeds == (4,)
    assert plan.run(entry, entry.models[0], 4, {}).kind == "evaluate"


def test_models_of_each_and_of_all_others(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, axes={"data": {"own": {"datasets": "each"}, "others": {"datasets": "leave-one-out"}, "all": {}}}
    )
    trained = [
        [plan.run(entry, model, 0, {}).config.data.train_datasets for model in entry.models] for entry in plan.entries
    ]
    assert trained == [[["a"], ["b"], ["c"]], [["b", "c"], ["a", "c"], ["a", "b"]], [[]]]
    own = plan.entries[0]
    members = [plan.run(own, model, 0, {}) for model in own.models]
    together = plan.ensemble(own, 0, members)
    assert together.members == tuple(f"own/only-{name}/seed-0" for name in "abc")
    assert together.config.data.train_datasets == []


def test_choosing_looks_at_held_out_train_classes_only(tmp_path: Path) -> None:
    entry = {"choose": {"training.learning_rate": [1e-5, 2e-5], "model.options.prompts": [2, 4]}, "seeds": [5, 6]}
    plan = plan_of(tmp_path, validation_fraction=0.25, axes={"m": {"x": entry, "y": {"choose_like": "x"}}})
    first, second = plan.entries
    runs = plan.choice_runs(first, first.models[0])
    assert [run.candidate for run in runs] == [
        {"training.learning_rate": rate, "model.options.prompts": count} for rate in (1e-5, 2e-5) for count in (2, 4)
    ]
    for run in runs:
        assert (run.config.evaluation.classes, run.config.data.validation_fraction, run.seed) == ("validation", 0.25, 0)
        assert run.config.training.learning_rate == (run.candidate or {})["training.learning_rate"]
        assert run.config.training.seed == 0
    assert len({run.folder for run in runs}) == 4
    final = plan.run(first, first.models[0], 5, runs[3].candidate or {})
    assert (final.config.evaluation.classes, final.config.data.validation_fraction) == ("test", 0.0)
    assert (final.config.training.learning_rate, final.config.model.options) == (2e-5, {"prompts": 4})
    assert plan.choice_runs(second, second.models[0]) == runs


def test_each_model_of_leave_one_out_chooses_without_the_one_left_out(tmp_path: Path) -> None:
    entry = {"choose": {"training.steps": [1, 2]}, "datasets": "leave-one-out"}
    plan = plan_of(tmp_path, axes={"m": {"x": entry}})
    for model in plan.entries[0].models:
        for run in plan.choice_runs(plan.entries[0], model):
            assert model.dataset not in run.config.data.train_datasets


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"axis": {}}, "unknown option 'axis'; did you mean 'axes'"),
        ({"axes": {}}, "not a benchmark: it has no axes"),
        ({"axes": {"m": {}}}, "axes: m: has {} where entries belong"),
        ({"axes": {"m": {"x": {"modell": {}}}}}, "m: x: has an unknown option 'modell'; did you mean 'model'"),
        ({"axes": {"m": {"x": {"model": {"methd": "lora"}}}}}, "unknown option 'methd'; did you mean 'method'"),
        ({"axes": {"m": {"x": {"model": ["lora"]}}}}, r"model: has \['lora'\] where options belong"),
        ({"axes": {"m": {"x": {"training": {"steps": "many"}}}}}, "--training.steps is 'many': use a whole number"),
        ({"axes": {"m": {"x": {"training": {"steps": 0}}}}}, "--training.steps is 0: use 1 or more"),
        ({"axes": {"m": {"x": {"datasets": "every"}}}}, "datasets is 'every'; valid: all, each, leave-one-out"),
        ({"axes": {"m": {"x": {"seeds": 3}}}}, "seeds is 3: use a list"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]: use a list of different"),
        ({"validation_fraction": 0.7}, "validation_fraction is 0.7: use a number above 0, at most 0.5"),
        ({"base": {"date": {}}}, "base: has an unknown option 'date'; did you mean 'data'"),
        ({"axes": {"m": {"x": {"choose": {"steps": [1]}}}}}, "unknown option 'steps': write SECTION.OPTION"),
        ({"axes": {"m": {"x": {"choose": {"training.step": [1]}}}}}, "unknown option 'step'; did you mean 'steps'"),
        ({"axes": {"m": {"x": {"choose": {"training.steps": 1}}}}}, "training.steps is 1: use a list"),
        ({"axes": {"m": {"x": {"choose": {"training.seed": [1, 2]}}}}}, "training.seed cannot be chosen"),
        ({"axes": {"m": {"x": {"choose_like": "z"}}}}, "choose_like is 'z'; valid: x"),
        ({"axes": {"m": {"x": {"choose_like": "y"}, "y": {}}}}, "choose_like names 'y', which chooses nothing"),
        ({"axes": {"m": {"x": {"data": {"sources": ["q"]}}}}}, "data.sources is the same for all entries"),
        ({"axes": {"m": {"x": {"evaluation": {"classes": "validation"}}}}}, "evaluation.classes is 'validation'"),
        (
            {"axes": {"m": {"x": {"model": {"method": "frozen"}, "datasets": "each"}}}},
            "datasets is 'each', but frozen trains nothing",
        ),
        (
            {"axes": {"m": {"x": {"data": {"train_datasets": ["A"]}, "datasets": "each"}}}},
            "data.train_datasets names 'A'",
        ),
        ({"axes": {"m": {"x": {"data": {"train_datasets": [1]}, "datasets": "each"}}}}, "train_datasets names '1'"),
        ({"axes": {"m": {"x, y": {}, "x": {}}, "n": {"z": {}, "y, z": {}}}}, "two entries have the name 'x, y, z'"),
    ],
)
def test_mistakes_are_said_in_one_line(parts: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        plan_of(tmp_path, **parts)
    assert "matrix.yaml" in str(caught.value)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text("axes:\n  m:\n    x: {}\n    x: {}\n")
    with pytest.raises(UserError, match=r"matrix\.yaml, line 4 is not YAML: 'x' is there twice"):
        make_plan(read_matrix(path), ["somewhere"], typed_config, lambda sources: ["a"])


def test_words_and_numbers_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(
        "base: {evaluation: {classes: test}, training: {learning_rate: 1e-5}}\naxes: {m: {'no': {}, 1: {}}}\n"
    )
    plan = make_plan(read_matrix(path), ["somewhere"], typed_config, lambda sources: ["a"])
    assert [entry.name for entry in plan.entries] == ["no", "1"]
    assert plan.run(plan.entries[0], plan.entries[0].models[0], 0, {}).config.training.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ("no: {}", "axes: m: False is read as a truth value; write it in quotes"),
        ("null: {}", "axes: m: None is read as nothing; write it in quotes"),
        ("2024-01-02: {}", "axes: m: 2024-01-02 is read as a date; write it in quotes"),
        ("x: {training: {on: 1}}", "m: x:, training: True is read as a truth value; write it in quotes"),
        ("x: {data: {train_images: {2024: 1, a: 1}}}", "x:, data: train_images: 2024 is read as a number"),
    ],
)
def test_names_that_yaml_does_not_read_as_text(axes: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(f"axes: {{m: {{{axes}}}}}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        read_matrix(path)


def test_without_sources(tmp_path: Path) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text("axes: {m: {x: {}}}\n")
    with pytest.raises(UserError, match=r"matrix.yaml names no sources: name them on the command line"):
        make_plan(read_matrix(path), [], typed_config)


def test_sources_do_not_depend_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = {
        "birds": f"{tmp_path}/birds",
        "x=birds": f"x={tmp_path}/birds",
        "x=folder:birds": f"x=folder:{tmp_path}/birds",
        "folder:birds": f"folder:{tmp_path}/birds",
        "a=b": f"{tmp_path}/a=b",
        "demo": "demo",
        "x=nowhere": "x=nowhere",
    }
    assert {text: absolute_source(text) for text in expected} == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_packaged_benchmarks(path: Path) -> None:
    assert all(word in path.read_text()[:1500] for word in ("Command", "Time", f"unimetric benchmark {path.stem} "))
    datasets = BIG_EIGHT if path.stem.startswith("paper") else MINI_EIGHT
    plan = make_plan(read_matrix(path), ["somewhere"], typed_config, lambda sources: datasets)
    for entry in plan.entries:
        run = plan.run(entry, entry.models[0], entry.seeds[0], (entry.candidates or ({},))[0])
        check_options(run.config)
        assert set(run.config.data.train_images) <= {"*", *datasets}


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem.startswith("paper")], ids=lambda path: path.stem
)
def test_the_paper_s_schedules_are_those_of_its_public_code(path: Path) -> None:
    plan = make_plan(read_matrix(path), ["somewhere"], typed_config, lambda sources: BIG_EIGHT)
    for entry in plan.entries:
        config = plan.run(entry, entry.models[0], entry.seeds[0], (entry.candidates or ({},))[0]).config
        schedule = "cosine" if config.data.few_shot else "step"
        assert config.training.schedule == ("constant" if config.model.method == "full" else schedule)
        assert config.training.epochs == (32 // config.data.few_shot + 1 if config.data.few_shot else 100)
        assert config.training.cosine_floor == (0.1 if config.data.few_shot else 0.0)


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "birds/c0").mkdir(parents=True)
    (tmp_path / "birds/c0/x.png").write_bytes(b"")
    (tmp_path / "matrix.yaml").write_text("axes: {m: {x: {}}}\n")
    script = f"""
import sys
from unimetric.cli import main
assert main(["benchmark", {str(tmp_path / "matrix.yaml")!r}, {str(tmp_path / "birds")!r}, "--out",
             {str(tmp_path / "out")!r}, "--dry_run"]) == 0
assert not [name for name in ("torch", "timm") if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["to do    x, seed 0"]
    assert not (tmp_path / "out").exists()
