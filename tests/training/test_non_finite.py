"""Numbers that go wrong: said with step, images and cause, kept to be computed again, stopped at or passed over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import unimetric.training.loop as loop
from forked import forked_ranks
from toy_runs import assert_same_run, log_rows, options_file, read_json, removed, tensors, unimetric
from unimetric.config import run_config
from unimetric.data.loading import _TrainingImages
from unimetric.errors import UserError
from unimetric.losses import CurricularFace, make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.diagnosis import Diagnosis, diagnose
from unimetric.training.nonfinite import read_numbers
from unimetric.training.nonfinite_dump import replay_step
from unimetric.training.step import Buffers, Objective, StepInput, compute_step, noise_seed

BAD = "c1/2.png"
LINEAR = {"method": "linear", "options": {}}


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float, image: str = BAD) -> None:
    """Let one train image of the first dataset come with pixels that are no numbers."""
    original = _TrainingImages.__getitem__

    def item(self: _TrainingImages, key: tuple[int, int]) -> Any:
        pixels, label, number = original(self, key)
        return (pixels.float() * factor if str(self.paths[number]).endswith(f"a/{image}") else pixels), label, number

    monkeypatch.setattr(_TrainingImages, "__getitem__", item)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_stops_with_step_image_cause_and_a_step_to_compute_again(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, run = options_file(tmp_path / "options.yaml"), tmp_path / "run"
    spoil(monkeypatch, float("inf"))
    command = ["train", *sources, "--out", run, "--config", options]
    assert unimetric(*command) == 1
    error = last_line(capsys)
    match = re.search(r"the loss is nan at step (\d+): pixels are not finite: remove or repair the file; ", error)
    assert match, error
    assert f"suspected images: {sources[0] / BAD};" in error
    bundle = run / "non-finite" / f"step-{match[1]}"
    assert f"the step is kept in {bundle}" in error
    assert {path.name for path in bundle.iterdir()} == {"tensors.safetensors", "step.json"}
    facts = json.loads((bundle / "step.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    suspected = [facts["images"][row]["path"] for row in facts["suspected_rows"]]
    assert suspected == [str(sources[0] / BAD)]
    assert len(facts["images"]) == 8
    assert facts["versions"]["torch"] == torch.__version__
    assert run_config(facts["configuration"], "step.json").training.batch_size == 8
    assert len(facts["gradients_not_finite"]) > 0
    again = replay_step(bundle)
    assert not again.finite
    assert again.embeddings.isfinite().all(dim=1).tolist() == [path != str(sources[0] / BAD) for path in paths(facts)]
    # The same folder can hold a run at once.
    monkeypatch.undo()
    if not (run / "config.yaml").exists():
        assert unimetric(*command) == 0


def paths(facts: dict[str, Any]) -> list[str]:
    return [image["path"] for image in facts["images"]]


def fail_at(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: float = float("nan")) -> None:
    """Let the loss be no number at steps, computed once or again, the first being 1."""
    original, forward = loop.train_step, CurricularFace.forward
    failing = [False]

    def step(run: Any, model: Any, optimiser: Any, batch: Any, progress: Any) -> Any:
        failing[0] = progress.step + 1 in steps
        return original(run, model, optimiser, batch, progress)

    def broken(self: CurricularFace, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = forward(self, embeddings, labels)
        if failing[0]:
            self.t.fill_(float("nan"))  # as it would be with embeddings that are no numbers
        return value * factor if failing[0] else value

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(CurricularFace, "forward", broken)


def test_the_last_checkpoint_is_kept_and_the_run_goes_on_by_skipping(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, run, other = options_file(tmp_path / "options.yaml"), tmp_path / "run", tmp_path / "other"
    fail_at(monkeypatch, {6, 7, 11})
    assert unimetric("train", *sources, "--out", run, "--config", options) == 1
    error = last_line(capsys)
    assert "the loss is nan at step 6" in error
    assert "look at --loss.options of curricularface (margin 0.3, scale 32" in error
    assert "lower --training.learning_rate (0.0001)" in error
    assert f"the checkpoint of step 4 is kept, continue with: unimetric train --resume {run}" in error
    kept = tensors(run / "checkpoint.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values() if value.is_floating_point())
    assert unimetric("train", "--resume", run, "--training.non_finite", "skip") == 0
    said = capsys.readouterr().err
    assert said.count("skipped: the loss is nan") == 3
    assert "3 of 12 steps were skipped" in said
    assert read_json(run / "metrics.json")["counts"]["skipped_steps"] == 3
    assert [(row["step"], row["skipped_steps"]) for row in log_rows(run) if "skipped_steps" in row] == [
        (6, 1),
        (7, 2),
        (11, 3),
    ]
    assert [path.name for path in (run / "non-finite").iterdir()] == ["step-6"]
    assert unimetric("train", *sources, "--out", other, "--config", options, "--training.non_finite", "skip") == 0
    assert_same_run(other, run)


def test_a_skipped_step_changes_nothing(sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the run in which the optimiser was not asked and the moving averages stood still at this step."""
    options = options_file(tmp_path / "options.yaml", training={"non_finite": "skip"})
    with monkeypatch.context() as patch:
        fail_at(patch, {6})
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    original = loop.train_step

    def step(run: Any, model: Any, optimiser: Any, batch: Any, progress: Any) -> Any:
        return None if progress.step == 5 else original(run, model, optimiser, batch, progress)

    monkeypatch.setattr(loop, "train_step", step)
    assert unimetric("train", *sources, "--out", tmp_path / "expected", "--config", options) == 0
    expected, found = (tensors(tmp_path / name / "checkpoint.safetensors") for name in ("expected", "run"))
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not value.equal(found[name])] == []


