"""A checkpoint holds all proxies; each process takes its part of them, and of what the optimiser knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unimetric.config import TrainingConfig
from unimetric.losses import CurricularFace
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from unimetric.training.optimiser import make_optimiser, step_rows


@pytest.mark.parametrize("sampled", [0, 2])
def test_processes_take_their_parts_of_a_whole_checkpoint(sampled: int, tmp_path: Path) -> None:
    embedder = Embedder(make_backbone("test_vit", weights="random", image_size=32), "linear", {}, 4)
    loss = CurricularFace(7, 4, sampled_classes=sampled)
    optimiser = make_optimiser(embedder, loss, TrainingConfig())
    loss(torch.randn(3, 4), torch.tensor([0, 4, 6])).backward()
    if loss.drawn is not None:
        step_rows(optimiser, loss.proxies, loss.drawn)
    optimiser.step()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, embedder, loss, optimiser, Progress(), "it")
    proxies, states = [], []
    for rank in range(3):
        part = CurricularFace(7, 4, sampled_classes=sampled)
        part.keep_slice(rank, 3)
        of_part = make_optimiser(embedder, part, TrainingConfig())
        load_checkpoint(path, embedder, part, of_part, "it")
        proxies.append(part.proxies.detach())
        states.append(of_part.state[part.proxies])
        assert torch.equal(part.t, loss.t)
    assert torch.equal(torch.cat(proxies), loss.proxies)
    whole = optimiser.state[loss.proxies]
    for name, value in whole.items():
        found = [state[name] for state in states]
        assert torch.equal(torch.cat(found) if value.ndim else found[0], value), name