def test_ten_in_a_row_are_not_the_images(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"non_finite": "skip"})
    fail_at(monkeypatch, set(range(2, 20)))
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 1
    error = last_line(capsys)
    assert "at step 11" in error
    assert "it is the 10th step in a row that fails" in error


def test_a_bundle_that_cannot_be_written_does_not_hide_the_cause(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, run = options_file(tmp_path / "options.yaml"), tmp_path / "run"
    run.mkdir()
    (run / "non-finite").write_text("a file in the way")
    spoil(monkeypatch, float("nan"))
    assert unimetric("train", *sources, "--out", run, "--config", options) == 1
    error = last_line(capsys)
    assert "pixels are not finite" in error
    assert "it could not be kept (cannot create the folder" in error


DRIVER = """
import sys
import pytest
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
from test_non_finite import spoil
from unimetric.cli import main
spoil(pytest.MonkeyPatch(), float("nan"))
sys.exit(main(sys.argv[1:]))
"""


def test_one_process_with_a_bad_batch_stops_both(sources: list[Path], tmp_path: Path) -> None:
    here = Path(__file__).parent
    driver, run = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(tests=str(here.parent), here=str(here)))
    options = options_file(tmp_path / "options.yaml", model=LINEAR)
    command = ["train", *sources, "--out", run, "--config", options, "--device.processes", 2]
    with forked_ranks(command, tmp_path, str(driver)) as processes:
        error = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert processes[0].returncode == 1, error
    lines = [line for line in error.splitlines() if "unimetric: error: " in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert f"pixels are not finite: remove or repair the file; suspected images: {sources[0] / BAD};" in lines[0]
    (step,) = (run / "non-finite").iterdir()
    assert sorted(path.name for path in step.iterdir()) == ["rank-0", "rank-1"]
    facts = [read_json(step / f"rank-{rank}/step.json") for rank in (0, 1)]
    (bad,) = [rank for rank in (0, 1) if facts[rank]["suspected_rows"]]
    assert len(paths(facts[0])) == len(paths(facts[1])) == 4
    assert not {*paths(facts[0])} & {*paths(facts[1])}
    again = replay_step(step / f"rank-{bad}")
    assert again.embeddings.isfinite().all(dim=1).tolist() == [
        path != str(sources[0] / BAD) for path in paths(facts[bad])
    ]
    sound = replay_step(step / f"rank-{1 - bad}")
    assert sound.embeddings.isfinite().all()
    assert not sound.finite  # its loss is that of both


def test_divided_proxies_in_half_precision_stop_both(sources: list[Path], tmp_path: Path) -> None:
    """Their loss needs both processes, so nothing of it is computed again by one."""
    here = Path(__file__).parent
    driver, run = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(tests=str(here.parent), here=str(here)))
    options = options_file(
        tmp_path / "options.yaml",
        model=LINEAR,
        training={"shard_proxies": True},
        device={"processes": 2, "precision": "bf16"},
    )
    command = ["train", *sources, "--out", run, "--config", options]
    with forked_ranks(command, tmp_path, str(driver)) as processes:
        error = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert processes[0].returncode == 1, error
    assert f"suspected images: {sources[0] / BAD};" in error
    (step,) = (run / "non-finite").iterdir()
    with pytest.raises(UserError, match="the proxies of one process only, of 2 that divided them"):
        replay_step(step / "rank-1")


def test_a_step_of_an_extension_can_be_computed_again(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    options = options_file(tmp_path / "options.yaml", training={"steps": 2}, data={"replay_per_class": 2})
    assert unimetric("train", sources[0], "--out", base, "--config", options) == 0
    fail_at(monkeypatch, {2}, factor=float("inf"))
    assert unimetric("extend", base, "--data", sources[1], "--out", run, "--steps", "3", "--workers", "0") == 1
    assert "the loss is inf at step 2" in last_line(capsys)
    monkeypatch.undo()
    bundle = run / "non-finite" / "step-2"
    again = replay_step(bundle)
    assert again.finite
    facts = json.loads((bundle / "step.json").read_text())
    facts["configuration"]["extension"]["distillation"] = 0.0
    (bundle / "step.json").write_text(json.dumps(facts))
    assert replay_step(bundle).loss < again.loss


class Step:
    """A step of a small model, to be spoiled."""

    def __init__(self, loss: str = "curricularface") -> None:
        torch.manual_seed(1)
        backbone = make_backbone("test_vit", weights="random", image_size=32)
        options = {"adapter_bottleneck": 8, "prompts": 4, "prompt_length": 2}
        self.embedder = Embedder(backbone, "puma", options, 16).train()
        self.loss = make_loss(loss, 3, 16)
        self.images = torch.randn(6, 3, 32, 32)
        self.labels = torch.tensor([0, 0, 1, 1, 2, 2])
        self.config = run_config({"loss": {"name": loss}}, "test")

    @property
    def objective(self) -> Objective:
        return Objective(self.embedder, self.loss)

    def given(self) -> StepInput:
        with torch.no_grad():
            torch.manual_seed(noise_seed(0, 0, 0))
            embeddings = self.embedder(self.images)
        return StepInput(self.images, embeddings, self.labels, torch.arange(6), 0, 0)

    def diagnosis(self, dtype: torch.dtype = torch.float32) -> Diagnosis:
        given = self.given()
        computed = compute_step(self.objective, given, dtype)
        return diagnose(self.objective, given, computed.gradients, computed.loss, self.config, dtype, True)


def test_causes() -> None:
    step = Step()
    step.images[4, 0, 3, 3] = float("nan")
    assert (step.diagnosis().first, step.diagnosis().rows) == (0, (4,))

    step = Step()
    with torch.no_grad():
        step.embedder.head.weight[0, 0] = float("inf")
    found = step.diagnosis()
    assert (found.first, found.lasting) == (1, True)
    assert "(model.head.weight): the learning rate is too high" in found.cause

    step = Step()
    with torch.no_grad():
        step.embedder.head.weight.fill_(3e38)
    found = step.diagnosis()
    assert found.first == 2
    assert "(the largest, 3e+38, is in model.head.weight): the learning rate" in found.cause

    step = Step("triplet")
    with torch.no_grad():
        step.embedder.head.weight.zero_()
        step.embedder.head.bias.zero_()
    step.loss.forward = lambda embeddings, labels: (embeddings - embeddings[0]).norm(dim=1).sum() / 0  # type: ignore
    found = step.diagnosis()
    assert "embeddings are zero vectors" in found.cause
    with torch.no_grad():
        step.embedder.head.bias.fill_(1.0)
    assert "all images have the same embedding" in step.diagnosis().cause

    step = Step("triplet")
    step.images[3] = step.images[1]
    step.embedder.eval()
    step.embedder.method.eval()
    step.loss.forward = lambda embeddings, labels: torch.cdist(embeddings, embeddings).pow(0.5).sum() * float("nan")  # type: ignore
    given = step.given()
    found = diagnose(step.objective, given, {}, float("nan"), step.config, torch.float32, True)
    assert found.rows == (1, 3)
    assert "two images have the same embedding" in found.cause

    step = Step()
    with torch.no_grad():
        step.loss.proxies[2] = 0  # type: ignore[index]
    forward = step.loss.forward
    step.loss.forward = lambda embeddings, labels: forward(embeddings, labels) * float("nan")  # type: ignore
    assert "loss.proxies has a zero vector, which has no direction, in row 2" in step.diagnosis().cause

    step = Step()
    assert "computed again, is finite" in step.diagnosis().cause


def test_a_gradient_that_fails_is_named_from_the_loss_on() -> None:
    step = Step()

    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
            return values.clone()

        @staticmethod
        def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] * float("inf")

    embed = step.embedder.geometry.embed
    object.__setattr__(step.embedder.geometry, "embed", lambda values: Wall.apply(embed(values)))
    found = step.diagnosis()
    assert found.first == 4
    assert "the gradient is not finite, first in model.head." in found.cause


def test_half_precision_is_named_where_float32_is_finite() -> None:
    step = Step()

    def overflow(module: nn.Module, values: object, result: Any) -> Any:
        half = isinstance(module, nn.Linear) and result.dtype == torch.bfloat16
        return result * float("inf") if half else None

    with removed(register_module_forward_hook(overflow)):
        assert "set --device.precision fp32" in step.diagnosis(torch.bfloat16).cause


@pytest.mark.parametrize("where", ["loss", "total", "gradient", "nowhere"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_check_sees_a_single_number(where: str, bad: float) -> None:
    parameters = [nn.Parameter(torch.zeros(size)) for size in (3, 1000, 1)]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, 3e38)  # its square, and its sum, are beyond float32
    loss, total = torch.tensor(1.25, requires_grad=True), torch.tensor(2.0)
    if where == "loss":
        loss = torch.tensor(bad)
    elif where == "total":
        total = torch.tensor(bad)
    elif where == "gradient":
        parameters[1].grad[700] = bad  # type: ignore[index]
    value, finite = read_numbers(loss, total, parameters)
    assert finite == (where == "nowhere")
    assert value == 1.25 or where == "loss"


def test_buffers_are_put_back() -> None:
    step = Step()
    step.embedder.head = nn.Sequential(step.embedder.head, nn.BatchNorm1d(16))  # type: ignore[assignment]
    step.embedder.train()
    names = {name: value.clone() for name, value in [*step.embedder.named_buffers(), *step.loss.named_buffers()]}
    assert {"head.1.running_mean", "head.1.num_batches_tracked", "t"} <= names.keys()
    buffers = Buffers(step.embedder, step.loss)
    buffers.remember()
    step.loss(step.embedder(step.images), step.labels)
    changed = dict([*step.embedder.named_buffers(), *step.loss.named_buffers()])
    assert [name for name in names if not changed[name].equal(names[name])]
    buffers.restore()
    assert all(changed[name].equal(value) for name, value in names.items())


def test_a_step_computed_aside_leaves_no_trace() -> None:
    step = Step()
    before = {name: value.clone() for name, value in {**step.embedder.state_dict(), **step.loss.state_dict()}.items()}
    given = step.given()
    computed = compute_step(step.objective, given, torch.float32)
    after = {**step.embedder.state_dict(), **step.loss.state_dict()}
    assert all(after[name].equal(value) for name, value in before.items())
    parameters = step.objective.parameters
    assert all(parameter.grad is None for parameter in parameters.values())
    # The same as the step itself.
    torch.manual_seed(noise_seed(0, 0, 0))
    embeddings = step.embedder(step.images)
    torch.manual_seed(noise_seed(0, 0, 1))
    total = step.loss(embeddings, step.labels) + step.embedder.method.penalty()
    total.backward()
    for name, gradient in computed.gradients.items():
        assert parameters[name].grad is not None
        assert gradient.equal(parameters[name].grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["missing", "cut", "no json"])
def test_replaying_what_is_damaged(damage: str, tmp_path: Path) -> None:
    if damage != "missing":
        (tmp_path / "step.json").write_text("{}" if damage == "cut" else "{")
        (tmp_path / "tensors.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match=str(tmp_path)):
        replay_step(tmp_path)
